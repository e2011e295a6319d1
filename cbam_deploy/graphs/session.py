"""A session of ONNX Runtime: quiet, on the CPU unless it is told otherwise."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbam_deploy.errors import BadInput, DeployError, MissingCapability, in_one_line

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_NO_KERNEL = re.compile(r"NOT_IMPLEMENTED : Could not find an implementation for (\w+)\(")
CPU = ("CPUExecutionProvider",)
_BIASES = "WeightBiasQuantization"


def wrong_optimizers(precision: str | None) -> tuple[str, ...]:
    """Optimizations of ONNX Runtime 1.32 that change what a file of a precision computes.

    Before an FP8 Q the first drops a ReLU; the second stores biases over scales in FP16, which
    overflows.
    """
    return ("ReluQuantRewrite", _BIASES) if precision == "fp8" else ()


def open_session(
    model: str | Path | bytes,
    title: str,
    *,
    providers: Sequence[Any] = CPU,
    threads: int | None = None,
    folder: str | Path | None = None,
    arena: bool = True,
    profile: Path | None = None,
    optimized: Path | None = None,
    as_written: bool = False,
    precision: str | None = None,
    exact_biases: bool = False,
) -> InferenceSession:
    """Load a model into ONNX Runtime, all graph optimizations on that are right for its precision.

    Args:
        model: path of an ONNX file, or a serialized model.
        title: what to call it in messages.
        providers: what runs the operators, in order of preference.
        threads: threads within one operator; ONNX Runtime's choice (one per core) by default.
        folder: where a serialized model's external data lies.
        arena: whether buffers keep the largest size they ever had, which is quicker.
        profile: beginning of the name of a file for the time of each node, which is written by
            the session's `end_profiling`; None takes no times.
        optimized: where to write the graph as ONNX Runtime runs it, if anywhere.
        as_written: run the graph without optimizations; they round an INT8 network's biases too.
        precision: of the model, one of `provenance.PRECISIONS`; None for no FP8.
        exact_biases: leave the biases of 8-bit layers as they are, like GPUs; ONNX Runtime rounds
            them to multiples of the product of both scales, for kernels in integers.

    Raises:
        BadInput: ONNX Runtime cannot load it.
        MissingCapability: it has no kernels for its types.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = arena
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if threads is not None:
        options.intra_op_num_threads = threads
    if folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder)
        )
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(
            source,
            options,
            providers=list(providers),
            disabled_optimizers=[*wrong_optimizers(precision), *[_BIASES] * exact_biases],
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this.
        raise refusal(title, "load", error) from error


def refusal(title: str, verb: str, error: Exception) -> DeployError:
    """What ONNX Runtime's `error` says of `title`, which it cannot `verb`.

    `BadInput`, or `MissingCapability` where the file is sound and a kernel is missing.
    """
    reason = in_one_line(error)
    if missing := _NO_KERNEL.search(reason):
        return MissingCapability(
            f"{title}: ONNX Runtime has no kernel here for {missing[1]} in the types of the file",
            "BF16 is for GPUs, by build-engine; validate and evaluate compute on the CPU what it"
            " gives there",
        )
    return BadInput(
        f"{title}: ONNX Runtime cannot {verb} it ({reason})", "check the file, or export again"
    )
