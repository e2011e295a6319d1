"""``make gpu-check`` without a GPU: everything but launches and timing, and how it reports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from gpu_check_jobs import ROOT, outcome_of

from benchmarks.gpu_check import __main__, process, report
from benchmarks.gpu_check.job import (
    DRY,
    ERROR,
    FAILED,
    INCOMPLETE,
    PASSED,
    RUNNING,
    SKIPPED,
    Failed,
    Job,
    Options,
    Outcome,
    Skipped,
)
from benchmarks.gpu_check.parts import INNER, PARTS, TOTAL_SECONDS, part_called
from benchmarks.gpu_check.table import markdown
from benchmarks.gpu_check.targets import judged

IDENTIFYING = {"case", "map", "dtype", "layout", "batch", "network", "tool", "file", "plan"}
BARE = """
import runpy, sys
for name in ("onnx", "onnxruntime", "onnx_ir", "onnxscript", "typer", "rich", "polygraphy",
             "jinja2", "safetensors", "matplotlib", "PIL", "sklearn", "hypothesis", "msgspec",
             "lazy_loader"):
    sys.modules[name] = None
sys.argv = ["gpu_check", *sys.argv[1:]]
runpy.run_module("benchmarks.gpu_check", run_name="__main__")
"""


def test_dry_run_does_all_but_launching_with_torch_and_numpy_alone(tmp_path, pytestconfig):
    pytest.importorskip("cuda.bindings.nvrtc", reason="needs the extra kernels")
    kernels = str(pytestconfig.cache.mkdir("kernels"))
    environment = {**os.environ, "XDG_CACHE_HOME": kernels, "OMP_NUM_THREADS": "1"}
    parts = [part.name for part in PARTS if part.name != "operators"]  # collects with pytest
    only = [argument for name in parts for argument in ("--only", name)]
    arguments = ["--dry-run", "--every", "400", "--output", str(tmp_path), *only]
    done = subprocess.run(
        [sys.executable, "-c", BARE, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Dry run: no kernel was launched and nothing was timed." in done.stdout
    json_file, markdown_file = sorted(tmp_path.iterdir())
    assert json_file.name.startswith("gpu-dry-run-")
    assert markdown_file.read_text().strip() == done.stdout.strip()
    found = json.loads(json_file.read_text())
    assert found["dry_run"] is True
    assert found["gpu"] is found["clocks_before"] is found["clocks_after"] is None
    assert [part["name"] for part in found["parts"]] == parts
    for part in found["parts"]:
        assert (part["status"], part["seconds"]) == (DRY, None), part
        for row in part["rows"]:
            assert row.keys() <= IDENTIFYING, "a dry run has no figures"
    rows = {part["name"]: part["rows"] for part in found["parts"]}
    expected = ("correctness", "gates", "candidates", "phases", "compiled", "warm")
    assert all(rows[name] for name in expected)


def test_without_a_gpu_the_check_says_so_and_exits_with_3(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "gpus", lambda: ())
    assert __main__.main(["--output", str(tmp_path)]) == 3
    assert "--dry-run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_parts_fit_into_ten_minutes_and_what_is_right_comes_first():
    assert sum(part.seconds for part in PARTS) <= TOTAL_SECONDS
    assert TOTAL_SECONDS + process.GRACE_SECONDS <= 9.7 * 60
    assert PARTS[0].name == "correctness"
    assert PARTS[0].seconds + process.GRACE_SECONDS <= 2 * 60
    assert [part_called(part.name) for part in (*PARTS, *INNER)] == [*PARTS, *INNER]


def passes(job):
    job.row(value=1)


def fails(job):
    raise Failed("2 of 3 differ")


def breaks(job):
    job.note("began")
    raise ZeroDivisionError("oops")


def lacks(job):
    raise Skipped("no such tool")


@pytest.mark.parametrize(
    ("run", "status", "reason"),
    [
        (passes, PASSED, ""),
        (fails, FAILED, "2 of 3 differ"),
        (breaks, ERROR, "ZeroDivisionError: oops"),
        (lacks, SKIPPED, "no such tool"),
    ],
)
def test_how_a_part_ends_is_recorded(run, status, reason, tmp_path, capsys):
    found = outcome_of(run, tmp_path)
    assert (found.status, found.reason) == (status, reason)


def test_a_part_that_runs_out_of_time_is_incomplete(tmp_path):
    def run(job):
        for number in job.in_time(range(5)):
            job.row(number=number)
            job.seconds = -1.0

    found = outcome_of(run, tmp_path)
    assert (found.status, found.reason) == (INCOMPLETE, "time ran out after 1 of 5")
    assert len(found.rows) == 1


def script(code):
    """A command for a part's process: python code that finds the rows' file in `file`."""

    def command(part, file, options, seconds):
        return [sys.executable, "-c", f"file = {str(file)!r}\n{code}"]

    return command


ROW = "open(file, 'a').write('{\"row\": {\"n\": 1}}' + chr(10))\n"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (ROW + "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        (ROW + "raise SystemExit(5)", "exit code 5"),
        (ROW + "import time; time.sleep(60)", "ended by force"),
    ],
)
def test_what_a_lost_process_had_found_is_kept(code, words, monkeypatch, capsys):
    monkeypatch.setattr(process, "command_of", script(code))
    began = time.monotonic()
    found = process.run_in_process("part", Options(), seconds=0.5, limit=1.0)
    assert time.monotonic() - began < 30
    assert found.status == ERROR
    assert words in found.reason
    assert found.rows == ({"n": 1},)


def test_what_was_found_is_recorded_while_a_part_runs(monkeypatch):
    half = ROW + "open(file, 'a').write('{\"row\": {')\nimport time; time.sleep(60)"
    monkeypatch.setattr(process, "command_of", script(half))
    monkeypatch.setattr(process, "LOOK_SECONDS", 0.3)
    seen: list[Outcome] = []
    process.run_in_process("part", Options(), seconds=0.5, limit=2.0, look=seen.append)
    assert (seen[-1].status, seen[-1].rows) == (RUNNING, ({"n": 1},))


def test_the_record_is_written_after_every_part_and_meanwhile(tmp_path, monkeypatch, capsys):
    written = []

    def run(name, options, seconds, limit, look=None):
        if look is not None:
            look(Outcome(name, RUNNING, "", 1.0, (), ({"map": "m"},)))
        return Outcome(name, PASSED, "", 1.0, (), ())

    def kept(found, folder):
        written.append([(part["name"], part["status"]) for part in found["parts"]])

    monkeypatch.setattr(report, "run_in_process", run)
    monkeypatch.setattr(report, "write", kept)
    monkeypatch.setattr(report, "gpus", lambda: (SimpleNamespace(name="NVIDIA H100"),))
    report.check([part_called("gates"), part_called("warm")], Options(), "c", tmp_path)
    assert written[:4] == [
        [("gates", RUNNING)],
        [("gates", PASSED)],
        [("gates", PASSED), ("warm", RUNNING)],
        [("gates", PASSED), ("warm", PASSED)],
    ]


def test_the_processes_of_a_part_share_its_cases(tmp_path, monkeypatch, capsys):
    given = []

    def run(name, options, seconds, limit):
        given.append(options.share)
        wrong = options.share[0] == 3
        rows = tuple({"n": n} for n in Job(tmp_path / "r", options, 1.0).each(range(30)))
        return Outcome(name, FAILED if wrong else PASSED, "why" * wrong, 1.0, ("note",), rows)

    monkeypatch.setattr(report, "run_in_process", run)
    (found,) = report.run_parts([part_called("correctness")], Options())
    assert sorted(given) == [(number, 12) for number in range(12)]
    assert (found.status, found.reason, found.notes) == (FAILED, "why", ("note",))
    assert sorted(row["n"] for row in found.rows) == list(range(30))


def test_ending_a_part_ends_what_it_started(tmp_path, monkeypatch, capsys):
    child = tmp_path / "child"
    code = (
        "import subprocess, time\n"
        f"p = subprocess.Popen(['sleep', '60']); open({str(child)!r}, 'w').write(str(p.pid))\n"
        "time.sleep(60)"
    )
    monkeypatch.setattr(process, "command_of", script(code))
    process.run_in_process("part", Options(), seconds=1.0, limit=1.5)
    for _ in range(100):
        status = Path(f"/proc/{child.read_text()}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    os.kill(int(child.read_text()), signal.SIGKILL)
    pytest.fail("it still runs")


def test_a_failing_part_does_not_stop_the_others(monkeypatch, capsys):
    statuses = {"kernels": ERROR, "warm": PASSED, "gates": FAILED}
    ran = []

    def run(name, options, seconds, limit, look=None):
        ran.append(name)
        return Outcome(name, statuses.get(name, SKIPPED), "why", 1.0, (), ())

    monkeypatch.setattr(report, "run_in_process", run)
    outcomes = report.run_parts(PARTS, Options())
    assert ran[11:] == [part.name for part in PARTS] == [outcome.name for outcome in outcomes]


def test_parts_get_no_more_time_than_is_left(monkeypatch, capsys):
    given = []

    def run(name, options, seconds, limit, look=None):
        given.append((seconds, limit))
        return Outcome(name, PASSED, "", 1.0, (), ())

    monkeypatch.setattr(report, "run_in_process", run)
    report.run_parts(PARTS, Options(), total_seconds=20.0)
    assert all(seconds <= 20 and limit <= 20 for seconds, limit in given)
    del given[:]
    report.run_parts(PARTS, Options())
    shares, given = [part.seconds for part in PARTS], given[11:]
    spare = TOTAL_SECONDS - sum(shares)
    assert given[0][0] == pytest.approx(shares[0] + spare, abs=1)
    assert given[3][0] == pytest.approx(sum(shares[:4]) + spare, abs=1), "what others left over"
    assert report.run_parts(PARTS, Options(), total_seconds=0.0)[0].reason == "no time was left"


def reported(dry_run=False, **statuses):
    """A report with these statuses; the figures in it are made up."""
    rows = {
        "correctness": [
            {"case": "a", "agrees": True, "problem": "", "largest_error_over_bound": 0.5}
        ],
        "gates": [{"map": "m", "dtype": "d", "batch": 8, "gate_us": 12.345, "gb_s": 4000.4}],
    }
    parts = [
        {
            "name": part.name,
            "status": statuses.get(part.name, PASSED),
            "reason": "a | b" if part.name in statuses else "",
            "seconds": 1.0,
            "notes": ["Said of it."],
            "rows": rows.get(part.name, []),
        }
        for part in PARTS
    ]
    return {
        "dry_run": dry_run,
        "gpu": "NVIDIA H200",
        "date": "2026-11-22",
        "command": "python -m benchmarks.gpu_check",
        "environment": {
            "cpu": "c",
            "cores": 2,
            "os": "o",
            "driver": "d",
            "python": "p",
            "packages": {},
        },
        "clocks_before": {"gpu_sm_mhz": [345.0], "gpu_memory_mhz": [3201.0]},
        "clocks_after": {"gpu_sm_mhz": [1980.0], "gpu_memory_mhz": [3201.0]},
        "parts": parts,
    }


@pytest.mark.parametrize(
    ("statuses", "correct"),
    [
        ({}, True),
        ({"gates": ERROR, "kernels": INCOMPLETE, "sanitizer": SKIPPED}, True),
        ({"correctness": FAILED}, False),
        ({"correctness": ERROR}, False),
        ({"correctness": INCOMPLETE}, False),
        ({"sanitizer": FAILED}, False),
        ({"networks": FAILED}, False),
    ],
)
def test_only_wrong_or_unchecked_results_make_it_exit_with_1(statuses, correct):
    assert report.is_correct(reported(**statuses), PARTS) is correct


def test_report_is_written_under_the_gpus_name(tmp_path):
    files = report.write(reported(gates=ERROR), tmp_path / "new")
    assert [file.name for file in files] == [
        "gpu-h200-2026-11-22.json",
        "gpu-h200-2026-11-22.md",
    ]
    text = files[1].read_text()
    assert "| gates | error | a \\| b |" in text
    assert "| m | d | 8 | 12.3 | 4000 |" in text
    assert "1 of 1 cases agree with the float64 reference" in text
    assert "SM 345 and memory 3201 MHz before, SM 1980 and memory 3201 MHz after" in text
    assert "Dry run" not in text
    assert "Dry run" in markdown(reported(dry_run=True))


def with_rows(**rows):
    found = reported()
    for part in found["parts"]:
        part["rows"] = rows.get(part["name"], part["rows"])
    return found


def test_targets_are_judged_by_their_worst_figure():
    gate = {"map": "256x56x56", "dtype": "float16", "layout": "nhwc"}
    small = {**gate, "map": "2048x7x7"}
    found = with_rows(
        gates=[
            {**gate, "batch": 32, "percent_of_add": 95.0},
            {**gate, "dtype": "int8", "batch": 128, "percent_of_add": 91.0},
            {**gate, "batch": 1, "percent_of_add": 10.0, "over_add_less_empty": 2.0},
            {**small, "batch": 1, "percent_of_add": 10.0, "over_add_less_empty": 1.5},
            {**small, "batch": 32, "percent_of_add": 50.0},
            {**gate, "layout": "nchw", "batch": 32, "percent_of_add": 50.0},
            {**gate, "dtype": "float32", "batch": 32, "percent_of_add": 50.0},
            {**gate, "batch": 32, "problem": "no memory"},
        ],
        compiled=[
            {**gate, "fits_l2": "yes", "compiled_over_gate": 1.1},
            {**gate, "fits_l2": "no", "compiled_over_gate": 1.5},
        ],
        networks=[{"network": "unfused", "over_plain": 3.0}],
    )
    bandwidth, latency, compiled, beyond_l2, network = judged(found)
    assert bandwidth == {**bandwidth, "worst": 91.0, "of": 2, "met": "no, in 1 of 2"}
    assert latency == {**latency, "worst": 2.0, "of": 2, "met": "yes"}
    assert compiled == {**compiled, "worst": 1.1, "of": 2, "met": "yes"}
    assert beyond_l2 == {**beyond_l2, "worst": 1.5, "of": 1, "met": "no, in 0 of 1"}
    assert network == {**network, "worst": None, "of": 0, "met": "not measured"}
    assert "at most 2.0 times as long as that addition" in markdown(found)


def test_without_figures_there_are_no_targets():
    found = reported(dry_run=True)
    for part in found["parts"]:
        part["rows"] = []
    assert "Targets" not in markdown(found)


def test_later_findings_extend_a_row(tmp_path):
    def run(job):
        first, second = job.row(n=1), job.row(n=2)
        job.extend(first, ratio=3.0)
        assert (first, second) == (0, 1)

    assert outcome_of(run, tmp_path).rows == ({"n": 1, "ratio": 3.0}, {"n": 2})
