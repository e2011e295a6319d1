import io
import json
import random
from dataclasses import replace

import pytest

from cbam_deploy.benchmarking.result import Comparison, Verdict, read_report
from cbam_deploy.errors import BadInput
from cbam_deploy.report.json_file import write_json
from cbam_deploy.report.units import Estimate


@pytest.fixture
def measured(entry, report):
    return report(
        entry("base.onnx", peak_memory_bytes=5, peak_memory_of="process"),
        entry("new.onnx", relative=Estimate(1.1, 1.0, 1.2), settled=False),
        entry("pytorch", runtime="pytorch-cpu", sha256=None),
        relative_to="base.onnx",
        environment={"cpu": "A"},
        clocks_before={"cpu_mhz": [1.0]},
        clocks_after={"cpu_mhz": [2.0]},
        notes=("a note",),
    )


def test_a_report_is_read_back_as_it_was(measured, tmp_path):
    write_json(tmp_path / "bench.json", measured.to_json())
    assert read_report(tmp_path / "bench.json") == measured


def write_changed(tmp_path, measured, change):
    data = json.loads(json.dumps(measured.to_json()))
    change(data)
    path = tmp_path / "old.json"
    path.write_text(json.dumps(data))
    return path


CHANGES = {
    "another kind": lambda data: data.update(schema="cbam_deploy.parity"),
    "another version": lambda data: data.update(schema_version=99),
    "no entries": lambda data: data.pop("entries"),
    "entries of numbers": lambda data: data.update(entries=[1, 2]),
    "entries null": lambda data: data.update(entries=None),
    "missing median": lambda data: data["entries"][0].pop("median_seconds"),
    "negative median": lambda data: data["entries"][0].update(median_seconds=-1.0),
    "zero round": lambda data: data["entries"][0].update(round_seconds=[1.0, 0.0]),
    "infinite round": lambda data: data["entries"][0].update(round_seconds=[float("inf")]),
    "NaN round": lambda data: data["entries"][0].update(round_seconds=[float("nan")]),
    "huge round": lambda data: data["entries"][0].update(round_seconds=[10**400]),
    "true round": lambda data: data["entries"][0].update(round_seconds=[True]),
    "text round": lambda data: data["entries"][0].update(round_seconds=["1"]),
    "no rounds": lambda data: data["entries"][0].update(round_seconds=[]),
    "batch of text": lambda data: data["entries"][0].update(batch="1"),
    "batch 0": lambda data: data["entries"][0].update(batch=0),
    "hash of lists": lambda data: data["entries"][0].update(sha256=[1]),
    "unknown field": lambda data: data["entries"][0].update(surprise=1),
    "an entry twice": lambda data: data["entries"].append(data["entries"][0]),
    "baseline of lists": lambda data: data.update(relative_to=["base.onnx"]),
    "half an interval": lambda data: data["entries"][0]["images_per_second"].pop("low"),
    "environment of text": lambda data: data.update(environment="x"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_malformed_report_is_refused_by_name(measured, tmp_path, change):
    with pytest.raises(BadInput, match=r"old\.json"):
        read_report(write_changed(tmp_path, measured, change))


CONTENTS = {
    "empty": b"",
    "text": b"hello",
    "list": b"[]",
    "null": b"null",
    "binary": bytes(range(256)),
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
def test_what_is_no_report_is_refused_by_name(tmp_path, content):
    path = tmp_path / "old.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"old\.json"):
        read_report(path)


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_a_missing_file_or_a_folder_is_refused_by_name(tmp_path, name):
    with pytest.raises(BadInput, match="cannot be read"):
        read_report(tmp_path / name)


def damaged(data, dice):
    """`data` with one value somewhere in it replaced by another kind of value."""
    if isinstance(data, dict) and data and dice.random() < 0.9:
        key = dice.choice(sorted(data))
        return {**data, key: damaged(data[key], dice)}
    if isinstance(data, list) and data and dice.random() < 0.9:
        place = dice.randrange(len(data))
        return [*data[:place], damaged(data[place], dice), *data[place + 1 :]]
    return dice.choice([None, -1, 0, "x", [], {}, True, 1e400, [[]], {"a": 1}])


def test_any_damage_is_refused_or_harmless(measured, tmp_path):
    """A damaged report is refused as bad input, or compares without an error of another kind."""
    from cbam_deploy.benchmarking.comparison import compare_with_report

    dice = random.Random(0)
    path = tmp_path / "old.json"
    refused = 0
    new = replace(measured, entries=measured.entries[:2])
    for _ in range(150):
        path.write_text(json.dumps(damaged(measured.to_json(), dice)))
        try:
            compare_with_report(new, read_report(path), path, 0.05, seed=0)
        except BadInput:
            refused += 1
    assert refused > 50


def verdict(artefact, low, held):
    return Verdict(artefact, "onnxruntime-cpu", 8, Estimate(low + 0.01, low, low + 0.02), held)


def test_a_report_passes_unless_a_verdict_is_not_held(measured):
    held, slow = verdict("a.onnx", 1.0, True), verdict("b.onnx", 1.2, False)
    assert measured.passed
    assert replace(measured, comparison=Comparison("old.json", 0.05, (held,))).passed
    assert not replace(measured, comparison=Comparison("old.json", 0.05, (held, slow))).passed


def test_the_failure_names_the_worst_and_counts_the_others(measured):
    verdicts = (verdict("b.onnx", 1.2, False), verdict("c.onnx", 1.5, False))
    message, hint = replace(measured, comparison=Comparison("old.json", 0.05, verdicts)).failure()
    assert message == (
        "c.onnx (onnxruntime-cpu) at batch 8 against old.json: takes 1.510 times as long "
        "(95% interval 1.500 to 1.520), where 1.050 is allowed, and 1 more"
    )
    assert "--max-slowdown" in hint


@pytest.mark.parametrize("compared", [False, True])
def test_the_table_fits_80_columns_and_has_the_figures(measured, compared):
    from rich.console import Console

    if compared:
        verdicts = (verdict("new.onnx", 1.2, False),)
        comparison = Comparison("old.json", 0.05, verdicts, ("another machine",))
        measured = replace(measured, comparison=comparison)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(measured)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for word in ("base.onnx", "onnxruntime-cpu", "1,000", "±1.0%", "1.000 to 1.200", "a note"):
        assert word in text
    assert ("slower" in text and "another machine" in text) == compared


@pytest.mark.parametrize(("with_what", "tables"), [("old.json", 2), ("base.onnx", 1)])
def test_ratios_to_the_baseline_are_shown_once(measured, with_what, tables):
    from rich.console import Console

    comparison = Comparison(with_what, 0.05, (verdict("new.onnx", 1.0, True),))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(replace(measured, comparison=comparison))
    assert console.export_text().count("Time relative to") == tables


@pytest.mark.parametrize(
    ("low", "held", "bound", "outcome"),
    [
        (1.02, True, 0.05, "held"),
        (1.04, True, 0.05, "in doubt"),
        (1.06, False, 0.05, "slower"),
    ],
)
def test_a_verdict_says_what_is_known(low, held, bound, outcome):
    """The interval is 0.02 wide."""
    judged = verdict("a.onnx", low, held)
    assert Comparison("old.json", bound, (judged,)).outcome(judged) == outcome
