"""The jobs of docs/ci.md work: their steps are run as they stand, but for the installation."""

import json
import os
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import onnx
import pytest
import yaml
from onnx import numpy_helper

from cbam_deploy.benchmarking import warm_up

PAGE = Path(__file__).parents[2] / "docs" / "ci.md"


def jobs():
    """The two jobs as (shell commands, environment, files they keep)."""
    github, gitlab = (
        yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.S)
    )
    job = github["jobs"]["deploy"]
    upload = job["steps"][-1]["with"]["path"].split()
    yield one_line([step["run"] for step in job["steps"] if "run" in step]), job["env"], upload
    job = gitlab["deploy"]
    kept = [*job["artifacts"]["paths"], job["artifacts"]["reports"]["junit"]]
    yield one_line(job["script"]), job["variables"], kept


def one_line(commands):
    return [" ".join(command.replace("\\\n", " ").split()) for command in commands]


# In the place of the command: writes its arguments, each ended by a zero byte.
STAND_IN = "#!/bin/sh\nprintf '%s\\0' \"$@\"\n"


@pytest.fixture
def shell(cli, tmp_path, monkeypatch):
    """Run one of the steps: bash reads it, and the command that it calls runs in this process."""
    stand_in = tmp_path / "bin" / "cbam-deploy"
    stand_in.parent.mkdir()
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    monkeypatch.chdir(tmp_path)

    def run(command, variables):
        path = f"{stand_in.parent}:{os.environ['PATH']}"
        environment = {**os.environ, **variables, "PATH": path}
        read = subprocess.run(
            ["bash", "-eu", "-c", command],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        *arguments, end = read.stdout.split("\0")
        assert end == ""
        return cli(*arguments)

    return run


@pytest.mark.slow
def test_every_step_succeeds_and_leaves_its_reports(shell, tmp_path, monkeypatch):
    (commands, variables, kept), (others, other_variables, also_kept) = jobs()
    assert (others, other_variables) == (commands, variables)
    kept = {*kept, *also_kept}
    install, *steps = commands
    assert install.startswith("pip install")
    *steps, measure = steps
    variables = {**variables, "MODEL": "resnet8"}
    # What is measured is not looked at here.
    measure += " --seconds 0.1"
    monkeypatch.setattr(warm_up, "MIN_SECONDS", 0.0)
    for step in steps:
        ended = shell(step, variables)
        assert ended.code == 0, f"{step}\n{ended.err}"

    baseline = re.sub(r"--against \S+ --max-slowdown \S+", "", measure)
    assert shell(baseline, variables).code == 0
    (tmp_path / "bench.json").rename(tmp_path / "bench-baseline.json")
    ended = shell(measure, variables)
    assert ended.code in (0, 1), ended.err

    assert sorted(kept) == sorted(name for name in kept if (tmp_path / name).stat().st_size > 0)
    suite = ElementTree.parse(tmp_path / "parity.xml").getroot()
    cases = list(suite.iter("testcase"))
    assert cases
    assert not list(suite.iter("failure"))
    assert json.loads((tmp_path / "parity.json").read_text())["passed"] is True

    # A weight a tenth too large: the step that proves parity stops the job.
    model = onnx.load(tmp_path / "model.onnx")
    weight = next(w for w in model.graph.initializer if len(w.dims) == 4)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.1, weight.name))
    onnx.save(model, tmp_path / "model.onnx")
    (proof,) = (step for step in steps if " validate " in step)
    ended = shell(proof.replace("--layers", ""), variables)
    assert ended.code == 1
    assert ended.err.startswith("error: ")
    assert list(ElementTree.parse(tmp_path / "parity.xml").getroot().iter("failure"))
