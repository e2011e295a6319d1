import numpy as np
import pytest

from cbam_deploy.benchmarking.comparison import compare_with_baseline, compare_with_report
from cbam_deploy.errors import BadInput
from cbam_deploy.report.units import Estimate


def noisy(median, spread=0.02, rounds=20, seed=0):
    """Durations per round around `median`, with a log-normal spread."""
    return median * np.exp(np.random.default_rng(seed).normal(0, spread, rounds))


def verdict_of(new, old, max_slowdown=0.05):
    comparison = compare_with_report(new, old, "old.json", max_slowdown, seed=0)
    (verdict,) = comparison.verdicts
    return verdict


def test_slower_beyond_doubt_fails(entry, report):
    new, old = (report(entry(rounds=noisy(t, seed=s))) for t, s in ((1.10, 1), (1.0, 2)))
    verdict = verdict_of(new, old)
    assert verdict.ratio.value == pytest.approx(1.10, rel=0.02)
    assert verdict.ratio.low > 1.05
    assert not verdict.held


def test_slower_within_doubt_is_held(entry, report):
    """Ten percent slower on the face of it, but the rounds scatter by half."""
    new, old = (report(entry(rounds=noisy(t, 0.5, seed=s))) for t, s in ((1.2, 1), (1.0, 2)))
    verdict = verdict_of(new, old)
    assert verdict.ratio.value > 1.05 > verdict.ratio.low
    assert verdict.held


def test_an_interval_that_begins_at_the_bound_is_held(entry, report):
    new, old = report(entry(rounds=[1.05] * 10)), report(entry(rounds=[1.0] * 10))
    assert verdict_of(new, old, 0.05).held
    assert not verdict_of(new, old, 0.0499).held


def test_faster_is_held(entry, report):
    new, old = report(entry(rounds=noisy(0.5))), report(entry(rounds=noisy(1.0)))
    assert verdict_of(new, old).held


def test_the_same_truth_seldom_fails_without_any_slowdown_allowed(entry, report):
    """One-sided 2.5% by the interval's promise; 100 runs, so at most 8 but for one in 300."""
    failed = 0
    for seed in range(100):
        new = report(entry(rounds=noisy(1.0, seed=2 * seed)))
        old = report(entry(rounds=noisy(1.0, seed=2 * seed + 1)))
        failed += not verdict_of(new, old, max_slowdown=0.0).held
    assert failed <= 8


def with_baseline(entry, report, machine, ratio, seed=0, **fields):
    """A run on a machine that takes `machine` seconds for the baseline, drifting as it goes."""
    drift = machine * np.linspace(1.0, 1.5, 20)
    return report(
        entry("base.onnx", rounds=drift * noisy(1.0, 0.005, seed=seed)),
        entry(rounds=drift * noisy(ratio, 0.005, seed=seed + 1), relative=Estimate(1, 0.9, 1.1)),
        relative_to="base.onnx",
        **fields,
    )


def test_relative_to_a_baseline_another_machine_is_no_slowdown(entry, report):
    old = with_baseline(entry, report, machine=1.0, ratio=1.2)
    new = with_baseline(entry, report, machine=3.0, ratio=1.2, seed=10)
    verdict = verdict_of(new, old, 0.02)
    assert verdict.artefact == "new.onnx"
    assert verdict.ratio.value == pytest.approx(1.0, abs=0.01)
    assert verdict.held


def test_relative_to_a_baseline_a_slower_artefact_is_found_on_a_faster_machine(entry, report):
    old = with_baseline(entry, report, machine=3.0, ratio=1.2)
    new = with_baseline(entry, report, machine=1.0, ratio=1.32, seed=10)
    verdict = verdict_of(new, old, 0.05)
    assert verdict.ratio.value == pytest.approx(1.1, rel=0.01)
    assert not verdict.held


def test_a_run_without_baseline_compares_absolute_times_with_one_that_has_it(entry, report):
    old = with_baseline(entry, report, machine=1.0, ratio=1.0)
    new = report(entry(rounds=2 * np.array(old.entries[1].round_seconds)))
    assert verdict_of(new, old).ratio.value == pytest.approx(2.0)


@pytest.mark.parametrize("baseline", [None, "other.onnx"])
def test_relative_times_are_not_compared_with_those_of_another_baseline(entry, report, baseline):
    new = with_baseline(entry, report, machine=1.0, ratio=1.0)
    old = report(entry(), entry("other.onnx"), relative_to=baseline)
    with pytest.raises(BadInput, match=r"old\.json.*base\.onnx"):
        compare_with_report(new, old, "old.json", 0.05, seed=0)


def test_entries_are_matched_by_artefact_runtime_and_batch(entry, report):
    old = report(
        entry("a.onnx", 1, [1.0] * 10),
        entry("a.onnx", 8, [8.0] * 10),
        entry("a.onnx", 1, [3.0] * 10, runtime="onnxruntime-cuda"),
        entry("b.onnx", 1, [5.0] * 10),
    )
    new = report(*reversed(old.entries))
    comparison = compare_with_report(new, old, "old.json", 0.0, seed=0)
    assert [verdict.ratio.value for verdict in comparison.verdicts] == [1.0] * 4


def test_entries_without_counterpart_are_named(entry, report):
    new, old = report(entry(), entry("fresh.onnx")), report(entry(), entry("gone.onnx", batch=4))
    notes = " / ".join(compare_with_report(new, old, "old.json", 0.05, seed=0).notes)
    assert "fresh.onnx (onnxruntime-cpu) at batch 1 is not in old.json" in notes
    assert "gone.onnx (onnxruntime-cpu) at batch 4 of old.json was not measured" in notes


def test_reports_with_nothing_in_common_are_refused(entry, report):
    with pytest.raises(BadInput, match=r"old\.json.*other\.onnx"):
        compare_with_report(report(entry()), report(entry("other.onnx")), "old.json", 0.05, seed=0)


def test_another_environment_is_noted(entry, report):
    here = {"cpu": "A", "gpus": [{"compute_capability": (8, 9)}]}
    there = {"cpu": "B", "gpus": [{"compute_capability": [8, 9]}]}
    new, old = report(entry(), environment=here), report(entry(), environment=there)
    (note,) = compare_with_report(new, old, "old.json", 0.05, seed=0).notes
    assert "differs in cpu;" in note


def test_another_baseline_file_of_the_same_name_is_noted(entry, report):
    new = report(entry("base.onnx", sha256="1"), entry(), relative_to="base.onnx")
    old = report(entry("base.onnx", sha256="2"), entry(), relative_to="base.onnx")
    (note,) = compare_with_report(new, old, "old.json", 0.05, seed=0).notes
    assert note == "base.onnx is not the same file as in old.json"


def test_the_baseline_of_the_same_run_is_compared_without_an_earlier_report(entry, report):
    slow, fine = Estimate(1.2, 1.1, 1.3), Estimate(1.2, 1.04, 1.3)
    measured = report(
        entry("base.onnx"),
        entry("slow.onnx", relative=slow),
        entry("fine.onnx", relative=fine),
        relative_to="base.onnx",
    )
    comparison = compare_with_baseline(measured, 0.05)
    held = {verdict.artefact: verdict.held for verdict in comparison.verdicts}
    assert held == {"slow.onnx": False, "fine.onnx": True}


def test_the_pytorch_model_is_never_judged(entry, report):
    slow = Estimate(2.0, 1.9, 2.1)
    torch = entry("pytorch", runtime="pytorch-cpu", rounds=[2.0] * 10, relative=slow)
    new = report(entry("base.onnx"), torch, relative_to="base.onnx")
    assert compare_with_baseline(new, 0.05).verdicts == ()
    now = report(entry(), entry("pytorch", runtime="pytorch-cpu", rounds=[2.0] * 10))
    then = report(entry(), entry("pytorch", runtime="pytorch-cpu", rounds=[1.0] * 10))
    assert verdict_of(now, then).artefact == "new.onnx"
