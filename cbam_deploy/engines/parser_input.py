"""The ONNX file that TensorRT's parser gets, and how its gates are lowered.

TensorRT-RTX has no plugins: it gets the file as it is, and builds gates from their function bodies.
Full TensorRT gets a copy of it whose gates are nodes of our plugin (`plugins.lowering`), while the
engine is built, and the library that has this plugin.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cbam_deploy.engines.backend import TENSORRT_RTX
from cbam_deploy.engines.source import OnnxSource
from cbam_deploy.errors import BadInput, MissingCapability
from cbam_deploy.machine import gpus
from cbam_deploy.outputs import scratch_folder

NATIVE = "native"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ParserInput:
    """What to parse.

    Attributes:
        path: the file.
        by_path: whether it must be parsed by its path, so that files beside it are found.
        gates: how each gate is lowered, by its name: ``native`` or ``plugin``.
        library: that TensorRT must load first; None where no gate is a plugin.
    """

    path: Path
    by_path: bool
    gates: dict[str, str]
    library: Path | None = None


@contextmanager
def parser_input(
    source: OnnxSource, runtime: str, *, gate: str = "auto", batch: int = 8
) -> Iterator[ParserInput]:
    """The file for the parser of `runtime`, while the context lasts.

    Args:
        source: the file to build from.
        runtime: ``tensorrt`` or ``tensorrt-rtx``.
        gate: ``plugin``, ``native``, or ``auto`` for the plugin wherever there is one.
        batch: to be fast for.

    Raises:
        BadInput: `gate` is ``plugin``, and there are no kernels for a gate or for this GPU.
        MissingCapability: `gate` is ``plugin``, and NVRTC, or a compiler for the plugin library, is
            missing.
    """
    native = ParserInput(source.path, source.external, dict.fromkeys(source.gates, NATIVE))
    if runtime == TENSORRT_RTX or gate == NATIVE or not source.gates:
        yield native
        return
    with scratch_folder() as folder:
        try:
            given = _lowered(source, folder / source.path.name, gate, batch)
        except (BadInput, MissingCapability) as error:
            if gate == "plugin":
                raise
            _log.warning("gates are built from their function bodies: %s", error.message)
            given = native
        yield given


def _lowered(source: OnnxSource, path: Path, gate: str, batch: int) -> ParserInput:
    """A copy of `source`, lowered for this machine's GPU and written to `path`."""
    from cbam_deploy.graphs.onnx_file import write_model
    from cbam_deploy.plugins.geometry import known_device
    from cbam_deploy.plugins.lowering import lower_gates
    from cbam_deploy.plugins.native_library import plugin_library

    model = source.model.clone()
    major, minor = gpus()[0].compute_capability
    lowered = lower_gates(model, [known_device(10 * major + minor)], batch=batch)
    for name, one in lowered.items():
        if one.reason and gate == "plugin":
            raise BadInput(
                f"{source.path}: the plugin cannot take gate {name} ({one.reason})",
                "use --gate auto, which leaves such gates to TensorRT",
            )
        _log.info("gate %s: %s %s", name, one.way, one.reason)
    library = plugin_library()
    write_model(model, path)
    return ParserInput(path, True, {name: one.way for name, one in lowered.items()}, library)
