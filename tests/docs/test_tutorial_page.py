"""The road of docs/tutorial.md is gone as it stands, from a folder with nothing in it."""

import json
import re
import shlex
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2].joinpath("docs", "tutorial.md").read_text(encoding="utf-8")
(PHOTOGRAPHS,) = re.findall(r"```python\n(.+?)```", PAGE, re.S)
LINES = re.findall(r"^    cbam-deploy (.+)$", PAGE.replace("\\\n", " "), re.M)
# The smaller network, at half the side; what bench measures is not looked at here.
SMALLER = (("resnet20", "resnet8"), ("--image-size 64", "--image-size 32"))
EXTRA = {"bench": ["--seconds", "0.1"]}


def test_what_the_page_installs_has_what_its_commands_need():
    (extras,) = re.findall(r"pip install -e '\.\[(.+)\]'", PAGE)
    needed = {"train": "demo", "build-engine": "rtx", "package": "triton"}
    named = {line.split()[0] for line in LINES}
    assert {needed[name] for name in named & needed.keys()} == set(extras.split(","))


@pytest.mark.slow
def test_every_command_does_what_the_page_says(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cbam_deploy.benchmarking.memory.applies_to", lambda _: False)
    monkeypatch.setattr("cbam_deploy.benchmarking.interleaving.ROUND_SECONDS", 0.005)
    monkeypatch.setattr("cbam_deploy.benchmarking.warm_up.CHUNK_SECONDS", 0.002)
    exec(compile(PHOTOGRAPHS, "the page", "exec"), {})
    for part, pictures in (("train", 48), ("val", 16)):
        for name in ("flower", "temple"):
            assert len(list(Path("photographs", part, name).glob("*.jpg"))) == pictures
    said = {}
    for line in LINES:
        for old, new in SMALLER:
            line = line.replace(old, new)
        command = shlex.split(line)
        ended = cli(*command, "--quiet", *EXTRA.get(command[0], []))
        assert (ended.code, ended.err) == (0, ""), " ".join(command) + ended.err
        said[" ".join(command[:2])] = " ".join(ended.out.split())
    assert {line.split()[0] for line in said} == {
        *(
            "train",
            "export",
            "inspect",
            "convert",
            "validate",
            "evaluate",
            "build-engine",
            "bench",
            "inline",
            "package",
        ),
    }
    assert said["inspect photographs.onnx"].count("CbamGateAddRelu function") == 3
    assert "class names flower, temple" in said["inspect photographs.engine"]
    assert "allowed ≥20.0 0" in said["validate photographs.int8.onnx"]
    assert re.search(
        r"photographs\.onnx onnxruntime-cpu (9\d|100)\.", said["evaluate photographs.onnx"]
    )
    assert json.loads(Path("photographs.engine.json").read_text())["targets"] == ["sm_89"]
