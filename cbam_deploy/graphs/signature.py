"""What a graph takes and gives, and the precision it computes in."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from cbam_deploy.numerics.tensors import TensorSpec


def specs_of(values: Iterable[ir.Value]) -> tuple[TensorSpec, ...]:
    """Specs of a graph's inputs or outputs.

    A free size without a name is called by the value's and the axis, as in ``image_2``; a type that
    is left open is ``?``.
    """
    return tuple(_spec(value) for value in values)


def _spec(value: ir.Value) -> TensorSpec:
    shape = () if value.shape is None else tuple(value.shape)
    sizes = tuple(
        size if isinstance(size, int) else str(size.value or f"{value.name}_{axis}")
        for axis, size in enumerate(shape)
    )
    dtype = "?" if value.dtype is None else str(value.dtype.numpy())
    return TensorSpec(value.name or "", sizes, dtype)


def graph_precision(model: ir.Model) -> str:
    """The precision a graph computes in, judged by its nodes and weights.

    ``fp8`` or ``int8`` if anything is quantized, else ``bf16`` or ``fp16`` if any weight is, else
    ``fp32``.
    """
    quantizers = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    if quantizers:
        values = [one for node in quantizers for one in (*node.inputs[2:], *node.outputs) if one]
        return "fp8" if any(one.dtype == ir.DataType.FLOAT8E4M3FN for one in values) else "int8"
    dtypes = {value.dtype for value in model.graph.initializers.values()}
    if ir.DataType.BFLOAT16 in dtypes:
        return "bf16"
    return "fp16" if ir.DataType.FLOAT16 in dtypes else "fp32"
