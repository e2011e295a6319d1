"""Put QuantizeLinear (Q) and DequantizeLinear (DQ) into a graph, where `placement` says.

A value x becomes clip(round(x / scale), -128, 127), halves to even, and comes back as that integer
times scale; in FP8 it is rounded to the nearest of E4M3's values instead. Zero points are 0. New
values and nodes are named after the tensor, by names that nothing else in the graph bears.

``onnxruntime.quantization`` does this too, and is not used: it takes a tensor that happens to be
called ``x_scale`` for the scale of ``x``, and goes through the whole graph for every tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from cbam_deploy.exporters.int8.placement import QuantizedNode
from cbam_deploy.exporters.int8.quantized_types import INT8, QuantizedType
from cbam_deploy.graphs.names import Names

# FP16 must hold every scale to within half an INT8 step of the largest value, because what is not
# quantized becomes FP16 next. This concerns weights of channels, and activations, below 0.002.
SMALLEST_SCALE = 2.0**-17


def weight_scales(
    weight: NDArray[np.float32], axis: int, kind: QuantizedType = INT8
) -> NDArray[np.float32]:
    """The scale of each channel: max|w| over the type's largest value, float32 [channels]."""
    others = tuple(dimension for dimension in range(weight.ndim) if dimension != axis)
    largest = np.abs(weight).max(axis=others, initial=0)
    return np.asarray(np.maximum(largest / kind.largest, SMALLEST_SCALE), np.float32)


def insert_pairs(
    graph: ir.Graph,
    chosen: Sequence[QuantizedNode],
    scales: Mapping[str, float],
    kept: Collection[str],
    kind: QuantizedType = INT8,
) -> None:
    """Let the operations of `chosen` read and write 8 bits, in place.

    Args:
        graph: a float32 network whose nodes have names.
        chosen: in the order of the graph.
        scales: of the activations that they read and write, by tensor.
        kept: names of nodes that read activations from before Q and DQ; what an operation writes
            as 8 bits has no other form.
        kind: INT8 or FP8.
    """
    pairs = _Pairs(graph, kind)
    nodes = {node.name: node for node in graph}
    written = {operation.writes for operation in chosen}
    like = {operation.writes: operation.reads[0] for operation in chosen if operation.same_scale}
    values = {value.name: value for value in graph.inputs}
    values |= {value.name: value for node in graph for value in node.outputs}
    for tensor, scale in scales.items():
        step = pairs.step(like.get(tensor, tensor), scale)
        pairs.around(values[tensor], step, () if tensor in written else kept)
    for operation in chosen:
        if operation.weight is not None and operation.axis is not None:
            pairs.of_weight(nodes[operation.node], operation.weight, operation.axis)
    pairs.finish()


class _Pairs:
    """The new nodes of one graph."""

    def __init__(self, graph: ir.Graph, kind: QuantizedType) -> None:
        self._graph, self._kind = graph, kind
        self._names = Names(graph)
        self._steps: dict[str, tuple[ir.Value, ir.Value]] = {}
        self._weights: dict[tuple[str, int], ir.Value] = {}
        self._outputs: dict[ir.Value, ir.Value] = {}

    def step(self, tensor: str, scale: float) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point of `tensor`; the same ones each time."""
        if tensor not in self._steps:
            self._steps[tensor] = (
                self._constant(f"{tensor}_scale", np.float32(scale)),
                self._constant(f"{tensor}_zero_point", self._kind.rounded(np.zeros(()))),
            )
        return self._steps[tensor]

    def around(
        self, value: ir.Value, step: tuple[ir.Value, ir.Value], kept: Collection[str]
    ) -> None:
        """Q and DQ behind `value`, for all who read it but the nodes `kept`."""
        tensor = value.name or ""
        value.type = ir.TensorType(ir.DataType.FLOAT)
        readers = [use for use in value.uses() if use.node.name not in kept]
        quantize = self._node("QuantizeLinear", tensor, (value, *step), self._kind.dtype)
        integers = quantize.outputs[0]
        dequantize = self._node("DequantizeLinear", tensor, (integers, *step), ir.DataType.FLOAT)
        restored = dequantize.outputs[0]
        integers.shape = restored.shape = value.shape
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], [quantize, dequantize])
        else:
            self._graph.insert_after(producer, [quantize, dequantize])
        for reader, index in readers:
            reader.replace_input_with(index, restored)
        if value.is_graph_output():
            value.name, restored.name = self._names.value(f"{tensor}_QuantizeLinear_Input"), tensor
            self._outputs[value] = restored

    def finish(self) -> None:
        """Let the network's outputs be the rounded ones."""
        for index, value in enumerate(self._graph.outputs):
            self._graph.outputs[index] = self._outputs.get(value, value)

    def of_weight(self, node: ir.Node, weight: str, axis: int) -> None:
        """Let `node` read its weight from 8 bits, with a scale of each channel."""
        value = node.inputs[1]
        assert value is not None
        if (weight, axis) not in self._weights:
            self._weights[weight, axis] = self._integers(node, value, axis)
        node.replace_input_with(1, self._weights[weight, axis])
        if not value.uses() and not value.is_graph_output():
            del self._graph.initializers[weight]

    def _integers(self, node: ir.Node, value: ir.Value, axis: int) -> ir.Value:
        """`value` in 8 bits and a DQ before `node`; what the DQ gives."""
        assert value.const_value is not None
        weight, tensor = value.const_value.numpy(), value.name or ""
        scales = weight_scales(weight, axis, self._kind)
        shape = [-1 if dimension == axis else 1 for dimension in range(weight.ndim)]
        rounded = self._kind.rounded(weight / scales.reshape(shape))
        stored = self._constant(f"{tensor}_quantized", rounded)
        inputs = (
            stored,
            self._constant(f"{tensor}_scale", scales),
            self._constant(f"{tensor}_zero_point", self._kind.rounded(np.zeros(len(scales)))),
        )
        dequantize = self._node("DequantizeLinear", tensor, inputs, ir.DataType.FLOAT, axis=axis)
        dequantize.outputs[0].shape = value.shape
        self._graph.insert_before(node, dequantize)
        return dequantize.outputs[0]

    def _node(
        self,
        op: str,
        tensor: str,
        inputs: Sequence[ir.Value],
        dtype: ir.DataType,
        **attributes: Any,
    ) -> ir.Node:
        name = self._names.value(f"{tensor}_{op}_Output")
        output = ir.Value(name=name, type=ir.TensorType(dtype))
        return ir.node(
            op, inputs, attributes, outputs=[output], name=self._names.node(f"{tensor}_{op}")
        )

    def _constant(self, wanted: str, array: NDArray[Any] | np.generic) -> ir.Value:
        name = self._names.value(wanted)
        tensor = ir.tensor(np.asarray(array), name=name)
        value = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self._graph.register_initializer(value)
        return value
