"""ONNX to ONNX: an FP32 graph, or the float side of a quantized one, becomes FP16 or BF16.

Every value gets one type, and a Cast stands only where a node needs another: after FP32 network
inputs, before FP32 network outputs, and around the nodes that stay in FP32 (`half_rules` says which
and why; it is the same in BF16)::

    input ──Cast──▶ Conv ─▶ CbamGate ──Cast──▶ ReduceMean ──Cast──▶ Gemm ──Cast──▶ logits
     FP32           FP16    FP16               FP32                 FP16           FP32
                            (weights FP32)

A weight is stored in the type its reader needs. So is a DequantizeLinear's scale, which decides the
type of its output; a QuantizeLinear takes what comes. Hence no Cast stands between them and an
operation. Values keep their names.

Operations that run in INT8 (`int8_nodes`) stay as they are, with FP32 scales and biases: no float
of theirs leaves the kernel, so FP16 would make nothing smaller. It would break ONNX Runtime's INT8
convolutions: it quantizes their biases by the product of two scales, which underflows in FP16.
FP8 has no such kernels: what stands between its DQ and Q becomes FP16 like the rest.

onnxruntime.transformers.float16 does this too, and is not used: it clamps weights beyond FP16's
range without a word, knows neither calibration ranges nor scales, puts Casts around all inputs of
a gate, and renames what stands at the network's inputs and outputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, ShapeInferencePass

from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.half.formats import FP16, HalfFormat
from cbam_deploy.exporters.half.rules import (
    REDUCTIONS,
    TYPE_FOLLOWING,
    Halves,
    KeptNode,
    fault,
    fits_half,
    halves,
    is_float,
    is_standard,
    is_weight,
    node_name,
    operator,
    scale_fault,
)
from cbam_deploy.exporters.int8.int8_nodes import int8_nodes
from cbam_deploy.exporters.int8.quantized_types import FP8
from cbam_deploy.gates.operators import DOMAIN
from cbam_deploy.graphs.gate_bodies import gate_function
from cbam_deploy.graphs.gate_body_opsets import CAST_LIKE_SINCE, needs_dtype
from cbam_deploy.graphs.gate_functions import gate_counts
from cbam_deploy.graphs.names import Names
from cbam_deploy.graphs.opset import raise_opset
from cbam_deploy.report.content import Section, Table
from cbam_deploy.report.result import Result

FP32 = ir.DataType.FLOAT
# From here on QuantizeLinear and DequantizeLinear take FP16.
QUANTIZED_HALF_OPSET = 19

IoDtype = Literal["fp32", "fp16"]
Ranges = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class HalfReport(Result):
    """What became FP16 or BF16, and what did not.

    Attributes:
        half_nodes: number of nodes that take or give that format, by operator.
        gates: how many of them are gates; their weights stay FP32.
        reductions: names of the nodes computed in FP32 because they add up many values.
        kept: nodes computed in FP32 because of a range, a weight, a scale, or as asked.
        int8_nodes: number of nodes that run in INT8.
        casts: number of Casts put in.
        io_dtype: of network inputs and outputs.
        range_checked: whether ranges of activations were known.
        format: ``FP16`` or ``BF16``.
    """

    half_nodes: dict[str, int]
    gates: int
    reductions: tuple[str, ...]
    kept: tuple[KeptNode, ...]
    int8_nodes: int
    casts: int
    io_dtype: IoDtype
    range_checked: bool
    format: str = "FP16"

    def sections(self) -> tuple[Section, ...]:
        """Counts, then a table of the nodes kept in FP32."""
        unchecked = "" if self.range_checked else "activations not checked: no calibration data"
        facts = (
            ("in FP32", f"{len(self.reductions)} reductions, {len(self.kept)} kept"),
            ("ranges", unchecked),
            ("casts put in", str(self.casts)),
        )
        kept = Table(
            columns=("kept in FP32", "operator", "range", "because it"),
            rows=tuple((node.node, node.op, _range(node), node.reason) for node in self.kept),
            text_columns=4,
        )
        return (Section(self.format, tables=(Table.facts(facts), *((kept,) if self.kept else ()))),)


def _range(node: KeptNode) -> str:
    return "" if node.range is None else " to ".join(f"{end:.4g}" for end in node.range)


def to_half(
    model: ir.Model,
    *,
    keep_fp32: Collection[str] = (),
    io_dtype: IoDtype = "fp32",
    ranges: Ranges | None = None,
    half: HalfFormat = FP16,
) -> HalfReport:
    """Convert a model to FP16 or BF16 in place.

    Args:
        model: FP32, or with QuantizeLinear and DequantizeLinear nodes.
        keep_fp32: names of nodes, or of their outputs, to compute in FP32.
        io_dtype: type of float network inputs and outputs; ``fp16`` only where `half` is that.
        ranges: smallest and largest value of activations by name, from calibration data. Without
            them only weights and scales are checked.
        half: the format; for BF16 the model must be of its opset at least.

    Raises:
        BadInput: a name in `keep_fp32` is unknown, the type of a value is, INT8 nodes need a newer
            opset than the model can be moved to, or `io_dtype` is too small for an input or output.
    """
    ranges = ranges or {}
    if any(is_standard(node, "QuantizeLinear", "DequantizeLinear") for node in model.graph):
        raise_opset(model, QUANTIZED_HALF_OPSET)
    settle_types(model)
    _set_gate_bodies(model)
    _check_names(model.graph, keep_fp32)
    if io_dtype == "fp16":
        _check_io_ranges(model.graph, ranges)
    io = half.dtype if io_dtype == "fp16" else FP32
    conversion = _Conversion(model, frozenset(keep_fp32), io, ranges, half)
    conversion.run()
    return HalfReport(
        half_nodes=dict(sorted(conversion.half_nodes.items())),
        gates=sum(n for op, n in conversion.half_nodes.items() if op.startswith(f"{DOMAIN}.")),
        reductions=tuple(conversion.reductions),
        kept=tuple(conversion.kept),
        int8_nodes=len(conversion.int8_nodes),
        casts=conversion.casts,
        io_dtype=io_dtype,
        range_checked=bool(ranges),
        format=half.name,
    )


def settle_types(model: ir.Model) -> None:
    """Make constants weights, and find the types that the file leaves out."""
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    if any(value.type is None for value in _computed(model.graph)):
        ShapeInferencePass()(model)
    for value in _computed(model.graph):
        if value.type is None:
            raise BadInput(
                f"the type of {value.name} is unknown", "export the model again with its types"
            )


def _set_gate_bodies(model: ir.Model) -> None:
    """Give gates the body for GPUs, which is where FP16 is fast.

    Pooling over channels in one step is slower on CPUs, but takes 5 MB of kernels less in the
    engine of a CBAM-ResNet-50, a tenth of its FP16 weights.
    """
    opset = model.opset_imports.get("", 1)
    for op in gate_counts(model):
        if needs_dtype(opset):
            raise BadInput(
                f"the model is of opset {opset}; gates take FP16 from opset {CAST_LIKE_SINCE} on",
                "convert the model before its gates are fused, or export it with a newer opset",
            )
        function = gate_function(op, opset, grouped=False)
        model.functions[function.identifier()] = function


def _computed(graph: ir.Graph) -> list[ir.Value]:
    return [value for node in graph for value in node.outputs if value.name]


def _check_names(graph: ir.Graph, names: Collection[str]) -> None:
    known = {node.name for node in graph} | {value.name for value in _computed(graph)}
    for name in names:
        if name not in known:
            raise BadInput(f"no node {name!r} to keep in FP32", "check its name with inspect")


def _check_io_ranges(graph: ir.Graph, ranges: Ranges) -> None:
    for value in (*graph.inputs, *graph.outputs):
        reached = ranges.get(value.name or "")
        if reached is not None and not fits_half(reached):
            raise BadInput(
                f"{value.name} goes from {reached[0]:.4g} to {reached[1]:.4g}, beyond FP16",
                "leave network inputs and outputs FP32",
            )


class _Conversion:
    """One pass over a graph in topological order; a value's `dtype` says what it has become.

    Types are replaced, not changed: clones of a model share them.
    """

    def __init__(
        self,
        model: ir.Model,
        asked: frozenset[str],
        io: ir.DataType,
        ranges: Ranges,
        half: HalfFormat,
    ) -> None:
        self.half_nodes: Counter[str] = Counter()
        self.reductions: list[str] = []
        self.kept: list[KeptNode] = []
        self.casts = 0
        self._graph = model.graph
        self._opset = model.opset_imports.get("", 1)
        self.int8_nodes = int8_nodes(self._graph)
        self._asked, self._io, self._ranges = asked, io, ranges
        self._format, self._half = half, half.dtype
        self._beyond_half = _bad_scales(model.graph)
        self._originals: dict[ir.Value, ir.TensorProtocol] = {}
        self._scales: dict[ir.Node, ir.Value] = {}
        self._typed: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._names = Names(self._graph)

    def run(self) -> None:
        """Convert inputs, nodes and outputs."""
        for value in self._graph.inputs:
            if is_float(value) and not is_weight(value):
                value.type = ir.TensorType(self._io)
        for node in list(ir.traversal.RecursiveGraphIterator(self._graph)):
            if not _chooses_type(node):
                self._convert(node)
            elif not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
                self._as(node.outputs[0], FP32)  # nobody asks for it, but its scale may be shared
        for index, value in enumerate(self._graph.outputs):
            if is_float(value):
                self._give_output(index, value)

    def _convert(self, node: ir.Node) -> None:
        may_be = halves(node, self._opset, self._format)
        typed = node.graph is self._graph and node not in self.int8_nodes
        half = typed and any(map(any, may_be)) and self._may_be_half(node, may_be)
        for index, (value, may) in enumerate(zip(node.inputs, may_be.inputs, strict=True)):
            if value is not None and is_float(value):
                node.replace_input_with(
                    index, self._as(value, self._half if half and may else FP32)
                )
        for value, may in zip(node.outputs, may_be.outputs, strict=True):
            if may:
                dtype = self._half if half else FP32
                value.type = ir.TensorType(dtype)
                if is_standard(node, "Cast"):
                    node.attributes["to"] = ir.AttrInt64("to", int(dtype))
        if half:
            self.half_nodes[operator(node)] += 1

    def _may_be_half(self, node: ir.Node, may_be: Halves) -> bool:
        """Decide on a node that could be FP16, and note why one is not."""
        source = node.inputs[0] if node.inputs else None
        if self._asked & {node.name, *(value.name for value in node.outputs)}:
            self.kept.append(KeptNode(node_name(node), operator(node), "", None, "was asked for"))
            return False
        if is_standard(node, *self._format.lacking):
            reason = f"is none that TensorRT-RTX builds in {self._format.name}"
            self.kept.append(KeptNode(node_name(node), operator(node), "", None, reason))
            return False
        if is_standard(node, *REDUCTIONS):
            self.reductions.append(node_name(node))
            return False
        if is_standard(node, *TYPE_FOLLOWING) and source is not None and not self._flexible(source):
            return source.dtype == self._half and source not in self._beyond_half
        found = fault(node, may_be, self._ranges, self._beyond_half, self._format)
        if found is not None:
            self.kept.append(found)
        return found is None

    def _flexible(self, value: ir.Value) -> bool:
        """Whether a value can be made in either type without a Cast."""
        producer = value.producer()
        return is_weight(value) or (producer is not None and _chooses_type(producer))

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The value in the type wanted; made on the first call, the same one afterwards."""
        if (value, dtype) not in self._typed:
            self._typed[value, dtype] = self._made(value, dtype)
        return self._typed[value, dtype]

    def _made(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        other = FP32 if dtype == self._half else self._half
        is_first = (value, other) not in self._typed
        if is_weight(value):
            return self._typed_weight(value, dtype, is_first)
        if self._flexible(value):
            return self._dequantized(value, dtype, is_first)
        return value if value.dtype == dtype else self._cast(value, dtype)

    def _typed_weight(self, value: ir.Value, dtype: ir.DataType, is_first: bool) -> ir.Value:
        """The weight itself for its first reader, a copy for one that needs another type."""
        assert value.const_value is not None
        original = self._originals.setdefault(value, value.const_value)
        if is_first and original.dtype == dtype:
            return value
        name = value.name if is_first else self._fresh(value, dtype)
        target = value if is_first else ir.Value(name=name)
        target.const_value = ir.Tensor(original.numpy().astype(dtype.numpy()), name=name)
        target.shape, target.type = value.shape, ir.TensorType(dtype)
        if not is_first:
            self._graph.register_initializer(target)
        return target

    def _dequantized(self, value: ir.Value, dtype: ir.DataType, is_first: bool) -> ir.Value:
        """Output of the DequantizeLinear itself, or of a second one with a scale of `dtype`."""
        node = value.producer()
        assert node is not None
        assert node.inputs[1] is not None
        scale = self._as(self._scales.setdefault(node, node.inputs[1]), dtype)
        if is_first:
            node.replace_input_with(1, scale)
            value.type = ir.TensorType(dtype)
            return value
        inputs = (node.inputs[0], scale, *node.inputs[2:])
        output = self._like(value, dtype)
        name = self._names.node(f"{node_name(node)}{self._suffix(dtype)}")
        second = ir.node(node.op_type, inputs, node.attributes, outputs=[output], name=name)
        self._graph.insert_after(node, second)
        return output

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        output = self._like(value, dtype)
        name = self._names.node(output.name or "Cast")
        cast = ir.node("Cast", [value], {"to": dtype}, outputs=[output], name=name)
        graph, producer = value.graph, value.producer()
        assert isinstance(graph, ir.Graph)
        if producer is None:
            graph.insert_before(graph[0], cast)
        else:
            graph.insert_after(producer, cast)
        self.casts += 1
        return output

    def _give_output(self, index: int, value: ir.Value) -> None:
        """Make a network output of the type promised, under its own name."""
        output = self._as(value, self._io)
        if output is not value:
            name, value.name = value.name, self._fresh(value, value.dtype or self._half)
            output.name = name
            self._graph.outputs[index] = output

    def _like(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """A new value of the same shape."""
        return ir.Value(
            name=self._fresh(value, dtype), shape=value.shape, type=ir.TensorType(dtype)
        )

    def _fresh(self, value: ir.Value, dtype: ir.DataType) -> str:
        return self._names.value(f"{value.name}{self._suffix(dtype)}")

    def _suffix(self, dtype: ir.DataType) -> str:
        return "_fp32" if dtype == FP32 else self._format.suffix


def _chooses_type(node: ir.Node) -> bool:
    """Whether a node is a DequantizeLinear whose scale, a weight, can be stored in either type."""
    return is_standard(node, "DequantizeLinear") and is_weight(node.inputs[1])


def _bad_scales(graph: ir.Graph) -> dict[ir.Value, str]:
    """Quantized values whose scale FP16 cannot hold, before and after, with a sentence each."""
    found = {}
    for node in graph:
        if not is_standard(node, "QuantizeLinear", "DequantizeLinear"):
            continue
        floats, integers = (node.inputs[0], node.outputs[0])
        if node.op_type == "DequantizeLinear":
            floats, integers = integers, floats
        scale = node.inputs[1]
        if floats is None or integers is None or scale is None or scale.const_value is None:
            continue
        reason = scale_fault(scale.const_value.numpy(), _largest(integers))
        if reason:
            found[floats] = reason
    return found


def _largest(value: ir.Value) -> int:
    """Largest magnitude a quantized value has, or may have where it is computed."""
    if value.const_value is not None and value.const_value.size:
        return int(np.abs(value.const_value.numpy().astype(np.int64)).max())
    if value.dtype == FP8.dtype:
        return FP8.largest
    bits = value.dtype.bitwidth if value.dtype is not None else 8
    return 1 << bits - 1
