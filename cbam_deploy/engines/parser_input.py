"""The ONNX file that TensorRT's parser gets, and how its gates are lowered.

TensorRT-RTX has no plugins: it gets the file as it is, and builds gates from their function bodies.
Full TensorRT gets a copy of it with lowered gates (`gate_lowering`), which lives while the engine
is built.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cbam_deploy.engines.backend import TENSORRT_RTX
from cbam_deploy.engines.source import OnnxSource
from cbam_deploy.errors import BadInput, MissingCapability
from cbam_deploy.gates.operators import GateOperator, operator_of
from cbam_deploy.graphs.gate_functions import gate_nodes
from cbam_deploy.machine import gpus
from cbam_deploy.outputs import scratch_folder
from cbam_deploy.plugins.geometry import DeviceLimits

NATIVE = "native"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ParserInput:
    """What to parse.

    Attributes:
        path: the file.
        by_path: whether it must be parsed by its path, so that files beside it are found.
        gates: how each gate is lowered, by its name: ``native``, ``plugin`` or ``staged plugin``.
    """

    path: Path
    by_path: bool
    gates: dict[str, str]


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
        MissingCapability: `gate` is ``plugin``, and TensorRT's plugins or NVRTC are missing.
    """
    if runtime == TENSORRT_RTX or not source.gates:
        yield ParserInput(source.path, source.external, dict.fromkeys(source.gates, NATIVE))
        return
    with scratch_folder() as folder:
        path = folder / source.path.name
        gates = _write_lowered(source, path, gate, batch)
        yield ParserInput(path, True, gates)


def _write_lowered(source: OnnxSource, path: Path, gate: str, batch: int) -> dict[str, str]:
    from cbam_deploy.engines.gate_lowering import lower_gates
    from cbam_deploy.graphs.onnx_file import write_model

    model = source.model.clone()
    found = [operator_of(node) for node in gate_nodes(model)]
    operators = [operator for operator in found if operator is not None]
    lowered = lower_gates(model, _registered(gate, operators), batch=batch)
    for name, one in lowered.items():
        if one.way == NATIVE and gate == "plugin":
            raise BadInput(
                f"{source.path}: the plugin cannot take gate {name} ({one.reason})",
                "use --gate auto, which leaves such gates to TensorRT",
            )
        _log.info("gate %s: %s %s", name, one.way, one.reason)
    write_model(model, path)
    return {name: one.way for name, one in lowered.items()}


def _registered(gate: str, operators: Iterable[GateOperator]) -> DeviceLimits | None:
    """Register the plugins for this machine's GPU; None where gates shall not go to them."""
    from cbam_deploy.plugins.plugin_nodes import embedding_limits
    from cbam_deploy.plugins.tensorrt_plugin import register

    if gate == NATIVE:
        return None
    try:
        limits = embedding_limits(gpus()[0].compute_capability)
        register(limits, operators)
    except (BadInput, MissingCapability) as error:
        if gate == "plugin":
            raise
        _log.warning("gates are built from their function bodies: %s", error.message)
        return None
    return limits
