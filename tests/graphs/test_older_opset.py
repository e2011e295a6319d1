"""A graph in the words of an older opset computes the same, or is refused by the node at fault."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from cbam_deploy.errors import BadInput
from cbam_deploy.graphs.older_opset import lower_opset

NET = """<ir_version: 8, opset_import: ["" : 18]>
net (float[1, 4, 6] x) => (float[A, B, C] y) <int64[1] last = {2}, int64[1] first = {0}> {
    r = Relu(x)
    a, b = Split<axis = 1, num_outputs = 2>(r)
    m = ReduceMean<keepdims = 0, noop_with_empty_axes = 0>(a, last)
    u = Unsqueeze(m, last)
    s = Add(u, b)
    q = ReduceMax(s)
    z = Unsqueeze(q, first)
    y = Mul(s, z)
}"""


def result(model, x):
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    return onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]


@pytest.mark.parametrize("version", [11, 13, 17])
def test_it_computes_the_same_in_older_words(version):
    x = np.random.default_rng(0).standard_normal((1, 4, 6)).astype(np.float32)
    model = ir.from_onnx_text(NET)
    expected = result(model, x)
    lower_opset(model, version)
    assert model.opset_imports[""] == version
    np.testing.assert_array_equal(result(model, x), expected)


def test_a_resize_without_a_region_gets_an_empty_one():
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["" : 18]>
        net (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y)
        <float[4] scales = {1.0, 1.0, 2.0, 2.0}> {
            y = Resize<mode = "nearest", antialias = 0>(x, , scales)
        }"""
    )
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    lower_opset(model, 11)
    np.testing.assert_array_equal(result(model, x), x.repeat(2, 2).repeat(2, 3))


@pytest.mark.parametrize(
    ("node", "version", "reason"),
    [
        ("Mish(x)", 17, "there is no Mish"),
        ("ReduceMean(x, axes)", 17, "axes are no input"),
        ("Pad(x, axes, , axes)", 17, "Pad takes 3 inputs"),
        ("ReduceMax<noop_with_empty_axes = 1>(x)", 17, "ReduceMax has no noop_with_empty_axes"),
    ],
)
def test_what_has_no_older_words_is_refused(node, version, reason):
    model = ir.from_onnx_text(
        f"""<ir_version: 8, opset_import: ["" : 18]>
        net (float[1, 4] x, int64[N] axes) => (y) {{ y = {node} }}"""
    )
    with pytest.raises(BadInput, match=reason) as refused:
        lower_opset(model, version)
    assert "--opset" in refused.value.hint
