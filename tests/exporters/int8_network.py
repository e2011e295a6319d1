"""A small CBAM network as an ONNX file, and the same in float64, to quantize both."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import parser
from torch.nn import functional

from cbam_deploy.graphs.gate_bodies import gate_function

CHANNELS = 16
SIZE = 16
CLASSES = 10

# Every tensor that must stand behind Q and DQ, in the order of the graph.
QUANTIZED = ("input", "r1", "pooled", "r2", "c3", "gated", "r4", "summed", "mean")

_GRAPH = f"""
<ir_version: 10, opset_import: ["" : 18, "cbam_deploy" : 1]>
small (float[batch, 3, {SIZE}, {SIZE}] input) => (float[batch, {CLASSES}] logits)
{{
  c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (input, w1, b1)
  r1 = Relu (c1)
  pooled = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (r1)
  c2 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (pooled, w2, b2)
  r2 = Relu (c2)
  c3 = Conv <kernel_shape = [1, 1]> (r2, w3, b3)
  gated = cbam_deploy.CbamGateAddRelu <plugin_namespace = "cbam_deploy", plugin_version = "1">
      (c3, pooled, gw0, gb0, gw1, gb1, gws, gbs)
  c4 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (gated, w4, b4)
  r4 = Relu (c4)
  c5 = Conv <kernel_shape = [1, 1]> (r4, w5, b5)
  added = Add (c5, gated)
  summed = Relu (added)
  mean = ReduceMean <keepdims = 0> (summed, axes)
  logits = Gemm <transB = 1> (mean, fc, fc_bias)
}}
"""


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """float32, by the names of the graph."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        spread = 1.0 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1
        return (random.standard_normal(shape) * spread).astype(np.float32)

    c = CHANNELS
    shapes = {
        "w1": (c, 3, 3, 3), "b1": (c,), "w2": (c, c, 3, 3), "b2": (c,), "w3": (c, c, 1, 1),
        "b3": (c,), "gw0": (4, c), "gb0": (4,), "gw1": (c, 4), "gb1": (c,), "gws": (1, 2, 7, 7),
        "gbs": (1,), "w4": (c, c, 3, 3), "b4": (c,), "w5": (c, c, 1, 1), "b5": (c,),
        "fc": (CLASSES, c), "fc_bias": (CLASSES,),
    }  # fmt: skip
    return {name: normal(*shape) for name, shape in shapes.items()}


def network(seed: int = 0) -> ir.Model:
    """The network as an ONNX model with a gate node and its function."""
    proto = parser.parse_model(_GRAPH)
    for name, value in weights(seed).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.int64([2, 3]), "axes"))
    for node in proto.graph.node:
        node.name = f"node_{node.output[0]}"
    model = ir.from_proto(proto)
    function = gate_function("CbamGateAddRelu", 18)
    model.functions[function.identifier()] = function
    return model


def images(count: int, seed: int = 0) -> np.ndarray:
    """Network inputs, float32 [count, 3, SIZE, SIZE]."""
    random = np.random.default_rng(seed)
    return random.standard_normal((count, 3, SIZE, SIZE)).astype(np.float32)


def forward(
    x: np.ndarray,
    scales: dict[str, float] | None = None,
    given: dict[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """All tensors named in `QUANTIZED`, and the logits, in float64.

    With `scales`, by tensor, weights and these tensors are rounded to INT8: the result for a tensor
    is its value before rounding, and what follows computes on the rounded one. With `given`, what
    follows computes on the tensors in there, so that each operation is judged by itself.
    """
    w = {name: torch.from_numpy(value).double() for name, value in weights().items()}
    if scales is not None:
        for name in ("w1", "w2", "w3", "w4", "w5", "fc"):
            peak = w[name].abs().flatten(1).amax(1)
            w[name] = _round(w[name], (peak / 127).view(-1, *[1] * (w[name].ndim - 1)))
    seen: dict[str, np.ndarray] = {}

    def q(name: str, value: torch.Tensor) -> torch.Tensor:
        seen[name] = value.numpy()
        if given is not None:
            value = torch.from_numpy(given[name]).double()
        return value if scales is None else _round(value, torch.tensor(scales[name]).double())

    def conv(value: torch.Tensor, index: int) -> torch.Tensor:
        kernel = w[f"w{index}"]
        return functional.conv2d(value, kernel, w[f"b{index}"], padding=kernel.shape[-1] // 2)

    value = q("input", torch.from_numpy(x).double())
    value = q("r1", conv(value, 1).relu())
    pooled = q("pooled", functional.max_pool2d(value, 3, 2, 1))
    value = q("r2", conv(pooled, 2).relu())
    value = q("c3", conv(value, 3))
    gated = q("gated", (_gate(value, w) + pooled).relu())
    value = q("r4", conv(gated, 4).relu())
    value = q("summed", (conv(value, 5) + gated).relu())
    value = q("mean", value.mean(dim=(2, 3)))
    seen["logits"] = functional.linear(value, w["fc"], w["fc_bias"]).numpy()
    return seen


def _gate(x: torch.Tensor, w: dict[str, torch.Tensor]) -> torch.Tensor:
    def mlp(vector: torch.Tensor) -> torch.Tensor:
        hidden = functional.linear(vector, w["gw0"], w["gb0"]).relu()
        return functional.linear(hidden, w["gw1"], w["gb1"])

    channel = (mlp(x.mean(dim=(2, 3))) + mlp(x.amax(dim=(2, 3)))).sigmoid()
    x = x * channel[:, :, None, None]
    maps = torch.cat([x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)], dim=1)
    return x * functional.conv2d(maps, w["gws"], w["gbs"], padding=3).sigmoid()


def _round(value: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.clamp(torch.round(value / scale), -128, 127) * scale
