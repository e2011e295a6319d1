"""The FP32 PyTorch model that an artefact is held against, on the CPU, where nothing is TF32."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from cbam_deploy.errors import BadInput
from cbam_deploy.foreign_code import exits_as_errors, foreign_code
from cbam_deploy.provenance import ModelIdentity, Provenance
from cbam_deploy.runtimes.pytorch import own_array, own_tensor, tensors_of


@dataclass(frozen=True)
class Reference:
    """A module in evaluation mode, what to call it in a report, and which it is by name."""

    module: nn.Module
    label: str
    identity: ModelIdentity | None = None

    def run(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Outputs in the module's order, float32 for floating-point inputs of any width.

        Raises:
            BadInput: the module does not take these inputs.
        """
        shapes = ", ".join(str(list(array.shape)) for array in inputs)
        hint = "give the model that the artefact was made from with --reference"
        with (
            torch.inference_mode(),
            foreign_code(f"reference {self.label}: running it on inputs of shape {shapes}", hint),
            exits_as_errors(),
        ):
            outputs = self.module(*map(as_tensor, inputs))
        return list(map(own_array, tensors_of(outputs)))


def as_tensor(array: NDArray[Any]) -> torch.Tensor:
    """A copy of `array` as a tensor; every floating-point type becomes float32."""
    tensor = own_tensor(array)
    return tensor.float() if tensor.is_floating_point() else tensor


def open_reference(
    artefact: Path,
    provenance: Provenance | None,
    given: str | nn.Module | None = None,
    weights: str | Path | None = None,
) -> Reference:
    """The reference of `artefact`: as given, or rebuilt from its provenance.

    A module is copied, so that the caller's stays in its mode, dtype and place. A MODEL string and
    what the file records are understood as `models.recorded.reference_identity` has it. `weights`
    alone puts other weights into the recorded model.

    Raises:
        BadInput: nothing says what the reference is, only the file names its factory or checkpoint,
            or it cannot be built or loaded.
    """
    if isinstance(given, nn.Module):
        if weights is not None:
            raise BadInput(
                "weights are given for a reference that is a module",
                "load them into the module, or give the reference as a MODEL string",
            )
        module = copy.deepcopy(given).float().cpu().eval()
        return Reference(module, type(given).__name__)
    from cbam_deploy.models import load_model
    from cbam_deploy.models.recorded import reference_identity

    identity = reference_identity(artefact, provenance, given, weights)
    return Reference(load_model(identity).float().eval(), _label(identity), identity)


def _label(identity: ModelIdentity) -> str:
    attention = "" if identity.attention in (None, "none") else f" + {identity.attention}"
    own = "as the factory made it" if ":" in identity.name else f"seed {identity.seed}"
    weights = Path(identity.weights).name if identity.weights else own
    return f"{identity.name}{attention} ({weights})"
