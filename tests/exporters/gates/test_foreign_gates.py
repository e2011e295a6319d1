"""Nodes that bear the name of one of our gates, but whose body in the file is another."""

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from gate_models import gate_model, random_weights
from onnx import helper, numpy_helper
from spelled_gates import CHANNELS, Spelling, write

from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.convert import convert
from cbam_deploy.exporters.gates.fusion import fuse_model
from cbam_deploy.gates.operators import GATE_OPERATORS
from cbam_deploy.graphs.gate_bodies import gate_function
from cbam_deploy.graphs.gate_functions import foreign_operators
from cbam_deploy.inspection import inspect
from cbam_deploy.plugins.geometry import KNOWN_DEVICES
from cbam_deploy.plugins.lowering import lower_gates


def plain_behind(proto, gate):
    """`proto`, and behind its output Y a gate of standard ops."""
    plain = write(Spelling(gate=gate))
    for node in plain.graph.node:
        node.input[:] = ["Y" if name == "input" else name for name in node.input]
    proto.graph.node.extend(plain.graph.node)
    proto.graph.initializer.extend(plain.graph.initializer)
    proto.graph.output[0].name = "output"
    return proto


def edited(op="SeGate"):
    """A file whose bodies say Tanh where ours say Sigmoid."""
    proto = gate_model(op, random_weights(op, CHANNELS))
    for node in proto.functions[0].node:
        node.op_type = "Tanh" if node.op_type == "Sigmoid" else node.op_type
    return proto


def run(proto):
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(0).standard_normal((2, CHANNELS, 5, 4), dtype=np.float32)
    return session.run(None, {"X": x})[0]


def fuse(proto):
    model = ir.from_proto(proto)
    report = fuse_model(model)
    fused = ir.to_proto(model)
    onnx.checker.check_model(fused, full_check=True)
    return report, fused


def test_a_body_that_is_not_ours_is_left_and_named():
    source = plain_behind(edited("SeGate"), "cbam")
    report, fused = fuse(source)
    assert [op for _, op in report.fused] == ["CbamGate"]
    ((_, reason),) = report.refused
    assert reason == "SeGate has another body in the file than in this version"
    assert report.present == 0
    np.testing.assert_allclose(run(fused), run(source), rtol=0, atol=1e-5)


def test_a_gate_whose_name_is_taken_by_another_body_stays_as_it_is():
    source = plain_behind(edited("SeGate"), "se")
    report, fused = fuse(source)
    assert report.fused == ()
    assert [reason for _, reason in report.refused] == [
        "SeGate has another body in the file than in this version"
    ] * 2
    np.testing.assert_array_equal(run(fused), run(source))


def test_gates_of_a_later_version_of_the_domain_are_left():
    source = plain_behind(gate_model("SeGate", random_weights("SeGate", CHANNELS)), "cbam")
    next(entry for entry in source.opset_import if entry.domain).version = 2
    report, fused = fuse(source)
    assert report.fused == ()
    assert {reason for _, reason in report.refused} == {
        "the file uses version 2 of cbam_deploy, not 1"
    }
    assert fused == ir.to_proto(ir.from_proto(source))


@pytest.mark.parametrize("opset", [11, 14, 17, 18, 21])
def test_every_body_that_is_written_is_ours(opset):
    model = ir.from_proto(gate_model("SeGate", random_weights("SeGate", CHANNELS)))
    kinds = itertools.product((True, False), (ir.DataType.FLOAT, ir.DataType.FLOAT16))
    for grouped, dtype in kinds:
        for op in GATE_OPERATORS:
            function = gate_function(op, opset, grouped=grouped, dtype=dtype)
            model.functions[function.identifier()] = function
        assert foreign_operators(model) == {}


def renamed(function):
    for node in function.node:
        for names in (node.input, node.output):
            names[:] = [name if name in function.input else f"{name}_" for name in names]
    function.output[0] += "_"


def tensors_as_numbers(function):
    """As bodies were written at first."""
    for node in function.node:
        if node.op_type == "Constant":
            value = numpy_helper.to_array(node.attribute[0].t)
            name = "value_ints" if value.ndim else "value_float"
            node.attribute[0].CopyFrom(helper.make_attribute(name, value.tolist()))


def constants_first(function):
    nodes = sorted(function.node, key=lambda node: node.op_type != "Constant")
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del function.node[:]
    function.node.extend(nodes)


@pytest.mark.parametrize("change", [renamed, tensors_as_numbers, constants_first])
def test_a_body_that_says_the_same_in_other_words_is_ours(change):
    proto = gate_model("CbamGate", random_weights("CbamGate", CHANNELS))
    change(proto.functions[0])
    onnx.checker.check_model(proto, full_check=True)
    assert foreign_operators(ir.from_proto(proto)) == {}


def another_constant(function):
    node = next(node for node in function.node if node.output[0] == "two")
    node.attribute[0].t.CopyFrom(numpy_helper.from_array(np.float32(3)))


def operands_swapped(function):
    node = next(node for node in function.node if node.op_type == "Concat")
    node.input[:] = reversed(node.input)


def another_attribute(function):
    next(node for node in function.node if node.op_type == "ReduceMax").attribute[0].i = 1


def another_result(function):
    function.node[-1].input[0] = "refined"


def inputs_swapped(function):
    function.input[1], function.input[3] = function.input[3], function.input[1]


@pytest.mark.parametrize(
    "change",
    [another_constant, operands_swapped, another_attribute, another_result, inputs_swapped],
)
def test_a_body_with_one_change_is_another(change):
    proto = gate_model("CbamGate", random_weights("CbamGate", CHANNELS))
    change(proto.functions[0])
    assert list(foreign_operators(ir.from_proto(proto))) == ["CbamGate"]


def test_another_body_is_not_converted_as_if_it_were_ours(tmp_path):
    onnx.save(plain_behind(edited(), "cbam"), tmp_path / "edited.onnx")
    with pytest.raises(BadInput, match="SeGate has another body in the file"):
        convert(tmp_path / "edited.onnx", tmp_path / "half.onnx", precision="fp16")
    assert not (tmp_path / "half.onnx").exists()


def test_another_body_is_what_an_engine_is_built_from():
    model = ir.from_proto(edited())
    model.graph.inputs[0].shape = ir.Shape(["N", CHANNELS, 8, 8])
    ((_, lowered),) = lower_gates(model, [KNOWN_DEVICES[89]]).items()
    assert (lowered.way, lowered.reason) == (
        "native",
        "SeGate has another body in the file than in this version",
    )
    (body,) = model.functions.values()
    assert "Tanh" in [node.op_type for node in body]


def test_inspection_tells_another_body_from_ours(tmp_path):
    onnx.save(gate_model("SeGate", random_weights("SeGate", CHANNELS)), tmp_path / "ours.onnx")
    onnx.save(edited(), tmp_path / "edited.onnx")
    found = [inspect(tmp_path / name).gates[0].lowering for name in ("ours.onnx", "edited.onnx")]
    assert found == ["function", "other function"]
