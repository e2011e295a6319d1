"""Where values of a graph are made, and where a fault can lie between two of them."""

import onnx
import onnx_ir as ir
import pytest

from cbam_deploy.graphs.origins import places, stretch

# x ── a ── b ── gate ── d ── y
#       └─────── c ──────┘
GRAPH = """
<ir_version: 10, opset_import: ["" : 18, "cbam_deploy" : 1]>
branches (float[1, 2] x) => (float[1, 2] y)
<float[1, 2] w = {1, 2}, float[1, 2] w0 = {1, 2}> {
    [first] a = Mul(x, w)
    [second] b = Relu(a)
    [third] c = Neg(a)
    [attention] gate = cbam_deploy.CbamGate(b, w0)
    [fourth] d = Add(gate, c)
    [fifth] y = Sqrt(d)
}
"""


@pytest.fixture
def model():
    return ir.from_proto(onnx.parser.parse_model(GRAPH))


def test_every_value_has_its_node_operator_and_weights(model):
    found = places(model)
    assert [place.value for place in found] == ["a", "b", "c", "gate", "d", "y"]
    assert [place.node for place in found][:4] == ["first", "second", "third", "attention"]
    assert found[0].op == "Mul"
    assert found[0].weights == ("w",)
    assert found[1].weights == ()
    assert [place.op for place in found if place.is_gate] == ["cbam_deploy.CbamGate"]
    assert found[3].weights == ("w0",)


def test_the_module_is_the_scope_around_the_node(model):
    key = "pkg.torch.onnx.name_scopes"
    scopes = ["['', 'layer1', 'layer1.0.conv2', 'conv2d_3']", "['', 'relu']", "no list", "[]"]
    for node, text in zip(model.graph, scopes, strict=False):
        node.metadata_props[key] = text
    assert [place.module for place in places(model)] == ["layer1.0.conv2", "", "", "", "", ""]


def test_a_place_reads_as_a_sentence(model):
    model.graph[0].metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'fc', 'linear']"
    assert str(places(model)[0]) == "Mul first of fc (value a, reading w)"
    assert str(places(model)[1]) == "Relu second (value b)"


@pytest.mark.parametrize(
    ("end", "good", "expected"),
    [
        ("gate", set(), {"a", "b", "gate"}),
        ("gate", {"a"}, {"b", "gate"}),
        ("y", {"gate"}, {"y", "d", "c", "a"}),
        ("y", {"gate", "c"}, {"y", "d"}),
        ("gate", {"b"}, {"gate"}),
    ],
)
def test_a_stretch_is_all_that_could_have_spoiled_its_end(model, end, good, expected):
    assert stretch(model, end, good) == expected
