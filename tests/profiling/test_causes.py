"""Why INT8 is no faster is said only where it is not, and from the figures."""

from dataclasses import replace

import pytest

from cbam_deploy.profiling.causes import findings
from cbam_deploy.profiling.layers import Layer
from cbam_deploy.profiling.result import NetworkProfile, ProfileReport
from cbam_deploy.report.markdown import to_markdown


def layer(name, seconds, kind="product", precision="fp32", asked="", **facts):
    return Layer(name, name, facts.pop("module", ""), kind, precision, asked, seconds, **facts)


def network(name, precision, layers, run, runtime="onnxruntime-cpu"):
    rounds = tuple(run * (1 + 0.01 * (i % 3)) for i in range(12))
    return NetworkProfile(
        name, runtime, 1, None, precision, tuple(layers), run, 1.1 * run, rounds
    )  # fmt: skip


FULL = network("full.onnx", "fp32", [layer("conv", 10.0), layer("move", 0.1, "reorder")], 10.0)
SLOW = [
    layer("conv", 9.0, asked="int8"),
    layer("gate", 1.0, "gate", asked="int8"),
    layer("quantized", 2.0, precision="int8", asked="int8"),
    layer("dq", 5.0, "quantize", of_weights=True),
    layer("q", 1.0, "quantize"),
    layer("move", 0.2, "reorder"),
]


def test_faster_int8_needs_no_reason():
    assert findings([FULL, network("int8.onnx", "int8", SLOW, 5.0)]) == ()


def test_what_one_run_cannot_tell_is_not_claimed():
    noisy = replace(FULL, round_seconds=(2.0, 9.0) * 10)
    (said,) = findings([noisy, replace(noisy, artefact="int8.onnx", precision="int8",
                                       round_seconds=(9.0, 2.0) * 10)])  # fmt: skip
    assert said.startswith("INT8 is not shown to be faster than FP32 in onnxruntime-cpu")


def test_causes_are_named_by_their_share_the_largest_first():
    (said,) = findings([FULL, network("int8.onnx", "int8", SLOW, 18.0)])
    assert said.startswith("INT8 is no faster than FP32 in onnxruntime-cpu: int8.onnx takes 1.80")
    first, second = said.split("instead: ")[1].split("; ")
    assert first == (
        "1 convolutions and matrix products, 1 gates that the file puts in INT8 run in FP32 (55%)"
    )
    assert second.startswith("2 quantizations and dequantizations that were not absorbed, 1 of ")
    assert "reorders" not in said  # 0.6% of the time.


def test_where_no_layer_falls_back_the_sentence_says_that_it_does_not_know():
    quantized = [layer("conv", 10.0, precision="int8", asked="int8")]
    (said,) = findings([FULL, network("int8.onnx", "int8", quantized, 10.1)])
    assert said.endswith("none of them falls back or converts for long.")


def test_casts_are_a_cause_as_far_as_they_are_more_than_before():
    halves = [layer("conv", 10.0, precision="fp16", asked="fp16"), layer("cast", 1.0, "reorder")]
    (said,) = findings([FULL, network("half.onnx", "fp16", halves, 11.0)])
    assert "1 reorders and casts, where full.onnx has 1 (8%)" in said


@pytest.mark.parametrize(
    "others",
    [[], [network("full.onnx", "fp32", [], 1.0, "openvino-cpu")]],
    ids=["alone", "in-another-runtime"],
)
def test_nothing_is_said_without_fp32_in_the_same_runtime(others):
    assert findings([*others, network("int8.onnx", "int8", SLOW, 18.0)]) == ()


def test_the_sentence_stands_at_the_top_and_modules_side_by_side():
    full = [layer("conv", 1.0, module="stem"), layer("only_here", 0.5)]
    low = [layer("conv", 1.5, module="stem"), layer("dq", 0.5, "quantize", module="stem")]
    report = ProfileReport(
        (network("full.onnx", "fp32", full, 1.5), network("int8.onnx", "int8", low, 2.5))
    )
    text = to_markdown("Profile", report.sections())
    assert text.index("INT8 is no faster") < text.index("| artefact")
    rows = text[text.index("## Side by side") :].splitlines()
    assert "| stem | 1,000 | 2,000 | +1,000 |" in rows
    assert "| only\\_here | 500.0 | – | −500.0 |" in rows


def test_layers_that_add_up_to_more_than_a_run_are_remarked():
    for total, remark in (
        (1.5, "150% of a run, runs with the profiler"),
        (0.5, "50% of a run, the rest"),
    ):
        report = ProfileReport((network("a.onnx", "fp32", [layer("conv", total)], 1.0),))
        assert any(remark in note for note in report.sections()[0].notes)
    exact = ProfileReport((network("a.onnx", "fp32", [layer("conv", 0.97)], 1.0),))
    assert exact.sections()[0].notes == ()


def test_what_is_not_shown_is_counted_and_summed():
    layers = [layer(f"conv{index}", 1.0 + index) for index in range(4)]
    report = ProfileReport((network("a.onnx", "fp32", layers, 10.0),), top=2)
    rows = report.sections()[1].tables[0].rows
    assert [row[0] for row in rows] == ["conv3", "conv2", "(2 more)"]
    assert [row[-1] for row in rows] == ["40.0%", "70.0%", "100.0%"]
