"""A quantized ONNX file as a PyTorch module: the same integers and scales, PyTorch's kernels."""

from __future__ import annotations

import onnx
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional


class FakeQuantized(nn.Module):
    """Runs the operators that a quantized CBAM-ResNet consists of, in float32."""

    def __init__(self, path):
        super().__init__()
        graph = onnx.load(path).graph
        self.nodes = list(graph.node)
        self.output = graph.output[0].name
        self.constants = {
            tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
            for tensor in graph.initializer
        }

    def forward(self, pictures):
        """The network's output for `pictures`."""
        values = {**self.constants, "input": pictures}
        for node in self.nodes:
            operands = [values[name] for name in node.input]
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            values[node.output[0]] = OPERATORS[node.op_type](*operands, **attributes)
        return values[self.output].float()


def quantize(x, scale, _zero):
    return torch.clamp(torch.round(x.float() / scale.float()), -128, 127)


def dequantize(integers, scale, _zero, axis=0):
    if scale.ndim:
        shape = [1] * integers.ndim
        shape[axis] = -1
        scale = scale.reshape(shape)
    return integers * scale.float()


def convolve(x, weight, bias=None, *, pads, strides, group=1, **_):
    bias = None if bias is None else bias.float()
    return functional.conv2d(x, weight, bias, strides, pads[:2], groups=group)


def gate_add_relu(x, residual, w0, b0, w1, b1, ws, bs, **_):
    def mlp(vector):
        return functional.linear(functional.linear(vector, w0, b0).relu(), w1, b1)

    x = x * (mlp(x.mean((2, 3))) + mlp(x.amax((2, 3)))).sigmoid()[:, :, None, None]
    maps = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)
    spatial = functional.conv2d(maps, ws, bs, padding=ws.shape[-1] // 2)
    return (x * spatial.sigmoid() + residual).relu()


OPERATORS = {
    "QuantizeLinear": quantize,
    "DequantizeLinear": dequantize,
    "Conv": convolve,
    "Gemm": lambda x, weight, bias, **_: functional.linear(x, weight, bias.float()),
    "ReduceMean": lambda x, axes, *, keepdims, **_: x.mean(axes.tolist(), keepdim=bool(keepdims)),
    "Relu": torch.relu,
    "Cast": lambda x, **_: x,
    "CbamGateAddRelu": gate_add_relu,
}
