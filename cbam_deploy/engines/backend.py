"""Which of the two TensorRTs this process drives, and what they report while they work.

Polygraphy speaks to TensorRT and to TensorRT-RTX, but only to one of them per process: it reads
`polygraphy.config.USE_TENSORRT_RTX` once, when its TensorRT backend is first imported. That switch
is set here and nowhere else.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbam_deploy.errors import BadInput, MissingCapability, installation_of
from cbam_deploy.machine import gpus
from cbam_deploy.provenance import package_versions

TENSORRT = "tensorrt"
TENSORRT_RTX = "tensorrt-rtx"
RUNTIMES = (TENSORRT, TENSORRT_RTX)
TITLES = {TENSORRT: "TensorRT", TENSORRT_RTX: "TensorRT-RTX"}

_MODULES = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt_rtx"}
_INSTALL = {
    TENSORRT: installation_of("tensorrt"),
    TENSORRT_RTX: installation_of("rtx"),
}
_log = logging.getLogger(__name__)
_loaded: set[Path] = set()


@dataclass(frozen=True)
class Backend:
    """One of the two TensorRTs, loaded, with Polygraphy set to drive it.

    Attributes:
        runtime: ``tensorrt`` or ``tensorrt-rtx``.
        version: its version, such as ``1.7.1.116``.
        trt: its Python module.
        polygraphy: Polygraphy's TensorRT backend, `polygraphy.backend.trt`.
    """

    runtime: str
    version: str
    trt: Any
    polygraphy: Any

    @property
    def title(self) -> str:
        """Name and version as a person writes them."""
        return f"{TITLES[self.runtime]} {self.version}"


def choose_runtime(runtime: str) -> str:
    """Resolve ``auto``: TensorRT where it is installed and a GPU is present, else TensorRT-RTX.

    Raises:
        BadInput: `runtime` is none of ``auto``, ``tensorrt``, ``tensorrt-rtx``.
        MissingCapability: neither is installed.
    """
    if runtime in RUNTIMES:
        return runtime
    if runtime != "auto":
        raise BadInput(
            f"runtime {runtime!r} builds no engines", f"choose auto, {' or '.join(RUNTIMES)}"
        )
    if _installed(TENSORRT) and gpus():
        return TENSORRT
    if _installed(TENSORRT_RTX):
        return TENSORRT_RTX
    raise MissingCapability(
        "neither TensorRT-RTX nor TensorRT (with a GPU) is here", _INSTALL[TENSORRT_RTX]
    )


def load_backend(runtime: str) -> Backend:
    """Import `runtime` and Polygraphy for it.

    Raises:
        BadInput: this process already drives the other one.
        MissingCapability: it is not installed, or its native libraries do not load.
    """
    from polygraphy import config

    wants_rtx = runtime == TENSORRT_RTX
    if "polygraphy.backend.trt" in sys.modules and wants_rtx != config.USE_TENSORRT_RTX:
        other = TENSORRT if wants_rtx else TENSORRT_RTX
        raise BadInput(
            f"this process already drives {TITLES[other]} and cannot drive {TITLES[runtime]} too",
            "use one command (one process) for each of the two",
        )
    module = _MODULES[runtime]
    try:
        trt = importlib.import_module(module)
    except Exception as error:  # a stub package without native libraries may raise anything
        raise MissingCapability(
            f"{TITLES[runtime]} cannot be loaded ({_one_line(str(error))})", _INSTALL[runtime]
        ) from error
    config.USE_TENSORRT_RTX = wants_rtx
    backend = importlib.import_module("polygraphy.backend.trt")
    return Backend(runtime, trt.__version__, trt, backend)


def load_plugins(backend: Backend, library: Path) -> None:
    """Make the plugins in `library` known to TensorRT, once for this process.

    Raises:
        MissingCapability: TensorRT cannot load it.
    """
    if library in _loaded:
        return
    if backend.trt.get_plugin_registry().load_library(str(library)) is None:
        raise MissingCapability(
            f"{backend.title} cannot load the plugin library {library}",
            "build it again with cbam-deploy build-plugin",
        )
    _loaded.add(library)


def installed_version(runtime: str) -> str | None:
    """Version of `runtime` installed here, without importing it; None when it is not."""
    names = {TENSORRT: ("tensorrt-cu13", "tensorrt"), TENSORRT_RTX: ("tensorrt-rtx-cu13",)}
    return next(iter(package_versions(*names[runtime]).values()), None)


class BuilderLog(logging.Handler):
    """What Polygraphy and TensorRT said: errors are kept, everything goes to our own log."""

    def __init__(self) -> None:
        super().__init__()
        self.complaints: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning or error in one line; pass every record on at debug level."""
        message = _one_line(record.getMessage())
        if record.levelno >= logging.WARNING:
            self.complaints.append(message)
        _log.debug(message)

    def first_error(self) -> str:
        """The first thing that looks like the cause of a failure, at most 300 characters."""
        causes = [text for text in self.complaints if "Error" in text or "In node" in text]
        return (causes or ["no reason given"])[0][:300]


@contextmanager
def captured_log() -> Iterator[BuilderLog]:
    """Collect what Polygraphy and TensorRT report, and keep it off the terminal."""
    from polygraphy.logger import G_LOGGER

    log, target = BuilderLog(), logging.getLogger("Polygraphy")
    switches = {"use_python_logging_system": True, "colors": False, "letter": False}
    before = {name: getattr(G_LOGGER, name) for name in switches}
    propagate, level = target.propagate, target.level
    for name, value in switches.items():
        setattr(G_LOGGER, name, value)
    target.propagate = False
    target.setLevel(logging.INFO)
    target.addHandler(log)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Polygraphy's empty timing cache
            yield log
    finally:
        target.removeHandler(log)
        target.setLevel(level)
        target.propagate = propagate
        for name, value in before.items():
            setattr(G_LOGGER, name, value)


def _installed(runtime: str) -> bool:
    return importlib.util.find_spec(_MODULES[runtime]) is not None


def _one_line(text: str) -> str:
    return " ".join(text.split())
