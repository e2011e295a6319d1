"""The jobs of docs/ci.md work: their steps are run as they stand, but for the installation."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

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


def shell(command, folder, variables):
    tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-e", "-c", command],
        cwd=folder,
        env={**os.environ, **variables, "PATH": tools},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_every_step_succeeds_and_leaves_its_reports(tmp_path):
    (commands, variables, kept), (others, other_variables, also_kept) = jobs()
    assert (others, other_variables) == (commands, variables)
    kept = {*kept, *also_kept}
    install, *steps = commands
    assert install.startswith("pip install")
    *steps, measure = steps
    measure += " --seconds 0.3"  # What it measures is not looked at here.
    for step in steps:
        ended = shell(step, tmp_path, variables)
        assert ended.returncode == 0, f"{step}\n{ended.stderr}"

    baseline = re.sub(r"--against \S+ --max-slowdown \S+", "", measure)
    for command, report in ((baseline, "bench-baseline.json"), (measure, None)):
        ended = shell(command, tmp_path, variables)
        assert ended.returncode in ((0,) if report else (0, 1)), f"{command}\n{ended.stderr}"
        if report:
            (tmp_path / "bench.json").rename(tmp_path / report)

    assert sorted(kept) == sorted(name for name in kept if (tmp_path / name).stat().st_size > 0)
    suite = ElementTree.parse(tmp_path / "parity.xml").getroot()
    cases = list(suite.iter("testcase"))
    assert cases
    assert not list(suite.iter("failure"))
    assert json.loads((tmp_path / "parity.json").read_text())["passed"] is True


@pytest.mark.slow
def test_a_parity_fault_stops_the_job_with_exit_1(digits_run, digits_onnx, tmp_path):
    import onnx
    from onnx import numpy_helper

    model = onnx.load(digits_onnx)
    weight = next(w for w in model.graph.initializer if len(w.dims) == 4)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.1, weight.name))
    onnx.save(model, tmp_path / "model.onnx")
    weights = f"--weights {digits_run / 'best.safetensors'}"
    step = f"cbam-deploy validate model.onnx {weights} --report parity.json --junit parity.xml"
    ended = shell(step, tmp_path, {})
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert list(ElementTree.parse(tmp_path / "parity.xml").getroot().iter("failure"))
