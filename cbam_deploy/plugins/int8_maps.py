"""The int8 tensors around a gate of a quantized network: Q and DQ before it, and behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from cbam_deploy.gates.operators import GateOperator


@dataclass(frozen=True)
class Int8Maps:
    """The int8 tensors that a gate's inputs are read from and its output is written to.

    Attributes:
        scales: of the maps that it reads, then of the one that it writes.
        quantizers: the Q nodes behind the gate.
    """

    scales: tuple[float, ...]
    quantizers: tuple[ir.Node, ...]

    @classmethod
    def around(cls, node: ir.Node, operator: GateOperator) -> Int8Maps | None:
        """Those of `node`; None where it is not int8 all around."""
        maps = node.inputs[: len(operator.maps)]
        readers = [value.producer() if value is not None else None for value in maps]
        before = [_int8_scale(reader, "DequantizeLinear") for reader in readers]
        output = node.outputs[0]
        quantizers = tuple(output.consumers())
        behind = {_int8_scale(quantizer, "QuantizeLinear") for quantizer in quantizers}
        scales = (*before, *behind)
        if output.is_graph_output() or len(behind) != 1 or None in scales:
            return None
        return cls(tuple(scale for scale in scales if scale is not None), quantizers)

    @staticmethod
    def read(maps: Sequence[ir.Value | None]) -> list[ir.Value | None]:
        """The int8 tensors that the DQ before `maps` read."""
        readers = (value.producer() for value in maps if value is not None)
        return [reader.inputs[0] for reader in readers if reader is not None]


def reads_fp8(node: ir.Node, operator: GateOperator) -> bool:
    """Whether a gate reads a map from FP8, by DQ."""
    readers = (value.producer() for value in node.inputs[: len(operator.maps)] if value is not None)
    return any(
        reader is not None
        and reader.op_type == "DequantizeLinear"
        and reader.inputs[0] is not None
        and reader.inputs[0].dtype == ir.DataType.FLOAT8E4M3FN
        for reader in readers
    )


def _int8_scale(node: ir.Node | None, op: str) -> float | None:
    """The scale of a Q or DQ between float and int8 with one scale and no zero point, else None."""
    if node is None or node.op_type != op or node.domain not in ("", "ai.onnx"):
        return None
    integer = node.inputs[0] if op == "DequantizeLinear" else node.outputs[0]
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    types = {value.dtype for value in (integer, zero_point) if value is not None}
    types.add(ir.DataType(node.attributes.get_int("output_dtype", 0)))
    scale, zero = _constant(node.inputs[1]), _constant(zero_point)
    if ir.DataType.INT8 not in types or scale is None or scale.size != 1:
        return None
    if zero_point is not None and (zero is None or zero.any()):
        return None
    value = float(scale.reshape(()))
    return value if 0.0 < value < float("inf") else None


def _constant(value: ir.Value | None) -> NDArray[Any] | None:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return tensor.numpy() if tensor is not None else None
