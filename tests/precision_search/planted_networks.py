"""A residual network of six blocks in which some places bear no low precision."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from cbam_deploy.graphs.gate_functions import set_functions

BLOCKS, SIZE = 6, 8


def write_network(
    path: Path,
    *,
    overflows: Collection[int] = (),
    outliers: Collection[int] = (),
    cancels: Collection[int] = (),
    classes: int = 5,
    channels: int = 8,
) -> Path:
    """Write the network; its weights have the names of modules, and its last block ends in a gate.

    In exact arithmetic it computes the same whatever is planted.

    Args:
        path: where to.
        overflows: blocks in which what lies between the convolutions is 10^6 times as large.
        outliers: blocks in which one channel of it is 10^4 times as large.
        cancels: blocks in which it is 8192 larger: within FP16's range, whose steps there are 8.
        classes: number of logits.
        channels: of all maps.
    """
    weights = _weights(classes, channels)
    for block in (f"layer1.{i}" for i in range(BLOCKS)):
        first, bias = weights[f"{block}.conv1.weight"], weights[f"{block}.conv1.bias"]
        second, shift = weights[f"{block}.conv2.weight"], weights[f"{block}.conv2.bias"]
        number = int(block[-1])
        factor = np.ones(channels, np.float32)
        if number in overflows:
            factor[:] = 1e6
        if number in outliers:
            factor[3] = 1e4
        first *= factor[:, None, None, None]
        bias *= factor
        second /= factor[:, None, None]
        if number in cancels:
            bias += 8192
            shift -= 8192 * second.sum(axis=(1, 2, 3))
    nodes = [_node("Conv", "x0", "input", "stem.conv.weight", pads=[1, 1, 1, 1])]
    for i in range(BLOCKS):
        conv1, conv2 = f"layer1.{i}.conv1", f"layer1.{i}.conv2"
        nodes += [
            _node("Conv", f"a{i}", f"x{i}", f"{conv1}.weight", f"{conv1}.bias", pads=[1, 1, 1, 1]),
            _node("Relu", f"r{i}", f"a{i}"),
            _node("Conv", f"b{i}", f"r{i}", f"{conv2}.weight", f"{conv2}.bias"),
        ]
        if i < BLOCKS - 1:
            nodes += [_node("Add", f"s{i}", f"b{i}", f"x{i}"), _node("Relu", f"x{i + 1}", f"s{i}")]
    gate = _node(
        "CbamGateAddRelu",
        "gated",
        "b5",
        "x5",
        *(f"layer1.5.gate.{name}" for name in _gate(channels)),
    )
    gate.domain = "cbam_deploy"
    nodes += [
        gate,
        _node("ReduceMean", "mean", "gated", "axes", keepdims=0),
        _node("MatMul", "logits", "mean", "fc.weight"),
    ]
    weights["axes"] = np.array([2, 3])
    floats = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "planted",
        [onnx.helper.make_tensor_value_info("input", floats, ["n", 3, SIZE, SIZE])],
        [onnx.helper.make_tensor_value_info("logits", floats, ["n", classes])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("cbam_deploy", 1)]
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10))
    set_functions(model)
    ir.save(model, path)
    return path


def write_pictures(path: Path, count: int = 16) -> Path:
    """Write network inputs, float32 [count, 3, 8, 8]."""
    np.save(path, _normal(np.random.default_rng(1), count, 3, SIZE, SIZE))
    return path


def _gate(c: int) -> dict[str, tuple[int, ...]]:
    return {"W0": (2, c), "B0": (2,), "W1": (c, 2), "B1": (c,), "WS": (1, 2, 7, 7), "BS": (1,)}


def _weights(classes: int, c: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"stem.conv.weight": (c, 3, 3, 3)}
    for i in range(BLOCKS):
        shapes[f"layer1.{i}.conv1.weight"] = (c, c, 3, 3)
        shapes[f"layer1.{i}.conv1.bias"] = (c,)
        shapes[f"layer1.{i}.conv2.weight"] = (c, c, 1, 1)
        shapes[f"layer1.{i}.conv2.bias"] = (c,)
    shapes |= {f"layer1.5.gate.{name}": shape for name, shape in _gate(c).items()}
    shapes["fc.weight"] = (c, classes)
    return {
        name: _normal(random, *shape)
        * np.float32(np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1)
        for name, shape in shapes.items()
    }


def _normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.standard_normal(shape).astype(np.float32)


def _node(op: str, output: str, *inputs: str, **attributes: object) -> onnx.NodeProto:
    return onnx.helper.make_node(op, inputs, [output], name=f"node_{output}", **attributes)
