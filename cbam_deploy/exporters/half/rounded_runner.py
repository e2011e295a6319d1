"""Open an artefact to judge its numbers, where they are those a GPU would compute.

ONNX Runtime computes FP16 in FP32 on CPUs: it hides what FP16 overflows or rounds away. So there a
file is run with every FP16 value rounded (`exporters.half.rounding`), once it has loaded as it is:
what is judged must run elsewhere too. A BF16 file does not load on CPUs, which have no kernels for
it; ONNX's checker judges its types instead. The biases of 8-bit layers, which GPUs add in floats,
are not rounded there either. Speed is not judged this way. OpenVINO computes FP16 in
FP32 too; who asks for it wants to know what it gives, on the CPU that the file is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from cbam_deploy.artefacts import Artefact, OnnxFile
from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.half.formats import BF16, DTYPES
from cbam_deploy.runtimes import open_runtime
from cbam_deploy.runtimes.base import Runner
from cbam_deploy.runtimes.onnxruntime import OnnxRuntimeRunner

ROUNDING = "onnxruntime-cpu rounding FP16"
ROUNDING_BF16 = "onnxruntime-cpu rounding BF16"
_MOST_BYTES = 2**31 - 2**26  # of a serialized model; FP16 weights become twice as large


def open_rounded(
    artefact: Artefact,
    *,
    runtime: str | None = None,
    device: str | None = None,
    extra_outputs: Sequence[str] = (),
) -> Runner:
    """The runner for an artefact, 16-bit values rounded in ONNX Runtime; enter it to use it.

    Args:
        artefact: as it was opened.
        runtime: refuse the artefact unless this one runs it.
        device: ``cpu`` or ``cuda``.
        extra_outputs: names of values inside an ONNX file to return too.

    Raises:
        BadInput: the artefact cannot be run as asked.
        MissingCapability: what it needs is not installed.
    """
    runner = open_runtime(artefact, runtime=runtime, device=device, extra_outputs=extra_outputs)
    if isinstance(runner, OnnxRuntimeRunner) and device in (None, "cpu"):
        assert isinstance(artefact, OnnxFile)
        runner.exact_biases = True
        rounding = _rounding(artefact.model, artefact.path)
        if rounding is not None:
            bf16 = BF16.dtype in _dtypes(artefact.model)
            return _Rounding(rounding, artefact, extra_outputs, bf16=bf16)
    return runner


class _Rounding(OnnxRuntimeRunner):
    """A file by `model`, which computes the same with 16-bit values rounded."""

    def __init__(
        self, model: onnx.ModelProto, file: OnnxFile, extra_outputs: Sequence[str], *, bf16: bool
    ) -> None:
        path = file.path
        super().__init__(
            model,
            extra_outputs=extra_outputs,
            folder=path.parent,
            title=str(path),
            precision=file.precision,
            exact_biases=True,
        )
        self.name = ROUNDING_BF16 if bf16 else ROUNDING
        self._path, self._bf16 = path, bf16

    def activate(self) -> None:
        """Load the file as it is, where that can be, then what is run."""
        if not self._bf16:
            with OnnxRuntimeRunner(self._path):
                pass
        super().activate()


def _rounding(model: ir.Model, path: Path) -> onnx.ModelProto | None:
    """The model of the file `path` with its 16-bit values rounded.

    None where it has none, where its types are not known, or where it is too large for that.
    """
    from cbam_deploy.exporters.half.conversion import settle_types
    from cbam_deploy.exporters.half.rounding import round_in_fp32

    if not _dtypes(model) & set(DTYPES) or 2 * path.stat().st_size > _MOST_BYTES:
        return None
    rounded = model.clone()
    try:
        settle_types(rounded)
    except BadInput:
        return None
    round_in_fp32(rounded)
    return ir.to_proto(rounded)


def _dtypes(model: ir.Model) -> set[ir.DataType | None]:
    """The types of all values of the graph."""
    graph = model.graph
    made = [value for node in graph for value in node.outputs]
    return {value.dtype for value in (*graph.inputs, *graph.initializers.values(), *made)}
