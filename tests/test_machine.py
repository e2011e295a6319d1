"""What the machine says of itself, and what `doctor` concludes."""

from __future__ import annotations

import ctypes
import importlib.util
import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from cbam_deploy import machine
from cbam_deploy.benchmarking.cpu_runtimes import RUNTIMES
from cbam_deploy.capabilities import doctor
from cbam_deploy.errors import MissingCapability, installation_of
from cbam_deploy.machine import CpuRuntimes, Gpu, clocks, environment, gpus
from cbam_deploy.report.units import Estimate


def report(name):
    return next(item for item in doctor().capabilities if item.name == name)


@pytest.fixture
def installed(monkeypatch):
    """Pretend that exactly these modules are installed, and that there is a GPU or none."""

    def pretend(*modules, gpu=False):
        found = SimpleNamespace(origin="/nowhere/package/__init__.py")
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: found if name in modules else None
        )
        monkeypatch.setenv("PATH", "")
        monkeypatch.delenv("CXX", raising=False)
        gpu_list = (Gpu("a GPU", (8, 9), 8 << 30),) if gpu else ()
        monkeypatch.setattr(machine, "gpus", lambda: gpu_list)

    return pretend


def test_this_environment_is_described_in_json():
    here = json.loads(json.dumps(environment()))
    assert here["cores"] == len(os.sched_getaffinity(0))
    assert here["memory_bytes"] > 1 << 28
    assert here["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "onnx", "onnxruntime", "polygraphy"} <= set(here["packages"])


def test_clock_of_every_core_is_read(monkeypatch, tmp_path):
    text = "cpu MHz\t\t: 2595.124\nflags: x\ncpu MHz\t\t: 1200.000\n"
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path / "cpuinfo")
    answer = SimpleNamespace(stdout="1980, 3201\n345, 3201\n")
    monkeypatch.setattr(subprocess, "run", lambda command, **options: answer)
    assert clocks() == {
        "cpu_mhz": [2595.124, 1200.0],
        "gpu_sm_mhz": [1980.0, 345.0],
        "gpu_memory_mhz": [3201.0, 3201.0],
    }


class FakeDriver:
    """The CUDA driver of a machine with two GPUs, as far as it is asked."""

    memory = (8 << 30, 139 << 30)
    capability = ((8, 9), (9, 0))

    def __init__(self, failing=""):
        self.failing = failing

    def __getattr__(self, name):
        return lambda *arguments: 100 if name == self.failing else self.answer(name, *arguments)

    def answer(self, name, *arguments):
        written = [getattr(argument, "_obj", None) for argument in arguments]
        if name == "cuDeviceGetCount":
            written[0].value = 2
        elif name == "cuDeviceGet":
            written[0].value = arguments[1]
        elif name == "cuDeviceGetName":
            arguments[0].value = f"GPU number {arguments[2].value}".encode()
        elif name == "cuDeviceTotalMem_v2":
            assert isinstance(written[0], ctypes.c_size_t)
            written[0].value = self.memory[arguments[1].value]
        elif name == "cuDeviceGetAttribute":
            written[0].value = self.capability[arguments[2].value][arguments[1] - 75]
        return 0


@pytest.fixture
def driver(monkeypatch):
    def install(fake):
        monkeypatch.setattr(ctypes, "CDLL", lambda name: fake)
        gpus.cache_clear()

    yield install
    gpus.cache_clear()


def test_gpus_are_described_by_the_driver(driver):
    driver(FakeDriver())
    assert gpus() == (
        Gpu("GPU number 0", (8, 9), 8 << 30),
        Gpu("GPU number 1", (9, 0), 139 << 30),
    )
    assert [gpu.target for gpu in gpus()] == ["sm_89", "sm_90"]


@pytest.mark.parametrize("failing", ["cuInit", "cuDeviceGetCount"])
def test_driver_without_a_usable_gpu_means_none(driver, failing):
    driver(FakeDriver(failing))
    assert gpus() == ()


def test_every_missing_capability_has_a_remedy(installed):
    installed()
    capabilities = doctor().capabilities
    assert not any(item.available for item in capabilities)
    assert all(item.missing and item.remedy for item in capabilities)


def test_engines_can_be_built_without_a_gpu_but_not_run(installed):
    installed("polygraphy", "tensorrt_rtx", "torch")
    assert report("build TensorRT-RTX engines").available
    running = report("run TensorRT-RTX engines")
    assert not running.available
    assert "GPU" in running.missing


def test_a_compiler_is_all_that_the_plugin_library_needs(installed, monkeypatch, tmp_path):
    installed()
    name = "load or build the TensorRT plugin library"
    assert report(name).missing == "a C++ compiler"
    (tmp_path / "c++").write_text("#!/bin/sh\n")
    (tmp_path / "c++").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert report(name).available


def test_missing_builder_is_named_with_its_installation(installed):
    installed("polygraphy")
    building = report("build TensorRT-RTX engines")
    assert not building.available
    assert "tensorrt_rtx" in building.missing
    assert building.remedy == installation_of("rtx")


def test_remedies_are_printed_whole(installed):
    installed("polygraphy")
    terminal = io.StringIO()
    Console(width=200, file=terminal).print(doctor())
    printed = terminal.getvalue()
    assert "[rtx]" in printed
    assert "[demo]" in printed


def test_gpu_with_cpu_builds_of_the_frameworks_is_not_enough(installed):
    installed("torch", "onnxruntime", "polygraphy", "tensorrt_rtx", gpu=True)
    for name in ("run PyTorch models on a GPU", "run ONNX files on a GPU"):
        assert not report(name).available
        assert "CUDA" in report(name).missing


def test_tensorrt_that_does_not_load_is_told_from_one_that_does(installed, monkeypatch):
    installed("polygraphy", "tensorrt", gpu=True)
    for loads in (True, False):
        ended = SimpleNamespace(returncode=0 if loads else 1)
        monkeypatch.setattr(subprocess, "run", lambda *_, ended=ended, **__: ended)
        monkeypatch.setattr("cbam_deploy.capabilities.environment", dict)
        assert report("build TensorRT engines").available == loads


def test_doctor_answers_without_importing_a_framework():
    program = (
        "import sys, json; from cbam_deploy import doctor; json.dumps(doctor().to_json());"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'tensorrt_rtx', 'numpy'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("ratio", "advice"),
    [
        (Estimate(0.5, 0.4, 0.6), "openvino"),
        (Estimate(0.9, 0.7, 1.1), "either"),
        (Estimate(2.0, 1.5, 2.5), "onnxruntime"),
    ],
)
def test_a_runtime_is_advised_where_the_whole_interval_favours_it(ratio, advice):
    measured = CpuRuntimes("fp32", {"onnxruntime": 0.01, "openvino": 0.01 * ratio.value}, ratio)
    assert measured.advice == advice


@pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="needs the package openvino"
)
def test_doctor_measures_the_runtimes_of_this_cpu_when_asked(monkeypatch):
    monkeypatch.setattr("cbam_deploy.benchmarking.interleaving.ROUND_SECONDS", 1e-3)
    for name, value in {"BLOCKS": 1, "SIZE": 32, "SECONDS": 0.01}.items():
        monkeypatch.setattr(f"cbam_deploy.benchmarking.cpu_runtimes.{name}", value)
    found = json.loads(json.dumps(doctor(measure=True).to_json()))["cpu_runtimes"]
    assert [one["precision"] for one in found] == ["fp32", "fp16", "int8"]
    for one in found:
        assert tuple(one["seconds"]) == RUNTIMES
        assert min(one["seconds"].values()) > 0
        assert one["advice"] in (*RUNTIMES, "either")
    assert doctor().to_json()["cpu_runtimes"] == []


def test_doctor_cannot_measure_a_runtime_that_is_not_here(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingCapability, match="openvino"):
        doctor(measure=True)
