"""Gates of maps [N, H, W, C], as Keras has them and tf2onnx writes them, are fused.

Convolutions stand between Transposes; pools are over axes 1 and 2, or over 3; Dense layers are
MatMul and Add.
"""

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import numpy_helper, parser
from torch.nn import functional as F

from cbam_deploy.exporters.gates.fusion import fuse_model

CHANNELS, HIDDEN, SIZE = 8, 3, 7
RANDOM = np.random.default_rng(5)
SHAPES = {
    "stem": (CHANNELS, 3, 3, 3),
    "head": (2, CHANNELS, 1, 1),
    "w0": (CHANNELS, HIDDEN),
    "b0": (HIDDEN,),
    "w1": (HIDDEN, CHANNELS),
    "b1": (CHANNELS,),
    "ws": (1, 2, SIZE, SIZE),
    "bs": (1,),
}
WEIGHTS = {name: RANDOM.normal(0, 0.4, s).astype(np.float32) for name, s in SHAPES.items()}
INTEGERS = {"positions": [1, 2], "last": [3], "column": [-1, 1, 1, CHANNELS]}
# The map behind the first convolution: with something between its Transpose and the gate, or not.
STEMS = {
    "relu": "c = Conv<pads = [1, 1, 1, 1]>(t, stem)  m = Transpose<perm = [0, 2, 3, 1]>(c)"
    "  x = Relu(m)",
    "bare": "c = Conv<pads = [1, 1, 1, 1]>(t, stem)  x = Transpose<perm = [0, 2, 3, 1]>(c)",
}
CHANNEL = """
    v = ReduceMean<keepdims = 0>(x, positions)  p = ReduceMax<keepdims = 0>(x, positions)
    va = MatMul(v, w0)  vb = Add(va, b0)  vc = Relu(vb)  vd = MatMul(vc, w1)  ve = Add(vd, b1)
    pa = MatMul(p, w0)  pb = Add(pa, b0)  pc = Relu(pb)  pd = MatMul(pc, w1)  pe = Add(pd, b1)
    z = Add(ve, pe)  s = Sigmoid(z)  ca = Reshape(s, column)  y1 = Mul(x, ca)
"""
SPATIAL = """
    q1 = ReduceMean<keepdims = 1>({x}, last)  q2 = ReduceMax<keepdims = 1>({x}, last)
    q = Concat<axis = 3>(q1, q2)  qt = Transpose<perm = [0, 3, 1, 2]>(q)
    l = Conv<auto_pad = "SAME_UPPER">(qt, ws, bs)  lt = Transpose<perm = [0, 2, 3, 1]>(l)
    sa = Sigmoid(lt)  y2 = Mul({x}, sa)
"""
GATES = {
    "channel": (CHANNEL, "y1", "SeGateMeanMax"),
    "spatial": (SPATIAL.format(x="x"), "y2", "SpatialGate"),
    "both": (CHANNEL + SPATIAL.format(x="y1"), "y2", "CbamGate"),
}
BEHIND = {
    "": "out = Identity({y})",
    "AddRelu": "sum = Add({y}, x)  out = Relu(sum)",
    "Add": "other = Abs(x)  out = Add({y}, other)",
}


def model(stem, gate, behind):
    lines, y, _ = GATES[gate]
    text = f"""<ir_version: 10, opset_import: ["" : 18]>
    g (float[N, H, W, 3] input) => (float[N, H, W, 2] output) {{
        t = Transpose<perm = [0, 3, 1, 2]>(input) {STEMS[stem]}
        {lines}
        {BEHIND[behind].format(y=y)}
        u = Transpose<perm = [0, 3, 1, 2]>(out)
        h = Conv(u, head)
        output = Transpose<perm = [0, 2, 3, 1]>(h)
    }}"""
    proto = parser.parse_model(text)
    arrays = WEIGHTS | {name: np.array(axes) for name, axes in INTEGERS.items()}
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in arrays.items() if name in used
    )
    onnx.checker.check_model(proto, full_check=True)
    return proto


def reference(stem, gate, behind, picture):
    """In float64, in PyTorch's layout."""
    w = {name: torch.from_numpy(array).double() for name, array in WEIGHTS.items()}
    x = F.conv2d(torch.from_numpy(picture).double().permute(0, 3, 1, 2), w["stem"], padding=1)
    x = y = F.relu(x) if stem == "relu" else x
    if gate != "spatial":
        vectors = y.mean((2, 3)), y.amax((2, 3))
        logits = sum(F.relu(v @ w["w0"] + w["b0"]) @ w["w1"] + w["b1"] for v in vectors)
        y = y * torch.sigmoid(logits)[:, :, None, None]
    if gate != "channel":
        described = torch.stack([y.mean(1), y.amax(1)], 1)
        y = y * torch.sigmoid(F.conv2d(described, w["ws"], w["bs"], padding=SIZE // 2))
    y = {"": y, "AddRelu": F.relu(y + x), "Add": y + x.abs()}[behind]
    return F.conv2d(y, w["head"]).permute(0, 2, 3, 1).numpy()


def run(proto, picture):
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"input": picture})[0]


@pytest.mark.parametrize(("stem", "gate", "behind"), list(itertools.product(STEMS, GATES, BEHIND)))
def test_gate_of_a_map_with_channels_last_is_fused(stem, gate, behind):
    source = model(stem, gate, behind)
    fused = ir.from_proto(source)
    report = fuse_model(fused)
    assert [op for _, op in report.fused] == [GATES[gate][2] + behind], report.refused
    proto = ir.to_proto(fused)
    onnx.checker.check_model(proto, full_check=True)
    picture = RANDOM.normal(size=(2, 6, 5, 3)).astype(np.float32)
    expected = reference(stem, gate, behind, picture)
    for found in (run(proto, picture), run(source, picture)):
        # Sums of some hundred terms with a relative error of 2^-24 each.
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_transposed_map_that_is_pooled_over_axis_1_is_a_map_of_its_own():
    """As in triplet attention: the rows of the picture are what is pooled."""
    source = model("bare", "spatial", "")
    for node in source.graph.node:
        if node.output[0] in ("q", "qt", "lt"):
            node.op_type = "Concat" if node.output[0] == "q" else "Identity"
            del node.attribute[:]
            if node.output[0] == "q":
                node.attribute.append(onnx.helper.make_attribute("axis", 1))
    axes = next(one for one in source.graph.initializer if one.name == "last")
    axes.CopyFrom(numpy_helper.from_array(np.array([1]), "last"))
    onnx.checker.check_model(source, full_check=True)
    fused = ir.from_proto(source)
    report = fuse_model(fused)
    assert [op for _, op in report.fused] == ["SpatialGate"], report.refused
    picture = RANDOM.normal(size=(2, 6, 5, 3)).astype(np.float32)
    expected = run(source, picture)
    found = run(ir.to_proto(fused), picture)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_pools_over_other_axes_are_left():
    source = model("relu", "channel", "")
    axes = next(one for one in source.graph.initializer if one.name == "positions")
    axes.CopyFrom(numpy_helper.from_array(np.array([1, 3]), "positions"))
    for node in source.graph.node:
        if node.op_type == "MatMul" and node.input[1] == "w0":
            node.input[1] = "narrow"
    narrow = RANDOM.normal(size=(5, HIDDEN)).astype(np.float32)
    source.graph.initializer.append(numpy_helper.from_array(narrow, "narrow"))
    report = fuse_model(ir.from_proto(source))
    assert report.fused == ()
    ((_, reason),) = report.refused
    assert reason == (
        "the channel part: a mean is over axes [1, 3] of [N, C, H, W], not over [2, 3]"
    )
