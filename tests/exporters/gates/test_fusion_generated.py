"""Any spelling of a gate, of any opset, is fused and computes the same; near misses are not."""

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spelled_gates import CHOICES, MISTAKES, Spelling, feeds, write

from cbam_deploy.exporters.gates.fusion import fuse_model

PLAIN = Spelling()
# What a choice needs to be itself.
NEEDS = {
    "window": {"fixed": "map"},
    "flatten_all": {"fixed": "all"},
    "expand_known": {"fixed": "all"},
    "conv": {"spatial_bias": "none"},
}
ONE_CHANGE = [
    dataclasses.replace(PLAIN, **{field: choice} | NEEDS.get(choice, {}))
    for field, choices in CHOICES.items()
    if field != "opset"
    for choice in choices
    if choice != getattr(PLAIN, field)
]
ONE_CHANGE += [
    dataclasses.replace(PLAIN, channel_peak="reshape", fixed="map"),
    dataclasses.replace(PLAIN, behind="add_relu", half=True),
    *(dataclasses.replace(PLAIN, behind="add_relu", residual=r) for r in ("map", "copy")),
    dataclasses.replace(PLAIN, behind="add_relu", residual="map", copied="both"),
]


def fuse(model):
    """The report, and the fused model."""
    fused = ir.from_proto(model)
    report = fuse_model(fused)
    proto = ir.to_proto(fused)
    onnx.checker.check_model(proto, full_check=True)
    return report, proto


def run(model, inputs):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, inputs)


def assert_same(model, fused, spelling):
    # FP32: some hundred terms with relative errors of 2^-24; FP16: some ten layers of 2^-11 each.
    tolerance = 10 * 2.0**-11 if spelling.half else 1e-5
    for sizes in ({}, {"batch": 1, "height": 3, "width": 9}):
        inputs = feeds(spelling, **sizes)
        for ours, theirs in zip(run(fused, inputs), run(model, inputs), strict=True):
            ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
            assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def assert_fused(spelling):
    model = write(spelling)
    report, fused = fuse(model)
    assert report.refused == ()
    assert [op for _, op in report.fused] == [spelling.op()]
    ops = [node.op_type for node in fused.graph.node]
    added = spelling.behind.startswith("add")
    expected = [
        "Neg",
        spelling.op(),
        *(["Identity"] if added and spelling.residual == "copy" else []),
        "Identity",
    ]
    assert sorted(ops) == sorted(expected)
    assert_same(model, fused, spelling)


@pytest.mark.parametrize("opset", CHOICES["opset"])
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_gate_of_any_opset_is_fused(opset, half):
    assert_fused(dataclasses.replace(PLAIN, opset=opset, half=half, behind="add_relu"))


def changes(spelling):
    values = dataclasses.asdict(spelling).items()
    return "-".join(f"{key}={value}" for key, value in values if value != getattr(PLAIN, key))


@pytest.mark.parametrize(
    "spelling",
    [dataclasses.replace(s, opset=opset) for s in ONE_CHANGE for opset in (11, 21)],
    ids=changes,
)
def test_other_spelling_is_fused(spelling):
    assert_fused(spelling)


@pytest.mark.parametrize(("mistake", "ops", "why"), [(m, *told) for m, told in MISTAKES.items()])
def test_near_miss_is_left_as_it_is_and_the_other_half_fused(mistake, ops, why):
    spelling = dataclasses.replace(PLAIN, mistake=mistake, behind="add_relu")
    model = write(spelling)
    report, fused = fuse(model)
    assert [op for _, op in report.fused] == ops
    ((_, reason),) = report.refused
    assert why in reason
    if mistake not in ("strided", "one_sided"):
        assert_same(model, fused, spelling)


@pytest.mark.parametrize(
    ("op", "opset", "inner"),
    [
        ("HardSwish", 14, "hard_swish"),
        ("Swish", 24, "silu"),
        ("Gelu", 20, "gelu"),
        ("LeakyRelu", 11, "leaky_relu"),
    ],
)
def test_activation_that_is_one_node_is_fused(op, opset, inner):
    spelling = dataclasses.replace(PLAIN, opset=opset, gate="se")
    model = write(spelling)
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type = op
    report, fused = fuse(model)
    assert [name for _, name in report.fused] == [
        dataclasses.replace(spelling, inner=f"{inner}:node").op()
    ]
    assert_same(model, fused, spelling)


spellings = st.builds(
    Spelling,
    **{field: st.sampled_from(choices) for field, choices in CHOICES.items()},
    mistake=st.none() | st.sampled_from(sorted(MISTAKES.keys() - {"strided"})),
)


@settings(
    max_examples=120,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(spellings)
def test_fused_or_refused_it_computes_the_same(spelling):
    if spelling.mistake is None:
        assert_fused(spelling)
        return
    model = write(spelling)
    _, fused = fuse(model)
    assert_same(model, fused, spelling)
