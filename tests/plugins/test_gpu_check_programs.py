"""The parts of `benchmarks.gpu_check` that start other programs, with scripts in their place."""

from __future__ import annotations

import json
import subprocess

import pytest
from gpu_check_jobs import outcome_of

from benchmarks.gpu_check import counters, operators, sanitizer
from benchmarks.gpu_check.job import ERROR, FAILED, PASSED, SKIPPED


@pytest.mark.parametrize(
    ("code", "end", "status"),
    [
        (0, PASSED, PASSED),
        (86, PASSED, FAILED),
        (1, ERROR, FAILED),
    ],
)
def test_what_the_sanitizer_finds_fails_the_part(code, end, status, tmp_path, monkeypatch):
    fake = tmp_path / "compute-sanitizer"
    line = json.dumps({"end": end, "reason": "r"})
    fake.write_text(
        "#!/bin/sh\n"
        'while [ "$1" != --file ]; do shift; done\n'
        f"echo '{line}' >> $2\n"
        f"echo '========= ERROR SUMMARY: 3 errors'\nexit {code}\n"
    )
    fake.chmod(0o755)
    monkeypatch.setattr(sanitizer, "find_program", lambda name: str(fake))
    found = outcome_of(sanitizer.run, tmp_path)
    assert found.status == status, found
    assert [row["tool"] for row in found.rows] == ["memcheck", "racecheck", "synccheck"]
    if code == 86:
        assert "memcheck: ERROR SUMMARY: 3 errors" in found.reason


def test_without_a_sanitizer_its_part_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(sanitizer, "find_program", lambda name: None)
    assert outcome_of(sanitizer.run, tmp_path).status == SKIPPED


COUNTED = """==PROF== Connected to process 1
"ID","Kernel Name","gpu__time_duration.sum","dram__bytes_read.sum","launch__registers_per_thread"
"","","nsecond","byte","register/thread"
"0","cbam_gate_add_relu_1(const __half *)","57,344","102,760,448","96"
"1","cbam_gate_add_relu_2(const __half *)","28,000","51,380,224","90"
"""


def test_counters_are_read_from_what_ncu_prints():
    first, second = counters.counted_rows(COUNTED)
    assert first == {
        "kernel": "cbam_gate_add_relu_1",
        "ns": 57344.0,
        "memory_bytes_read": 102760448.0,
        "registers": 96.0,
    }
    assert second["ns"] == 28000.0


@pytest.mark.parametrize(("text", "status"), [(COUNTED, PASSED), ("==ERROR== no access", SKIPPED)])
def test_where_ncu_counts_nothing_its_part_is_skipped(text, status, tmp_path, monkeypatch):
    fake = tmp_path / "ncu"
    fake.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
    fake.chmod(0o755)
    monkeypatch.setattr(counters, "find_program", lambda name: str(fake))
    found = outcome_of(counters.run, tmp_path)
    assert found.status == status, found
    assert len(found.rows) == (2 if status == PASSED else 0)
    assert status == PASSED or "no access" in found.reason


@pytest.mark.parametrize(
    ("code", "output", "status"),
    [
        (0, "12 passed in 3 s", PASSED),
        (1, "FAILED tests/gpu/a.py::test_b - assert 1 == 2\n1 failed, 2 passed", FAILED),
        (2, "ERROR collecting", ERROR),
    ],
)
def test_failing_gpu_tests_fail_the_operators_part(code, output, status, tmp_path, monkeypatch):
    done = subprocess.CompletedProcess([], code, output, "")
    monkeypatch.setattr(operators.subprocess, "run", lambda *_, **__: done)
    found = outcome_of(operators.run, tmp_path)
    assert found.status == status
    if status == FAILED:
        assert found.rows == ({"test": "tests/gpu/a.py::test_b", "problem": "assert 1 == 2"},)
