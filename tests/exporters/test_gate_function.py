"""The bodies of the gate operators compute the papers' equations, in every runtime."""

import gate_reference
import numpy as np
import onnx
import onnxruntime
import pytest
from gate_models import gate_model, random_weights
from onnx.reference import ReferenceEvaluator

from cbam_deploy.exporters.half.conversion import QUANTIZED_HALF_OPSET
from cbam_deploy.gates.operators import GATE_OPERATORS, operator_named
from cbam_deploy.graphs.gate_bodies import GROUPS, gate_function

CHANNELS = {"grouped": 2 * GROUPS, "ungrouped": 12}
# Every operator with a name of its own, and every choice that gates have beside those.
GATES = [
    *((op, 7) for op in GATE_OPERATORS),
    ("CbamGate", 3),
    ("CbamGateSpatialFirst", 5),
    ("SeGateMeanMaxGelu", 7),
    ("SeGateMaxLeakyRelu", 7),
    ("SeGateHardSwishThenHardSwish", 7),
    ("CbamGateSumOfGatesMeanMap", 7),
    ("SeGateMeanMaxSumOfGatesSilu", 7),
    ("CbamGateMeanOfPoolsMaxMapHardSigmoidMap", 3),
    ("CbamGateLinearConvMapAdd", 3),
    ("EcaGateMeanMaxSumOfGatesAddSilu", 7),
    ("EcaGateMeanMaxThenGelu", 7),
    ("ScseGateMeanMaxPoolMapThenLeakyRelu", 3),
    ("SpatialGate", 9),
    ("SpatialGateConvMap", 1),
]
SHAPES = [(2, 5, 7), (1, 1, 1), (3, 9, 4)]


def run_in_onnxruntime(model, feeds):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)[0]


def run_in_reference(model, feeds):
    (found,) = ReferenceEvaluator(model).run(None, feeds)
    return found


def maps(op, batch, channels, height, width, dtype):
    random = np.random.default_rng(height)
    names = operator_named(op).maps
    shape = (batch, channels, height, width)
    return {name: random.normal(0.2, 1.5, shape).astype(dtype) for name in names}


@pytest.mark.parametrize(
    ("run", "dtype"),
    [
        (run_in_onnxruntime, np.float32),
        (run_in_onnxruntime, np.float16),
        (run_in_reference, np.float32),
    ],
)
@pytest.mark.parametrize("channels", CHANNELS.values(), ids=CHANNELS)
@pytest.mark.parametrize(("op", "kernel_size"), GATES)
def test_body_computes_the_equations(op, kernel_size, channels, dtype, run):
    weights = random_weights(op, channels, kernel_size=kernel_size)
    model = gate_model(op, weights, dtype, channels=channels)
    for batch, height, width in SHAPES:
        feeds = maps(op, batch, channels, height, width, dtype)
        expected = gate_reference.gate(op, feeds["X"], weights, feeds.get("R"))
        found = run(model, feeds)
        assert found.dtype == dtype
        # FP32 inside: sums of at most 98 terms of size 1, a slope of at most 1/4 and maps of size
        # 6 leave 1e-5. At the end one rounding to the map's type, of half a unit.
        allowed = 1e-5 + np.abs(expected) * np.finfo(dtype).eps / 2
        assert (np.abs(found - expected) <= allowed).all()


def test_half_precision_body_neither_overflows_nor_rounds_on_the_way():
    """A mean of 64 values near FP16's largest, 65504, which their sum exceeds by far."""
    weights = random_weights("SeGateAddRelu", 16)
    weights = {name: array / 1e5 for name, array in weights.items()}
    x = np.full((1, 16, 8, 8), 60000, np.float16)
    r = np.full_like(x, -29000)
    found = run_in_onnxruntime(gate_model("SeGateAddRelu", weights, np.float16), {"X": x, "R": r})
    expected = gate_reference.gate("SeGateAddRelu", x, weights, r)
    np.testing.assert_array_equal(found, expected.astype(np.float16))


def test_first_channel_of_spatial_weights_is_the_maximum():
    weights = {name: np.zeros_like(a) for name, a in random_weights("CbamGate", 16).items()}
    weights["WS"][0, 0, 3, 3] = 1.0
    x = np.zeros((1, 16, 1, 1), np.float32)
    x[0, 3] = 2.0  # Halved by the channel attention: maximum 1, mean 1/16.
    found = run_in_onnxruntime(gate_model("CbamGate", weights), {"X": x})
    assert found[0, 3, 0, 0] == pytest.approx(1 / (1 + np.exp(-1)), rel=1e-6)


def test_every_image_of_a_batch_is_gated_by_itself():
    weights = random_weights("CbamGate", 16)
    model = gate_model("CbamGate", weights)
    x = maps("CbamGate", 4, 16, 6, 6, np.float32)["X"]
    together = run_in_onnxruntime(model, {"X": x})
    alone = [run_in_onnxruntime(model, {"X": x[n : n + 1]}) for n in range(4)]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-6, atol=1e-6)


MLP, CONVOLUTION = ("W0", "B0", "W1", "B1"), ("WS", "BS")


@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        ("CbamGate", ["X", *MLP, *CONVOLUTION]),
        ("CbamGateAddRelu", ["X", "R", *MLP, *CONVOLUTION]),
        ("SeGate", ["X", *MLP]),
        ("SeGateAddRelu", ["X", "R", *MLP]),
    ],
)
def test_inputs_come_in_the_order_that_plugins_expect(op, inputs):
    (function,) = gate_model(op, random_weights(op, 16)).functions
    assert list(function.input) == inputs
    assert (function.domain, list(function.output)) == ("cbam_deploy", ["Y"])


def test_onnxruntime_keeps_no_cast_in_a_graph_of_single_precision(tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    model = gate_model("CbamGateAddRelu", random_weights("CbamGateAddRelu", 16), nodes=3)
    onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    casts = [
        node.output[0]
        for node in onnx.load(tmp_path / "optimized.onnx").graph.node
        if node.op_type == "Cast"
    ]
    # The cast that makes an output of the graph is left, as ONNX Runtime keeps its name.
    assert casts in ([], ["Y"])


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_constants_in_bodies_are_tensors_which_no_tool_gives_another_type(opset):
    """onnxslim makes a double of a `value_float`, which the body's operators do not take."""
    for op in dict.fromkeys(op for op, _ in GATES):
        for grouped in (True, False):
            body = gate_function(op, opset, grouped=grouped)
            kinds = {name for n in body if n.op_type == "Constant" for name in n.attributes}
            assert kinds <= {"value"}, op


def test_bodies_use_operators_of_versions_that_onnxruntime_has_on_cuda():
    """INT8 files are of opset 19, of which its CUDA provider lacks three renewed operators."""
    lacking = {"Pad", "Equal", "Size"}
    for op in dict.fromkeys(op for op, _ in GATES):
        for grouped in (True, False):
            used = {
                node.op_type for node in gate_function(op, QUANTIZED_HALF_OPSET, grouped=grouped)
            }
            assert not used & lacking, op
    assert onnx.defs.get_schema("ReduceMax", QUANTIZED_HALF_OPSET).since_version == 18


def test_nodes_of_a_body_have_names_of_their_own():
    """pnnx names what it inlines by gate and node, and refuses a name that comes twice."""
    for op in dict.fromkeys(op for op, _ in GATES):
        names = [node.name for node in gate_function(op, 18)]
        assert all(names)
        assert len(set(names)) == len(names), op
