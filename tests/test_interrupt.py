"""Ctrl-C in the middle of each command: exit 130, nothing half-written, earlier files untouched."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMANDS = {
    "export": ["resnet152", "-o", "out.onnx"],
    "fuse": ["{model}", "-o", "out.onnx"],
    "convert": ["{model}", "-o", "out.onnx", "--precision", "int8", "--calibration", "digits"],
    "build-engine": ["{model}", "-o", "out.engine"],
    "validate": ["{model}", "--reference", "{factory}", "--every-node", "--report", "out.json"],
    "evaluate": ["{model}", "--data", "digits", "--report", "out.json"],
    "bench": ["{model}", "--seconds", "60", "--report", "out.json"],
    "train": ["resnet50", "--data", "digits", "-o", "run"],
    "demo": ["-o", "demo"],
}
NETWORK = """
from torch import nn

def build():
    middle = [nn.Sequential(nn.Conv2d(128, 128, 3, padding=1), nn.ReLU()) for _ in range(4)]
    return nn.Sequential(
        nn.Conv2d(3, 128, 3), *middle, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)
    )
"""
LIBRARY = {
    "fuse": "onnx",
    "build-engine": "tensorrt_rtx",
    "convert": "onnxruntime",
    "evaluate": "onnxruntime",
    "bench": "onnxruntime",
}


def wait_until_loaded(process, library):
    """Wait until the process has mapped the library that does the command's work."""
    for _ in range(1200):
        with Path(f"/proc/{process.pid}/maps").open() as maps:
            if any(library in line for line in maps):
                return
        assert process.poll() is None, "the command ended before it could be interrupted"
        time.sleep(0.05)
    pytest.fail(f"{library} was never loaded")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A network that takes every command a while, and the factory that made it."""
    from cbam_deploy import export_onnx

    folder = tmp_path_factory.mktemp("large")
    (folder / "network.py").write_text(NETWORK)
    model, factory = folder / "network.onnx", f"{folder}/network.py:build"
    export_onnx(factory, model, image_size=32)
    return {"model": model, "factory": factory}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_interrupted_command_leaves_no_trace(command, words, tmp_path):
    for name in ("out.onnx", "out.engine", "out.json"):
        (tmp_path / name).write_text("earlier")
    process = subprocess.Popen(
        [sys.executable, "-m", "cbam_deploy", command]
        + [word.format(**words) for word in COMMANDS[command]],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until_loaded(process, LIBRARY.get(command, "torch"))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert err.endswith("interrupted\n")
    files = {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()}
    assert files == dict.fromkeys(("out.onnx", "out.engine", "out.json"), "earlier")
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("command", ["inspect", "doctor"])
def test_commands_too_short_to_catch_end_alike(command, cli, monkeypatch):
    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"cbam_deploy.{command}", interrupted, raising=False)
    ended = cli(command, *(["model.onnx"] if command == "inspect" else []))
    assert (ended.code, ended.out, ended.err) == (130, "", "interrupted\n")
