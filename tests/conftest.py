"""What every test may use: the command line in this process, and a trained network."""

from __future__ import annotations

import fcntl
import functools
import gc
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# Tests run side by side: more threads than one each would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Some tests import ONNX Runtime before the package, which sets this too.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Everywhere the same examples: a run that fails fails again, here as in CI. Tests do not time.
settings.register_profile("same_examples", derandomize=True, deadline=None)
settings.load_profile("same_examples")


def pytest_collection_finish() -> None:
    """Save what every export and every collection of garbage would do again.

    torch reads its 540 translations of operators anew in each export, which takes longer than all
    else that exporting a small network does; and Python looks through what the libraries hold.
    """
    if "torch" in sys.modules:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        read_once = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
        ONNXRegistry.from_torchlib = read_once  # type: ignore[method-assign]
    gc.freeze()
    gc.set_threshold(50_000, 20, 10)


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The text of the one `error:` line; fails the test unless the contract of errors holds."""
        lines = self.err.splitlines()
        assert "Traceback" not in self.err, self.err
        assert [line.split(":")[0] for line in lines if line] == ["error", "hint"], self.err
        return lines[0].removeprefix("error: ")


@pytest.fixture(autouse=True)
def signal_handlers():
    """A command sets handlers for its process; the next test begins without them."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def cli(capsys, monkeypatch):
    """Run the command line in this process: ``cli("export", "resnet20", "-o", path)``."""
    from cbam_deploy.cli import main

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["cbam-deploy", *map(str, arguments)])
        capsys.readouterr()
        handler = signal.getsignal(signal.SIGINT)
        with pytest.raises(SystemExit) as ended:
            main()
        signal.signal(signal.SIGINT, handler)  # As in a process that ended with its command.
        captured = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), captured.out, captured.err)

    return run


def once(
    factory: pytest.TempPathFactory, name: str, file: str, make: Callable[[Path], object]
) -> Path:
    """The path `file` in a folder `name`, made by ``make(path)`` once for all of xdist."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / name
    folder.mkdir(exist_ok=True)
    with (root / f"{name}.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        if not lock.read():
            make(folder / file)
            lock.write("made")
    return folder / file


@pytest.fixture(scope="session")
def network_onnx(tmp_path_factory) -> Path:
    """A CBAM-ResNet-8 for ten classes with the initial weights of seed 0, gates fused."""
    from cbam_deploy import export_onnx

    def export(path: Path) -> None:
        export_onnx("resnet8", path, num_classes=10)

    return once(tmp_path_factory, "network", "network.onnx", export)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Path:
    """The folder of a CBAM-ResNet-20 trained on the digits, above 98% on the held-out split."""
    from cbam_deploy import train
    from cbam_deploy.training.recipes import DIGITS

    return once(tmp_path_factory, "digits", "run", lambda path: train(**DIGITS, output=path))


@pytest.fixture(scope="session")
def digits_onnx(digits_run, tmp_path_factory) -> Path:
    """That network as an ONNX file with fused gates."""
    from cbam_deploy import export_onnx

    def export(path: Path) -> None:
        export_onnx("resnet20", path, weights=digits_run / "best.safetensors")

    return once(tmp_path_factory, "onnx", "digits.onnx", export)


@pytest.fixture(scope="session")
def digits_engine(digits_onnx, tmp_path_factory) -> Path:
    """Its TensorRT-RTX engine for compute capability 8.9."""
    from cbam_deploy import build_engine

    def build(path: Path) -> None:
        build_engine(digits_onnx, path, targets=("sm_89",))

    return once(tmp_path_factory, "engine", "digits.engine", build)


# Not in tests/plugins: the helper modules there make mypy take that folder for a root, as it does
# tests/exporters, and there can be one module `conftest` at a root.
@pytest.fixture(scope="session")
def built(pytestconfig: pytest.Config) -> Path:
    """Where programs built from the kernels stay, so that only a change builds them again."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++, version 12 or later")
    assert pytestconfig.cache is not None
    return pytestconfig.cache.mkdir("host_kernels")
