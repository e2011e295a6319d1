"""The options of `build-engine`, and which of them each TensorRT has."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cbam_deploy.engines.backend import TENSORRT, TENSORRT_RTX, TITLES, Backend
from cbam_deploy.errors import BadInput, MissingCapability
from cbam_deploy.machine import gpus

GATES = ("auto", "plugin", "native")
MAX_OPTIMIZATION_LEVEL = 5

LACKING = {
    TENSORRT: {
        "targets": "it builds for the GPU of this machine only",
    },
    TENSORRT_RTX: {
        "timing_cache": "it times nothing while building",
        "optimization_level": "it chooses kernels when the engine is loaded, not while building",
        "version_compatible": "it has no lean runtime",
        "embed_plugin": "it has no plugins",
    },
}
# Compute capability from which on GPUs have a precision, where that is not all of them.
OLDEST_CAPABILITY = {"bf16": (8, 0), "fp8": (8, 9)}
# Of options that are not called as they are in Python.
_FLAGS = {
    "sizes": "--size",
    "targets": "--target",
    "workspace_mib": "--workspace",
    "embed_plugin": "--no-embed-plugin",
}


@dataclass(frozen=True)
class BuildOptions:
    """Options of one build as given; see `build_engine` for each one's meaning."""

    min_batch: int | None = None
    opt_batch: int | None = None
    max_batch: int | None = None
    sizes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    gate: str = "auto"
    embed_plugin: bool = True
    timing_cache: Path | None = None
    optimization_level: int | None = None
    workspace_mib: int | None = None
    strip_weights: bool = False
    version_compatible: bool = False

    def given(self) -> dict[str, Any]:
        """The builder options that differ from their defaults, JSON-ready."""
        names = ("optimization_level", "workspace_mib", "strip_weights", "version_compatible")
        return {name: getattr(self, name) for name in names if self.has(name)}

    def has(self, name: str) -> bool:
        """Whether option `name` was given a value other than its default."""
        return bool(getattr(self, name) != getattr(BuildOptions, name))


def check_options(options: BuildOptions, runtime: str) -> None:
    """Refuse, by name, what `runtime` lacks and values that no runtime takes.

    Raises:
        BadInput: an option has an impossible value, or `runtime` has no such option.
        MissingCapability: the option needs a GPU, and this machine has none.
    """
    title = TITLES[runtime]
    for name, reason in LACKING[runtime].items():
        if options.has(name):
            flag = _flag(name)
            other = TENSORRT if runtime == TENSORRT_RTX else TENSORRT_RTX
            raise BadInput(
                f"{title} has no option {flag}: {reason}",
                f"leave {flag} out, or use --runtime {other}",
            )
    level = options.optimization_level
    if level is not None and not 0 <= level <= MAX_OPTIMIZATION_LEVEL:
        raise BadInput(
            f"--optimization-level {level} is not in 0..{MAX_OPTIMIZATION_LEVEL}", "choose another"
        )
    if options.workspace_mib is not None and options.workspace_mib < 1:
        raise BadInput(
            f"--workspace {options.workspace_mib} is not a size in MiB", "give at least 1"
        )
    _check_gate(options.gate, runtime)
    if runtime == TENSORRT and not gpus():
        raise MissingCapability(
            "TensorRT builds engines only on a machine with an NVIDIA GPU, and this one has none",
            "use --runtime tensorrt-rtx, which needs no GPU to build",
        )
    if options.strip_weights and not gpus():
        raise MissingCapability(
            f"{title} strips weights only on a machine with an NVIDIA GPU, and this one has none",
            "leave --strip-weights out, or build where a GPU is",
        )


def _check_gate(gate: str, runtime: str) -> None:
    if gate not in GATES:
        raise BadInput(f"--gate {gate} is unknown", f"choose {', '.join(GATES)}")
    if gate == "plugin" and runtime == TENSORRT_RTX:
        raise BadInput(
            "TensorRT-RTX has no plugins; it builds gates from their function bodies",
            "use --gate auto or --gate native",
        )


def check_precision(
    title: str, precision: str, targets: Iterable[str], runtime: str | None = None
) -> None:
    """Refuse a network in a precision that a GPU it is built for has not.

    Args:
        title: what to call the network.
        precision: one of `provenance.PRECISIONS`.
        targets: names of compute capabilities, such as ``sm_89``.
        runtime: what builds it now, if anything: TensorRT does so for the GPU of this machine.

    Raises:
        BadInput: a target lacks it.
        MissingCapability: this machine's GPU lacks it.
    """
    oldest = OLDEST_CAPABILITY.get(precision)
    if oldest is None:
        return
    name, other = precision.upper(), "fp16" if precision == "bf16" else "int8"
    needed = f"which needs compute capability {oldest[0]}.{oldest[1]} or later"
    for target in targets:
        if int(target[3:]) < 10 * oldest[0] + oldest[1]:
            raise BadInput(
                f"{title}: is in {name}, {needed}: {target} has none",
                f"leave out --target {target}, or convert the model to {other}",
            )
    if runtime == TENSORRT and gpus()[0].compute_capability < oldest:
        raise MissingCapability(
            f"{title}: is in {name}, {needed}: this machine's GPU is {gpus()[0].target}",
            f"build on a later GPU, or convert the model to {other}",
        )


def compute_capabilities(targets: tuple[str, ...], backend: Backend) -> list[tuple[int, int]]:
    """Targets such as ``sm_89`` as (major, minor).

    Raises:
        BadInput: `backend` does not build for one of them.
    """
    names = [name for name in dir(backend.trt.ComputeCapability) if re.fullmatch(r"SM\d+", name)]
    known = {f"sm_{name[2:]}": name[2:] for name in names}
    for target in targets:
        if target not in known:
            choices = ", ".join(sorted(known, key=lambda name: int(name[3:])))
            raise BadInput(f"{backend.title} does not build for {target}", f"choose from {choices}")
    digits = [known[target] for target in targets]
    return [(int(number[:-1]), int(number[-1])) for number in digits]


def command_line(onnx: Path, output: Path, runtime: str, options: BuildOptions) -> str:
    """The command that repeats this build, for the manifest."""
    words = ["cbam-deploy", "build-engine", str(onnx), "-o", str(output), "--runtime", runtime]
    for name in filter(options.has, (field.name for field in fields(options))):
        value = getattr(options, name)
        for one in value if isinstance(value, tuple) else (value,):
            words += [_flag(name)] if isinstance(one, bool) else [_flag(name), str(one)]
    return shlex.join(words)


def _flag(name: str) -> str:
    return _FLAGS.get(name, "--" + name.replace("_", "-"))
