"""Does a freshly exported file compute in ONNX Runtime what its module computes in PyTorch?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils._pytree import tree_leaves

from cbam_deploy.errors import BadInput, CheckFailed, DeployError
from cbam_deploy.exporters.network_inputs import NetworkInputs
from cbam_deploy.runtimes.pytorch import own_array, own_tensor
from cbam_deploy.validation.inputs import Feeds, noise

Array = NDArray[Any]

# Largest error over the largest reference value; `validation.tolerances` derives it for FP32.
MAX_RELATIVE_ERROR = 1e-4
BATCHES = (1, 3)
_HINT = "see whether --no-fuse helps, and report it; nothing was written"


@dataclass(frozen=True)
class ExportError:
    """The largest error over all outputs and batches, as it is and over the largest reference."""

    max_abs: float
    max_relative: float


def check_export(path: Path, module: nn.Module, inputs: NetworkInputs, label: str) -> ExportError:
    """Compare the file at `path` with `module` on seeded noise, at several batches and sizes.

    Raises:
        BadInput: the module does not take every batch or size.
        CheckFailed: an output differs by more than `MAX_RELATIVE_ERROR` of the largest reference
            value, is NaN where the reference is not, or ONNX Runtime cannot run the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    worst = ExportError(0.0, 0.0)
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for feeds, shape in _trials(inputs):
            references = _references(module, feeds, label, shape)
            outputs = session.run(None, feeds)
            for reference, output in zip(references, outputs, strict=True):
                found = _error(reference, output)
                worst = ExportError(
                    max(worst.max_abs, found.max_abs), max(worst.max_relative, found.max_relative)
                )
                # Written as "not within", so that NaN does not pass.
                if not found.max_relative <= MAX_RELATIVE_ERROR:
                    raise CheckFailed(
                        f"{label}: at {shape} ONNX Runtime differs from PyTorch by "
                        f"{found.max_relative:.1e} of the largest output; "
                        f"{MAX_RELATIVE_ERROR:.0e} is allowed",
                        _HINT,
                    )
    except DeployError:
        raise
    except Exception as error:  # ONNX Runtime has no common base for its exceptions.
        reason = " ".join(str(error).split())[:200]
        raise CheckFailed(f"{label}: ONNX Runtime cannot run it ({reason})", _HINT) from error
    return worst


def _trials(inputs: NetworkInputs) -> Iterator[tuple[Feeds, str]]:
    """Noise at several batches, then at other heights and widths, as far as these are free."""
    batches = BATCHES if inputs.batch is None else (inputs.batch,)
    trials = [(batch, inputs.sizes) for batch in batches]
    if inputs.sizes:
        trials.append((batches[-1], inputs.other_sizes))
    for batch, sizes in trials:
        shape = ", ".join([f"batch {batch}", *(f"{name} {size}" for name, size in sizes.items())])
        yield noise(inputs.specs, batch, seed=1, image_size=None, sizes=sizes), shape


def _references(module: nn.Module, feeds: Feeds, label: str, shape: str) -> list[Array]:
    """The module's outputs that are tensors, in its order."""
    try:
        with torch.inference_mode():
            leaves = tree_leaves(module(*map(own_tensor, feeds.values())))
    except Exception as error:  # The user's code may fail in any way.
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            f"{label}: PyTorch cannot run it at {shape} ({reason})",
            "make the model independent of these sizes, or fix them with --input",
        ) from error
    return [own_array(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _error(reference: Array, output: Array) -> ExportError:
    if reference.shape != output.shape:
        return ExportError(float("nan"), float("nan"))
    if reference.size == 0:
        return ExportError(0.0, 0.0)
    wide = reference.astype(np.float64)
    max_abs = float(np.abs(output.astype(np.float64) - wide).max())
    largest = float(np.abs(wide).max())
    return ExportError(max_abs, max_abs / largest if largest else max_abs)
