"""Weights that are no numbers are refused by name; infinities where a graph has a use for them."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cbam_deploy.errors import BadInput
from cbam_deploy.graphs.onnx_file import read_model
from cbam_deploy.graphs.weights import check_weights, weight_faults

NAN, INF = np.nan, np.inf


def network(path, nodes, functions=(), external=False, dtype=np.float32, **weights):
    """A file of `nodes` from `x` [batch, 2, 4, 4] to `y`, with its weights."""
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(
                "x", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), ["batch", 2, 4, 4]
            )
        ],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(np.asarray(w, dtype), name) for name, w in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.save(model, path, save_as_external_data=external, size_threshold=0)
    return path


def node(kind, *inputs, output="y", **attributes):
    return helper.make_node(kind, inputs, [output], **attributes)


def kernel(value, shape=(2, 2, 1, 1)):
    weights = np.ones(shape, np.float32)
    weights.flat[0] = value
    return weights


CONV = [node("Conv", "x", "w")]
OF_TWO = np.array([1, 2], np.float32)


def through(*between):
    """A convolution whose kernel comes out of `between`."""
    return [*between, node("Conv", "x", "k")]


def branch(value):
    """An If whose taken branch adds nothing and convolves with a weight from outside it."""
    graphs = {}
    for name in ("then_branch", "else_branch"):
        out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["batch", 2, 4, 4])
        inner = [helper.make_node("Conv", ["x", "w"], [f"{name}_y"])]
        graphs[name] = helper.make_graph(inner, name, [], [out])
    condition = numpy_helper.from_array(np.array(True))
    return [node("Constant", output="c", value=condition), node("If", "c", **graphs)]


def constant(value):
    return node("Constant", output="k", value=numpy_helper.from_array(kernel(value)))


OWN = helper.make_function(
    "own",
    "Block",
    ["a", "b"],
    ["c"],
    [helper.make_node("Conv", ["a", "b"], ["c"])],
    [helper.make_opsetid("", 18)],
)
NORM = [node("BatchNormalization", "x", "s", "s", "m", "v")]
STATISTICS = {"s": OF_TWO, "m": OF_TWO}

BROKEN = {
    "w: 1 of 4 values is NaN": {"nodes": CONV, "w": kernel(NAN)},
    "w: 1 of 4 values is infinite": {"nodes": CONV, "w": kernel(-INF)},
    "w: 4 of 4 values are NaN": {"nodes": CONV, "w": np.full((2, 2, 1, 1), NAN)},
    "w: 1 of 4 values is NaN, in FP16": {"nodes": CONV, "dtype": np.float16, "w": kernel(NAN)},
    "w: 1 of 4 values is NaN, beside it": {"nodes": CONV, "external": True, "w": kernel(NAN)},
    "w: 1 of 4 values is infinite, moved": {
        "nodes": through(
            node("Transpose", "w", output="t", perm=[1, 0, 2, 3]),
            node("Identity", "t", output="k"),
        ),
        "w": kernel(INF),
    },
    "k: 1 of 4 values is NaN": {"nodes": through(constant(NAN))},
    "w: 1 of 4 values is infinite, in a branch": {"nodes": branch(INF), "w": kernel(INF)},
    "w: 1 of 4 values is infinite, in a function": {
        "nodes": [node("Block", "x", "w", domain="own")],
        "functions": [OWN],
        "w": kernel(INF),
    },
    "v: 1 of 2 values is negative": {"nodes": NORM, **STATISTICS, "v": [1, -0.5]},
    "m: 1 of 2 values is NaN": {"nodes": NORM, "s": OF_TWO, "m": [NAN, 0], "v": OF_TWO},
    "a: 1 of 1 values is NaN": {"nodes": [node("Add", "x", "a")], "a": [NAN]},
    "a: 1 of 1 values is infinite": {"nodes": [node("Mul", "x", "a")], "a": [INF]},
}
SOUND = {
    "a mask that is added": {"nodes": [node("Add", "x", "a")], "a": [0, -INF, 0, 0]},
    "a bound of a clip": {"nodes": [node("Clip", "x", "", "a")], "a": np.float32(INF)},
    "a maximum's start": {"nodes": [node("Max", "x", "a")], "a": [-INF]},
    "a quotient": {"nodes": [node("Div", "x", "a")], "a": [INF]},
    "a negative mean": {"nodes": NORM, "s": OF_TWO, "m": [-1, -2], "v": OF_TWO},
    "what nothing reads": {"nodes": [node("Relu", "x")], "a": [NAN]},
    "finite weights": {"nodes": CONV, "w": kernel(-1)},
}


@pytest.mark.parametrize("fault", BROKEN)
def test_weights_that_are_no_numbers_are_named(tmp_path, fault):
    path = network(tmp_path / "net.onnx", **BROKEN[fault])
    name, text = fault.partition(",")[0].split(": ")
    assert weight_faults(read_model(path)) == {name: text}
    with pytest.raises(BadInput, match=rf"net\.onnx: {name} is no weight: {text}"):
        check_weights(read_model(path), path)


@pytest.mark.parametrize("use", SOUND)
def test_infinities_that_a_graph_has_a_use_for_are_left(tmp_path, use):
    assert weight_faults(read_model(network(tmp_path / "net.onnx", **SOUND[use]))) == {}


COMMANDS = {
    "fuse": ["-o", "out.onnx"],
    "convert": ["-o", "out.onnx"],
    "convert --precision int8": ["--calibration", "digits", "-o", "out.onnx"],
    "validate": [],
    "evaluate": ["--data", "digits"],
    "bench": ["--seconds", "0.1"],
    "build-engine": ["--target", "sm_89", "-o", "out.engine"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_them_and_writes_nothing(cli, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    network("net.onnx", CONV, w=kernel(NAN))
    name, *options = command.split()
    ended = cli(name, "net.onnx", *options, *COMMANDS[command])
    assert ended.code == 2
    assert "net.onnx: w is no weight: 1 of 4 values is NaN" in ended.error
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_inspect_describes_them_and_says_so(cli, tmp_path):
    ended = cli("inspect", network(tmp_path / "net.onnx", CONV, w=kernel(NAN)))
    assert ended.code == 1
    assert "1 Conv" in ended.out
    assert "weight w is broken: 1 of 4 values is NaN" in ended.error


def test_weights_beside_the_file_are_judged_without_holding_them(tmp_path):
    size = 64 * 2**20
    weights = np.zeros((size // 8, 2, 1, 1), np.float32)
    path = network(tmp_path / "net.onnx", CONV, external=True, w=weights)
    model = read_model(path)
    before = _resident_bytes()
    check_weights(model, path)
    assert _resident_bytes() - before < size / 4


def _resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
