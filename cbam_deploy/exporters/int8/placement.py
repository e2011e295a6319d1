"""Where QuantizeLinear (Q) and DequantizeLinear (DQ) stand: the rules, for TensorRT.

TensorRT runs an operation in INT8 when DQ stands before its inputs and Q behind its output, and
fuses what stands between. A tensor between two such groups travels as int8; any other travels as
float, which costs up to four times the memory traffic, and often a conversion.

1. Convolutions and fully connected layers read their input and their weight through DQ. Weights
   have one scale per output channel, activations one per tensor. Biases stay float.
2. Gates are treated like convolutions: X and the residual come through DQ, the output goes into Q,
   and nothing else stands between. Their weights stay float (they are tiny).
3. An addition reads its residual branch through DQ. Its other operand is the output of a
   convolution that nothing else reads: it gets no Q, because the addition is fused into it.
4. Pooling over the picture reads its input through DQ. Maximum pooling commutes with Q, so behind
   it stands a Q of the same scale, which loses nothing.
5. A tensor has one Q and one DQ, shared by all who read it.
6. Q stands only before a DQ that rules 1 to 4 ask for. So there is none between a convolution and
   its activation, or an addition and its, where it would hinder their fusion: the tensor that
   those four read is the one behind the activation.
7. What computes the attention of a gate that is not fused (from pooled maps to the sigmoid that
   scales them) stays float: it is tiny, and its rounding would scale whole channels.

A bottleneck block with a gate, before and after (Conv reads its weight through DQ as well)::

    x ── Conv ─ Relu ── Conv ─ Relu ── Conv ────────┐
    │                                               CbamGateAddRelu ── y
    └───────────────────────────────────────────────┘

    x ─ Q ─┬─ DQ ─ Conv ─ Relu ─ Q ─ DQ ─ Conv ─ Relu ─ Q ─ DQ ─ Conv ─ Q ─ DQ ─┐
           │                                                 CbamGateAddRelu ─ Q ─ DQ ── y
           └─ (the same DQ) ────────────────────────────────────────────────────┘

The block without a gate ends in ``Add(Conv, DQ) ─ Relu ─ Q``: the last Conv, Add and Relu become
one kernel.

In FP8 the rules are the same, and fewer operations have kernels. Left in float are:

8. Convolutions and fully connected layers with fewer than `FP8_CHANNELS` channels on either side
   (of one group), convolutions whose channels on both sides are not equally far from a multiple of
   that, or whose kernel has more than `FP8_PLACES` places.
9. Additions but those of rule 3 to a convolution that is in FP8; and pooling, which has none.

Sources: "Working with Quantized Types" in the TensorRT documentation, on explicit quantization and
the placement of Q/DQ layers; for FP8, what NVIDIA's Model Optimizer quantizes in ONNX files, and
what it leaves out as without kernels.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from cbam_deploy.exporters.int8.quantized_types import FP8, INT8, QuantizedType
from cbam_deploy.gates.operators import operator_of

FP8_CHANNELS = 16
FP8_PLACES = 32
POOLINGS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean"})


@dataclass(frozen=True)
class QuantizedNode:
    """One operation that reads, and perhaps writes, 8 bits.

    Attributes:
        node: its name.
        operator: its operator, such as ``Conv``.
        reads: the activations it reads through Q and DQ.
        weight: name of its quantized weight; None where it has none.
        axis: the weight's output channels.
        writes: its output, where that goes into Q whoever reads it.
        same_scale: whether the output's scale is that of the input.
    """

    node: str
    operator: str
    reads: tuple[str, ...]
    weight: str | None = None
    axis: int | None = None
    writes: str | None = None
    same_scale: bool = False


def quantized_nodes(
    model: ir.Model, keep_float: Collection[str] = (), kind: QuantizedType = INT8
) -> tuple[QuantizedNode, ...]:
    """The operations of the graph to run in 8 bits, by the rules of the module's docstring.

    Args:
        model: a float network whose nodes have names.
        keep_float: names of nodes to leave out.
        kind: INT8 or FP8.
    """
    attention = _attention_nodes(model)
    found = []
    for node in model.graph:
        if node in attention or not _is_float32(node) or (kind is FP8 and not _has_fp8(node)):
            continue
        chosen = _quantized(node)
        if chosen and chosen.node not in keep_float:
            found.append(chosen)
    return tuple(found)


def _has_fp8(node: ir.Node) -> bool:
    """Whether there are FP8 kernels for a node, by rules 8 and 9."""
    if operator_of(node):
        return True
    if node.op_type == "Add":
        fused = next(filter(_only_result_of_convolution, node.inputs), None)
        producer = fused.producer() if fused is not None else None
        return producer is not None and _has_fp8(producer)
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if node.op_type not in ("Conv", "Gemm", "MatMul") or weight is None or weight.shape is None:
        return False
    first, second, *places = weight.shape.numpy()
    fits = min(first, second) >= FP8_CHANNELS
    if node.op_type != "Conv":
        return fits
    return fits and (first - second) % FP8_CHANNELS == 0 and math.prod(places) <= FP8_PLACES


def calibrated_tensors(chosen: Iterable[QuantizedNode]) -> tuple[str, ...]:
    """The activations behind Q and DQ, each once, in the order of the graph."""
    names: dict[str, None] = {}
    for operation in chosen:
        names.update(dict.fromkeys(operation.reads))
        if operation.writes is not None:
            names[operation.writes] = None
    return tuple(names)


def borrowed_scales(chosen: Iterable[QuantizedNode]) -> dict[str, str]:
    """The activation whose scale another one has, by the latter, as behind maximum pooling."""
    found: dict[str, str] = {}
    for operation in chosen:
        if operation.same_scale and operation.writes is not None:
            source = operation.reads[0]
            found[operation.writes] = found.get(source, source)
    return found


def is_feature_map(value: ir.Value | None) -> bool:
    """Whether a tensor is [N, C, H, W] with more than two channels and more than one place.

    That leaves out pooled vectors and a gate's two maps over the channels. A tensor of unknown
    shape counts as a feature map.
    """
    if value is None or value.is_initializer() or value.const_value is not None:
        return False
    if value.shape is None:
        return True
    if len(value.shape) != 4:
        return False
    _, channels, *sides = value.shape
    return not (isinstance(channels, int) and channels <= 2) and any(side != 1 for side in sides)


def _is_float32(node: ir.Node) -> bool:
    """Whether a node's first input and output are; a type that nothing says counts as that."""
    values = (value for value in (*node.inputs[:1], *node.outputs[:1]) if value is not None)
    return all(value.dtype in (None, ir.DataType.FLOAT) for value in values)


def _quantized(node: ir.Node) -> QuantizedNode | None:
    if operator := operator_of(node):
        reads = _names(node.inputs[: len(operator.maps)])
        return QuantizedNode(_name(node), node.op_type, reads, writes=node.outputs[0].name)
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in ("Conv", "Gemm", "MatMul"):
        return _weighted(node)
    if node.op_type == "Add" and all(map(is_feature_map, node.inputs)):
        return _addition(node)
    if node.op_type in POOLINGS and is_feature_map(node.inputs[0]):
        reads = _names(node.inputs[:1])
        if node.op_type == "MaxPool":
            output = node.outputs[0].name
            return QuantizedNode(_name(node), "MaxPool", reads, writes=output, same_scale=True)
        return QuantizedNode(_name(node), node.op_type, reads)
    return None


def _weighted(node: ir.Node) -> QuantizedNode | None:
    source, weight = node.inputs[:2]
    if source is None or source.is_initializer() or weight is None or not weight.is_initializer():
        return None
    transposed = node.attributes.get_int("transB", 0)
    axis = {"Conv": 0, "Gemm": 0 if transposed else 1}.get(node.op_type)
    if axis is None:
        # MatMul: the last axis of its second operand, which is a matrix in a network's classifier.
        if weight.shape is None or len(weight.shape) != 2:
            return None
        axis = 1
    return QuantizedNode(_name(node), node.op_type, _names([source]), weight.name, axis)


def _addition(node: ir.Node) -> QuantizedNode:
    fused = next(filter(_only_result_of_convolution, node.inputs), None)
    return QuantizedNode(_name(node), "Add", _names(v for v in node.inputs if v is not fused))


def _only_result_of_convolution(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return (
        value is not None
        and producer is not None
        and producer.op_type == "Conv"
        and len(value.uses()) == 1
        and not value.is_graph_output()
    )


def _attention_nodes(model: ir.Model) -> set[ir.Node]:
    """Nodes between pooled maps and the sigmoid whose result scales a feature map."""
    found: set[ir.Node] = set()
    waiting = [node for node in model.graph if _scales_a_map(node)]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += _producers_of_small_tensors(node)
    return found


def _scales_a_map(node: ir.Node) -> bool:
    sigmoid = node.op_type in ("Sigmoid", "HardSigmoid") and not is_feature_map(node.outputs[0])
    return sigmoid and any(use.op_type == "Mul" for use in node.outputs[0].consumers())


def _producers_of_small_tensors(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None and not is_feature_map(value):
            reads_a_map = any(is_feature_map(read) for read in producer.inputs)
            if not (reads_a_map and producer.op_type in POOLINGS):
                yield producer


def _names(values: Iterable[ir.Value | None]) -> tuple[str, ...]:
    return tuple(value.name for value in values if value is not None and value.name)


def _name(node: ir.Node) -> str:
    return node.name or ""
