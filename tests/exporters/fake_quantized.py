"""A quantized or 16-bit ONNX file as a PyTorch module: its integers, scales and types, PyTorch's
kernels.

Every operator computes in float32, and its result is rounded by PyTorch to the type that the file
gives it: `torch.bfloat16`, `torch.float16`, `torch.float8_e4m3fn`.
"""

from __future__ import annotations

import numpy as np
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
            tensor.name: constant(numpy_helper.to_array(tensor)) for tensor in graph.initializer
        }

    def forward(self, pictures):
        """The network's output for `pictures`."""
        values = {**self.constants, "input": pictures}
        for node in self.nodes:
            operands = [values[name] for name in node.input]
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            operator = OPERATORS[node.op_type]
            if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Cast"):
                result = operator(*operands, **attributes)
            else:
                wide = [one.float() if one.is_floating_point() else one for one in operands]
                result = operator(*wide, **attributes).to(operands[0].dtype)
            values[node.output[0]] = result
        return values[self.output].float()


FLOATS = {"bfloat16": torch.bfloat16, "float8_e4m3fn": torch.float8_e4m3fn}
TO = {1: torch.float32, 10: torch.float16, 16: torch.bfloat16}


def constant(array):
    """An initializer in its own type; NumPy's own have no BF16 and FP8."""
    array = np.array(array)
    if array.dtype.name not in FLOATS:
        return torch.from_numpy(array)
    bits = array.view(np.dtype(f"i{array.dtype.itemsize}"))
    return torch.from_numpy(bits).view(FLOATS[array.dtype.name])


def quantize(x, scale, zero):
    steps = x.float() / scale.float()
    if zero.dtype == torch.float8_e4m3fn:
        return steps.clamp(-448, 448).to(zero.dtype)
    return torch.clamp(torch.round(steps), -128, 127)


def dequantize(integers, scale, _zero, axis=0):
    dtype = scale.dtype
    if scale.ndim:
        shape = [1] * integers.ndim
        shape[axis] = -1
        scale = scale.reshape(shape)
    return (integers.float() * scale.float()).to(dtype)


def convolve(x, weight, bias=None, *, pads, strides, group=1, **_):
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
    "Gemm": lambda x, weight, bias, **_: functional.linear(x, weight, bias),
    "ReduceMean": lambda x, axes, *, keepdims, **_: x.mean(axes.tolist(), keepdim=bool(keepdims)),
    "Relu": torch.relu,
    "Cast": lambda x, *, to: x.to(TO[to]),
    "CbamGateAddRelu": gate_add_relu,
}
