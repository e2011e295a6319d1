"""What this machine can do: run networks in each runtime, make artefacts, read pictures."""

from __future__ import annotations

from dataclasses import replace

from cbam_deploy.errors import installation_of
from cbam_deploy.machine import (
    GPU,
    POLYGRAPHY,
    TENSORRT,
    TENSORRT_LOADS,
    TENSORRT_RTX,
    TORCH,
    MachineReport,
    Need,
    capability,
    environment,
    package,
)
from cbam_deploy.plugins.native_library import is_within_reach
from cbam_deploy.runtimes import RUNTIMES

_DEMO = installation_of("demo")
_ONNX = [package(name, f"pip install {name}") for name in ("onnx", "onnx_ir", "onnxscript")]
_NVRTC = package("cuda.bindings.nvrtc", installation_of("kernels"))
_LIBRARY = Need(is_within_reach, "a C++ compiler", "apt install g++")
_PILLOW = package("PIL", _DEMO)

# What is done besides running networks, and what it needs, in the order to mend it.
_OTHERS: dict[str, tuple[Need, ...]] = {
    "export to ONNX": (TORCH, *_ONNX),
    "build TensorRT-RTX engines": (POLYGRAPHY, TENSORRT_RTX),
    "lower gates to the TensorRT plugin": (*_ONNX, _NVRTC),
    "load or build the TensorRT plugin library": (_LIBRARY,),
    "build TensorRT engines": (GPU, POLYGRAPHY, TENSORRT, TENSORRT_LOADS),
    "package for Triton, and check a server": (package("tritonclient", installation_of("triton")),),
    "read pictures from a folder": (_PILLOW,),
    "use the built-in pictures (digits, photos)": (_PILLOW, package("sklearn", _DEMO)),
    "draw plots in reports": (package("matplotlib", _DEMO),),
}


def doctor(*, measure: bool = False) -> MachineReport:
    """Say what this machine can do, and for what it cannot, what to install.

    Looks only: it starts no inference, builds nothing and imports no framework.

    Args:
        measure: run a small network too, for some seconds, and say which runtime this CPU should
            use for which precision.

    Raises:
        MissingCapability: a runtime to measure is not installed.
    """
    abilities = {**{row.does: row.needs for row in RUNTIMES}, **_OTHERS}
    answers = (capability(name, *needs) for name, needs in abilities.items())
    report = MachineReport(environment(), tuple(answers))
    if not measure:
        return report
    from cbam_deploy.benchmarking.cpu_runtimes import measure_cpu_runtimes

    return replace(report, cpu_runtimes=measure_cpu_runtimes())
