"""Open an artefact to judge its numbers, where they are those a GPU would compute.

ONNX Runtime computes FP16 in FP32 on CPUs: it hides what FP16 overflows or rounds away. So there a
file is run with every FP16 value rounded (`exporters.half.rounding`), once it has loaded as it is:
what is judged must run elsewhere too. Speed is not judged this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cbam_deploy.errors import BadInput
from cbam_deploy.runtimes import open_runtime
from cbam_deploy.runtimes.base import Runner
from cbam_deploy.runtimes.onnxruntime import OnnxRuntimeRunner

if TYPE_CHECKING:
    import onnx_ir as ir

ROUNDING = "onnxruntime-cpu rounding FP16"
_MOST_BYTES = 2**31 - 2**26  # of a serialized model; FP16 weights become twice as large


def open_artefact(
    path: Path,
    *,
    runtime: str | None = None,
    device: str | None = None,
    extra_outputs: Sequence[str] = (),
) -> Runner:
    """The runner for an artefact; enter it to use it.

    Args:
        path: an ``.onnx`` or ``.engine`` file.
        runtime: refuse the artefact unless this one runs it.
        device: ``cpu`` or ``cuda``.
        extra_outputs: names of values inside an ONNX file to return too.

    Raises:
        BadInput: the file is missing, malformed, altered, or cannot be run as asked.
        MissingCapability: what it needs is not installed.
    """
    runner = open_runtime(path, runtime=runtime, device=device)
    if path.suffix != ".onnx":
        return runner
    model = _rounding(path) if device in (None, "cpu") else None
    if model is None:
        return OnnxRuntimeRunner(path, device, extra_outputs=extra_outputs)
    return _Rounding(path, model, extra_outputs)


class _Rounding(OnnxRuntimeRunner):
    """The file at `path` by `model`, which computes the same with FP16 values rounded."""

    def __init__(self, path: Path, model: bytes, extra_outputs: Sequence[str]) -> None:
        super().__init__(model, extra_outputs=extra_outputs, folder=path.resolve().parent)
        self.name, self.title = ROUNDING, str(path)
        self._path = path

    def activate(self) -> None:
        """Load the file as it is, then what is run."""
        with OnnxRuntimeRunner(self._path):
            pass
        super().activate()


def _rounding(path: Path) -> bytes | None:
    """The file with its FP16 values rounded.

    None where it has none, where its types are not known, or where it is too large for that.
    """
    import onnx_ir as ir

    from cbam_deploy.exporters.half.conversion import settle_types
    from cbam_deploy.exporters.half.rounding import round_in_fp32
    from cbam_deploy.graphs.onnx_file import read_model

    model = read_model(path)
    if not _has_fp16(model) or 2 * path.stat().st_size > _MOST_BYTES:
        return None
    try:
        settle_types(model)
    except BadInput:
        return None
    round_in_fp32(model)
    return bytes(ir.to_proto(model).SerializeToString())


def _has_fp16(model: ir.Model) -> bool:
    import onnx_ir as ir

    graph = model.graph
    made = [value for node in graph for value in node.outputs]
    values = (*graph.inputs, *graph.initializers.values(), *made)
    return any(value.dtype == ir.DataType.FLOAT16 for value in values)
