"""The study of other tools keeps their words, also when they take the process down."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.interop.__main__ import Outcome, Study, given_to
from benchmarks.interop.files import File
from benchmarks.interop.page import page
from benchmarks.interop.tools import Tool

TOOL = Tool("A tool", "a-tool", "tool", ("a-tool",))
FAKE = """
import json, os, sys
import numpy as np
for task in json.load(open(sys.argv[2])):
    name = os.path.basename(task["model"])
    if name.startswith("b"):
        sys.stderr.write("cannot read it\\n")
        sys.stderr.flush()
        os._exit(7)
    if name.startswith("a"):
        np.savez(task["output"] + ".npz", y=np.array([[1.0, 2.0]], np.float32))
    with open(sys.argv[3], "a") as file:
        refusal = "no such gate" if name.startswith("c") else None
        file.write(json.dumps({"model": task["model"], "refusal": refusal}) + "\\n")
"""


@pytest.fixture
def files(tmp_path):
    np.savez(tmp_path / "feeds.npz", x=np.zeros(1))
    np.savez(tmp_path / "expected.npz", y=np.array([[1.0, 2.5]], np.float32))
    feeds, expected = tmp_path / "feeds.npz", tmp_path / "expected.npz"
    return [
        File("net", "fp32", "fused", tmp_path / f"{name}.onnx", feeds, expected) for name in "abcd"
    ]


def test_each_file_has_its_own_end(files, tmp_path, monkeypatch):
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setattr("benchmarks.interop.__main__.PROBE", tmp_path / "fake.py")
    computed, crashed, refused, checked = given_to(TOOL, Path(sys.executable), files, tmp_path)
    assert (computed.refusal, computed.held) == (None, False)
    assert computed.error == pytest.approx(0.2)
    assert crashed.refusal == "the process ended with 7: cannot read it"
    assert refused.refusal == "no such gate"
    assert (checked.refusal, checked.error) == (None, None)


def test_the_page_shows_figures_words_and_remedies():
    took = Outcome("A tool", "net", "fp32", "portable", None, 2e-7)
    off = replace(took, precision="int8", error=0.5, held=False)
    refused = replace(took, form="fused", refusal="unknown domain cbam_deploy | x", error=None)
    study = Study({"A tool": "1.2"}, {"Another": "no wheel"}, (refused, took, off))
    text = page([TOOL], study, "1.32.0")
    assert "| A tool | 1.2 | fused | refuses | – | – |" in text
    assert "| A tool | 1.2 | portable | 2.0e-07 | – | **5.0e-01** |" in text
    assert r"unknown domain cbam_deploy \| x" in text
    assert "`export --portable`" in text.split("## What tools refuse")[1].split("##")[0]
    assert "- Another: no wheel" in text
