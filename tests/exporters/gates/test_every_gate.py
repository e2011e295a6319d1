"""Every gate goes the way of the old ones: FP16, between Q and DQ, into an engine."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from origins import ORIGINS

from cbam_deploy.engines.build import build_engine
from cbam_deploy.exporters.half.conversion import to_half
from cbam_deploy.exporters.int8.quantization import quantize
from cbam_deploy.gates.operators import (
    DOMAIN,
    GATE_OPERATORS,
    PLUGIN_ATTRIBUTES,
    operator_named,
    operator_of,
)
from cbam_deploy.graphs.gate_functions import set_functions
from cbam_deploy.graphs.onnx_file import write_model

CHANNELS, SIZE = 16, 8
OPERATORS = sorted({*GATE_OPERATORS, *(op for one in ORIGINS.values() for op in one.operators)})
# Of the largest output: each of a convolution, a gate and a convolution rounds to 2^-11.
HALF = 3 * 2**-11


@pytest.fixture(scope="module")
def network():
    """Every gate between two convolutions, side by side on one picture."""
    random = np.random.default_rng(0)
    nodes, weights = [], {}

    def weight(name, shape):
        spread = 1 / np.sqrt(max(np.prod(shape[1:]), 1))
        weights[name] = (spread * random.standard_normal(shape)).astype(np.float32)
        return name

    for op in OPERATORS:
        operator = operator_named(op)
        nodes.append(
            helper.make_node(
                "Conv", ["input", weight(f"{op}.in", (CHANNELS, 3, 1, 1))], [f"{op}.x"]
            )
        )
        shapes = operator.weight_shapes(CHANNELS, CHANNELS // 4, 3)
        inputs = [weight(f"{op}.{name}", shape) for name, shape in shapes.items()]
        maps = [f"{op}.x"] * len(operator.maps)
        nodes.append(
            helper.make_node(
                op, [*maps, *inputs], [f"{op}.y"], op, domain=DOMAIN, **PLUGIN_ATTRIBUTES
            )
        )
        nodes.append(
            helper.make_node("Conv", [f"{op}.y", weight(f"{op}.out", (4, CHANNELS, 1, 1))], [op])
        )

    def info(name, channels):
        shape = ["batch", channels, SIZE, SIZE]
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "gates",
        [info("input", 3)],
        [info(op, 4) for op in OPERATORS],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    set_functions(model, ir.DataType.FLOAT)
    return model


@pytest.fixture(scope="module")
def quantized(network):
    return quantize(network, [pictures()])[0]


def pictures():
    return np.random.default_rng(1).standard_normal((4, 3, SIZE, SIZE), dtype=np.float32)


def gates(model):
    return {node.op_type: node for node in model.graph if operator_of(node)}


def run(model, path):
    write_model(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip(OPERATORS, session.run(OPERATORS, {"input": pictures()}), strict=True))


def test_every_gate_takes_fp16_maps_and_keeps_its_weights(network, tmp_path):
    model = network.clone()
    to_half(model)
    found = gates(model)
    assert sorted(found) == OPERATORS
    halves, exact = run(model, tmp_path / "half.onnx"), run(network, tmp_path / "single.onnx")
    for op, node in found.items():
        by_name = operator_named(op).by_name(node.inputs)
        types = {name: value.dtype for name, value in by_name.items()}
        maps = {name: types.pop(name) for name in operator_named(op).maps}
        assert set(maps.values()) == {ir.DataType.FLOAT16}
        assert set(types.values()) == {ir.DataType.FLOAT}
        largest = np.abs(exact[op]).max()
        assert np.abs(halves[op] - exact[op]).max() <= HALF * largest, op


def test_every_gate_stands_between_dq_and_q(quantized):
    found = gates(quantized)
    assert sorted(found) == OPERATORS
    for op, node in found.items():
        maps = list(node.inputs)[: len(operator_named(op).maps)]
        assert {value.producer().op_type for value in maps} == {"DequantizeLinear"}, op
        assert {user.op_type for user in node.outputs[0].consumers()} == {"QuantizeLinear"}, op


def test_an_engine_of_every_gate_builds(quantized, tmp_path):
    write_model(quantized, tmp_path / "int8.onnx")
    result = build_engine(tmp_path / "int8.onnx", tmp_path / "net.engine", targets=("sm_89",))
    assert result.bytes > 0
