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
    "validate": ["{model}", "--every-node", "--report", "out.json", "--batch", "64"],
    "evaluate": ["{model}", "--data", "digits", "--report", "out.json"],
    "bench": ["{model}", "--seconds", "60", "--report", "out.json"],
    "train": ["resnet50", "--data", "digits", "-o", "run"],
    "demo": ["-o", "demo"],
}
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
def model(tmp_path_factory):
    """A network large enough that every command takes a while over it."""
    from cbam_deploy import export_onnx

    path = tmp_path_factory.mktemp("large") / "resnet50.onnx"
    export_onnx("resnet50", path, num_classes=10, image_size=64)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_interrupted_command_leaves_no_trace(command, model, tmp_path):
    for name in ("out.onnx", "out.engine", "out.json"):
        (tmp_path / name).write_text("earlier")
    process = subprocess.Popen(
        [sys.executable, "-m", "cbam_deploy", command]
        + [word.format(model=model) for word in COMMANDS[command]],
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
    def interrupted(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"cbam_deploy.{command}", interrupted, raising=False)
    ended = cli(command, *(["model.onnx"] if command == "inspect" else []))
    assert (ended.code, ended.out, ended.err) == (130, "", "interrupted\n")
