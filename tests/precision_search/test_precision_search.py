"""What is planted in a network is what a search keeps higher, and nothing else; trials are kept."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from planted_networks import write_network, write_pictures

from cbam_deploy import search_precision, validate
from cbam_deploy.errors import MissingCapability
from cbam_deploy.precision_search.evaluation import Evaluation
from cbam_deploy.report.html import write_page
from cbam_deploy.report.json_file import to_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    write_pictures(folder / "pictures.npy")
    write_network(folder / "overflows.onnx", overflows=(1, 4))
    write_network(folder / "outliers.onnx", outliers=(0, 2, 5))
    write_network(folder / "cancels.onnx", cancels=(3,))
    write_network(folder / "plain.onnx", channels=16)  # Fewer have no FP8 kernels.
    return folder


def search(folder, name, **options):
    return search_precision(
        folder / f"{name}.onnx",
        folder / f"{name}.found.onnx",
        data=str(folder / "pictures.npy"),
        cache=options.pop("cache", folder / "cache"),
        **options,
    )


@pytest.fixture(scope="module")
def outliers(folder):
    return search(folder, "outliers")


def noise_of(path, original, folder):
    x = np.load(folder / "pictures.npy")
    exact, actual = (
        onnxruntime.InferenceSession(str(file)).run(None, {"input": x})[0].astype(np.float64)
        for file in (original, path)
    )
    return ((actual - exact) ** 2).sum() / (exact**2).sum()


def higher(result):
    return {group.group: set(group.nodes) for group in result.kept}


def test_exactly_the_two_blocks_that_overflow_stay_in_fp32(folder):
    result = search(folder, "overflows", precision="fp16")
    assert higher(result) == {
        f"layer1.{i}": {f"node_a{i}", f"node_r{i}", f"node_b{i}"} for i in (1, 4)
    }
    assert {group.precision for group in result.kept} == {"fp32"}
    assert all("passes half of FP16's range" in group.reason for group in result.kept)
    assert result.passed


def test_a_block_whose_values_fp16_holds_but_not_their_difference_is_found_by_measuring(folder):
    result = search(folder, "cancels", precision="fp16")
    assert higher(result) == {"layer1.3": {"node_a3", "node_r3", "node_b3"}}
    (kept,) = result.kept
    assert (kept.precision, kept.steps, kept.reason) == ("fp32", ("fp16",), "")
    assert result.sensitivities[0].group == "layer1.3"


def test_bf16_takes_what_overflows_fp16_but_not_a_difference_of_large_values(folder):
    overflows = search(folder, "overflows", precision="bf16", max_drop=0.01)
    assert overflows.passed
    assert not overflows.kept
    cancels = search(folder, "cancels", precision="bf16", max_drop=0.01)
    assert higher(cancels) == {"layer1.3": {"node_a3", "node_r3", "node_b3"}}
    assert (cancels.kept[0].precision, cancels.kept[0].steps) == ("fp32", ("bf16",))


def test_what_is_kept_above_fp8_is_fp16_and_the_file_is_as_good_as_was_said(folder):
    result = search(folder, "plain", precision="fp8", max_drop=0.001)
    assert result.passed
    assert {(group.precision, group.steps) for group in result.kept} == {("fp16", ("fp8",))}
    path = result.conversion.path
    assert noise_of(path, folder / "plain.onnx", folder) == pytest.approx(1 - result.value, rel=0.1)


def test_exactly_the_three_blocks_that_int8_fails_in_are_named_with_their_convolutions(outliers):
    assert {group.group for group in outliers.kept} == {"layer1.0", "layer1.2", "layer1.5"}
    refused = {node for group in outliers.kept if "int8" in group.steps for node in group.nodes}
    assert refused == {"node_b0", "node_b2", "node_b5"}
    assert outliers.passed


def test_the_written_file_is_of_that_choice_and_as_good_as_was_said(outliers, folder):
    path = outliers.conversion.path
    graph = onnx.load(path).graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    floats = {
        node.name
        for node in graph.node
        if node.op_type == "Conv" and makers.get(node.input[1]) != "DequantizeLinear"
    }
    assert floats == {"node_b0", "node_b2", "node_b5"}
    noise = noise_of(path, folder / "outliers.onnx", folder)
    # ONNX Runtime rounds no FP16 on a CPU, which is little beside INT8's noise.
    assert outliers.value == pytest.approx(1 - noise, abs=0.1 * noise)
    assert validate(path, reference=str(folder / "outliers.onnx")).passed


def test_gates_are_units_of_their_own_and_no_group_was_left_out(outliers):
    gates = [one for one in outliers.sensitivities if one.gate]
    assert [(one.group, one.nodes) for one in gates] == [("layer1.5.gate", ("node_gated",))]
    names = {one.group for one in outliers.sensitivities if not one.gate}
    assert names >= {"stem", "fc", *(f"layer1.{i}" for i in range(6))}


def test_a_search_that_was_stopped_goes_on_from_its_trials(folder, tmp_path, monkeypatch):
    judge, calls = Evaluation.judge, []

    def interrupted(self, model, **options):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return judge(self, model, **options)

    monkeypatch.setattr(Evaluation, "judge", interrupted)
    cache = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        search(folder, "cancels", cache=cache, precision="fp16")
    result = search(folder, "cancels", cache=cache, precision="fp16")
    assert result.remembered == 4
    assert len(calls) == 5 + result.measured
    again = search(folder, "cancels", cache=cache, precision="fp16")
    assert (again.measured, again.remembered) == (0, 4 + result.measured)
    assert again.kept == result.kept
    assert search(folder, "overflows", cache=cache, precision="fp16").remembered == 0


def test_at_the_time_limit_the_best_file_so_far_is_written(folder):
    result = search(folder, "outliers", cache=folder / "fresh", time_limit=1e-6)
    assert not result.complete
    assert result.measured == 0
    assert result.passed
    assert onnx.load(result.conversion.path).graph.node
    assert any("time limit" in note for note in result.sections()[0].notes)
    assert not result.candidates
    assert {group.precision for group in result.kept} == {"fp32"}
    write_page(result, folder / "limit.html")


def test_choices_that_none_beats_are_those_that_no_other_beats_in_both(outliers):
    points = {(one.choice.operations, one.trial.value) for one in outliers.candidates}
    best = {(one.choice.operations, one.trial.value) for one in outliers.undominated}
    assert best == {
        (cost, value)
        for cost, value in points
        if not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points)
    }
    assert len(best) > 2


def test_the_page_and_json_name_modules_nodes_and_what_was_judged_by(outliers, tmp_path):
    pytest.importorskip("matplotlib")
    write_page(outliers, tmp_path / "search.html")
    page = (tmp_path / "search.html").read_text()
    for text in ("layer1.2", "node_b2", "output fidelity", "top-1 cannot judge", "<svg"):
        assert text in page
    data = json.loads(to_text(outliers.to_json()))
    assert {entry["group"] for entry in data["kept"]} == {"layer1.0", "layer1.2", "layer1.5"}
    assert sum(entry["undominated"] for entry in data["candidates"]) == len(outliers.undominated)


def test_no_choice_that_holds_is_shown_to_be_faster_than_that_of_the_file(folder, monkeypatch):
    monkeypatch.setattr("cbam_deploy.benchmarking.interleaving.ROUND_SECONDS", 0.001)
    monkeypatch.setattr("cbam_deploy.benchmarking.warm_up.CHUNK_SECONDS", 0.001)
    options = {"latency": True, "runtime": "onnxruntime", "seconds": 0.01}
    result = search(folder, "cancels", precision="fp16", **options)
    assert all(one.trial.relative is not None for one in result.candidates)
    holding = [one for one in result.candidates if one.holds]
    (own,) = (one.trial.relative for one in holding if one.choice == result.choice)
    assert all(own.low <= one.trial.relative.high for one in holding)
    fastest = min((one.trial.relative for one in holding), key=lambda relative: relative.value)
    fewer = (one for one in holding if one.choice.operations < result.choice.operations)
    assert all(one.trial.relative.low > fastest.high for one in fewer)
    assert result.runtime == "onnxruntime"


def test_bf16_is_not_timed_where_nothing_runs_it(folder):
    with pytest.raises(MissingCapability, match="no BF16 on CPUs"):
        search(folder, "plain", precision="bf16", latency=True, runtime="onnxruntime", seconds=0.01)


def test_a_trial_that_cannot_be_is_made_again(folder, tmp_path):
    options = {"precision": "fp16", "cache": tmp_path}
    first = search(folder, "plain", **options)
    for file in tmp_path.rglob("*.json"):
        file.write_text('{"value": 5.0, "noise": -3.0, "seconds": null, "relative": null}')
    again = search(folder, "plain", **options)
    assert (again.value, again.measured, again.remembered) == (first.value, first.measured, 0)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--runtime", "openvino"], "a runtime is for timing"),
        (["--metric", "top1"], "no labels"),
        (["--max-drop", "50"], "not between 0% and 100%"),
        (["--latency", "--runtime", "pytorch"], "runs no files"),
    ],
)
def test_what_cannot_work_is_refused(folder, cli, options, error):
    file, data = folder / "outliers.onnx", folder / "pictures.npy"
    ended = cli("search", file, "-o", folder / "no.onnx", "--data", data, *options)
    assert ended.code == 2
    assert error in ended.error
    assert not (folder / "no.onnx").exists()
