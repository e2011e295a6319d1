"""What this machine is (`environment`, `clocks`, `gpus`) and what there is for a capability.

Nothing heavy is imported: packages are found by their metadata, GPUs through the driver's own
library, so that `doctor` answers at once on any machine, also on one where something is broken.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from cbam_deploy.errors import MissingCapability, installation_of
from cbam_deploy.provenance import package_versions
from cbam_deploy.report.content import Section, Table
from cbam_deploy.report.environment_section import machine_rows
from cbam_deploy.report.result import Result
from cbam_deploy.report.units import Estimate, interval, milliseconds

PACKAGES = (
    "cbam-deploy",
    "torch",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "polygraphy",
    "tensorrt-rtx-cu13",
    "tensorrt-cu13",
    "tensorrt",
    "cuda-bindings",
    "nvidia-cuda-nvrtc",
    "safetensors",
    "tritonclient",
    "pillow",
    "scikit-learn",
    "matplotlib",
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as the driver describes it; memory in bytes."""

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int

    @property
    def target(self) -> str:
        """Compute capability as a target name, such as ``sm_89``."""
        return "sm_{}{}".format(*self.compute_capability)


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs this process may use, found through the CUDA driver; empty without one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    return tuple(_gpu(driver, index) for index in range(count.value))


def _gpu(driver: ctypes.CDLL, index: int) -> Gpu:
    """GPU number `index`; attributes 75 and 76 are the two parts of its compute capability."""
    device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    major, minor = ctypes.c_int(), ctypes.c_int()
    for status in (
        driver.cuDeviceGet(ctypes.byref(device), index),
        driver.cuDeviceGetName(name, len(name), device),
        driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device),
        driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device),
        driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device),
    ):
        if status != 0:
            raise RuntimeError(f"the CUDA driver answers error {status} about GPU {index}")
    return Gpu(name.value.decode(), (major.value, minor.value), memory.value)


def driver_version() -> str | None:
    """Version of the NVIDIA kernel driver, such as ``580.65.06``; None without one."""
    answers = _nvidia_smi("driver_version")
    return answers[0] if answers else None


def memory_bytes() -> int:
    """Memory that a process here may use, as far as the machine or its container says."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdecimal() else physical


def check_memory(needed: int, what: str) -> None:
    """Refuse what cannot fit, before the system kills the process for it.

    Raises:
        MissingCapability: `what` takes `needed` bytes, more than there is here.
    """
    there = memory_bytes()
    if needed > there:
        raise MissingCapability(
            f"{what} takes {needed / 2**30:.1f} GiB of memory, and this machine has"
            f" {there / 2**30:.1f} GiB",
            "use a smaller batch or size",
        )


def environment() -> dict[str, Any]:
    """What a figure measured here depends on, JSON-ready: processor, GPUs, driver, versions."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "os": _os_name(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "gpus": [asdict(gpu) for gpu in gpus()],
        "driver": driver_version(),
        "packages": package_versions(*PACKAGES),
        "threads": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
    }


def clocks() -> dict[str, list[float]]:
    """Clocks right now: ``cpu_mhz`` per core, ``gpu_sm_mhz`` and ``gpu_memory_mhz`` per GPU.

    Virtual machines often report the nominal frequency. Lists are empty where nothing is known.
    """
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        cpuinfo = ""
    gpu = [line.split(",") for line in _nvidia_smi("clocks.sm,clocks.mem")]
    return {
        "cpu_mhz": [float(mhz) for mhz in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", cpuinfo, re.M)],
        "gpu_sm_mhz": [float(row[0]) for row in gpu],
        "gpu_memory_mhz": [float(row[1]) for row in gpu],
    }


def _nvidia_smi(query: str) -> list[str]:
    """One line per GPU of what ``nvidia-smi`` says about `query`; empty when it cannot tell."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


@dataclass(frozen=True)
class Capability:
    """One thing the package does, whether this machine can do it, and what is missing if not."""

    name: str
    available: bool
    missing: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class CpuRuntimes:
    """Two runtimes on this CPU in one precision.

    Attributes:
        precision: ``fp32``, ``fp16`` or ``int8``.
        seconds: median duration of a run, by runtime.
        ratio: duration in the second over that in the first, taken within rounds.
    """

    precision: str
    seconds: dict[str, float]
    ratio: Estimate

    @property
    def advice(self) -> str:
        """The faster runtime, or ``either`` where the interval holds 1."""
        first, second = self.seconds
        if self.ratio.low <= 1 <= self.ratio.high:
            return "either"
        return second if self.ratio.value < 1 else first


@dataclass(frozen=True)
class MachineReport(Result):
    """The answer of `doctor`: the environment, what can be done in it, and by what on the CPU."""

    schema: ClassVar[str] = "cbam_deploy.machine"

    environment: dict[str, Any]
    capabilities: tuple[Capability, ...]
    cpu_runtimes: tuple[CpuRuntimes, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data."""
        advice = [{**asdict(one), "advice": one.advice} for one in self.cpu_runtimes]
        return {**super().to_json(), "cpu_runtimes": advice}

    def sections(self) -> tuple[Section, ...]:
        """What this machine is, and what it can do."""
        interpreter = ("interpreter", sys.executable)
        abilities = Table(
            columns=("", "this machine can", "or what it lacks"),
            rows=tuple(
                ("yes", item.name, "")
                if item.available
                else ("no", item.name, f"{item.missing}: {item.remedy}")
                for item in self.capabilities
            ),
            text_columns=3,
        )
        facts = Table.facts([*machine_rows(self.environment), interpreter])
        measured = (self._advice_table(),) if self.cpu_runtimes else ()
        return (Section("This machine", tables=(facts, abilities, *measured)),)

    def _advice_table(self) -> Table:
        first, second = self.cpu_runtimes[0].seconds
        return Table(
            columns=("on the CPU", first, second, "ratio", "95% interval", "use"),
            rows=tuple(
                (
                    one.precision,
                    *(f"{milliseconds(seconds)} ms" for seconds in one.seconds.values()),
                    f"{one.ratio.value:.3f}",
                    interval(one.ratio),
                    one.advice,
                )
                for one in self.cpu_runtimes
            ),
            caption="A small network with gates at batch 1; bench measures your own.",
            text_columns=1,
        )


@dataclass(frozen=True)
class Need:
    """What a capability needs: whether it is here, what to call it, how to get it."""

    holds: Callable[[], bool]
    missing: str
    remedy: str


def capability(name: str, *needs: Need) -> Capability:
    """`name` is possible when every need is met; else the first that is not says what to do."""
    for need in needs:
        if not need.holds():
            return Capability(name, False, need.missing, need.remedy)
    return Capability(name, True)


def package(module: str, remedy: str) -> Need:
    """An installed Python package, found without importing it."""
    return Need(lambda: _is_installed(module), f"package {module}", remedy)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False


def _tensorrt_loads() -> bool:
    """Whether ``import tensorrt`` works; only trying shows it, and a crash must not end us."""
    command = [sys.executable, "-c", "import tensorrt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _torch_has_cuda() -> bool:
    """Whether the installed PyTorch was built for CUDA, told by its libraries, not by importing."""
    spec = importlib.util.find_spec("torch")
    return _beside(spec, "lib/libtorch_cuda.so")


def _ort_has_cuda() -> bool:
    """Whether the installed ONNX Runtime carries its CUDA provider, told without importing it."""
    spec = importlib.util.find_spec("onnxruntime")
    return _beside(spec, "capi/libonnxruntime_providers_cuda.so")


def _beside(spec: Any, library: str) -> bool:
    return spec is not None and (Path(spec.origin).parent / library).exists()


GPU = Need(lambda: bool(gpus()), "an NVIDIA GPU", "use a machine with one")
TORCH = package("torch", "pip install torch")
CUDA_TORCH = Need(_torch_has_cuda, "a PyTorch build with CUDA", "pip install torch, from PyPI")
ORT = package("onnxruntime", "pip install onnxruntime")
CUDA_ORT = Need(_ort_has_cuda, "ONNX Runtime with CUDA", installation_of("cuda"))
OPENVINO = package("openvino", installation_of("openvino"))
POLYGRAPHY = package("polygraphy", "pip install polygraphy")
TENSORRT_RTX = package("tensorrt_rtx", installation_of("rtx"))
TENSORRT = package("tensorrt", installation_of("tensorrt"))
TENSORRT_LOADS = Need(
    _tensorrt_loads, "TensorRT's native libraries", "install tensorrt from NVIDIA's package index"
)
