"""Read weights without running anybody's code, and refuse those of another model.

Both safetensors files and PyTorch files (``torch.load(weights_only=True)``) are read. A file that
`train` wrote carries its provenance in the metadata, under `provenance.METADATA_KEY`.
"""

from __future__ import annotations

import hashlib
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cbam_deploy.errors import BadInput
from cbam_deploy.provenance import METADATA_KEY, Provenance

# Where training scripts put the state dict inside their checkpoint.
_NESTED_UNDER = ("state_dict", "model", "model_state_dict")
# What DataParallel and torch.compile put before every name.
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
_LISTED_KEYS = 8


@dataclass(frozen=True)
class Checkpoint:
    """Weights as read from a file.

    Attributes:
        state_dict: tensors on the CPU, by parameter or buffer name.
        metadata: texts by name.
    """

    state_dict: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def provenance(self) -> Provenance | None:
        """What `train` recorded, None in a checkpoint of other origin."""
        text = self.metadata.get(METADATA_KEY)
        return Provenance.loads(text) if text else None


def load_state(path: str | Path) -> Checkpoint:
    """Read a checkpoint: a state dict, or a dict with one under ``state_dict`` or ``model``.

    Prefixes that wrappers put before every name (``module.``) are taken away.

    Raises:
        BadInput: the file is missing, a folder, damaged, holds more than data, or no state dict.
    """
    path = Path(path)
    if not path.exists():
        raise BadInput(f"{path}: no such checkpoint", "give an existing file with --weights")
    if path.is_dir():
        raise BadInput(f"{path}: is a folder, not a checkpoint", "give a file with --weights")
    if path.suffix == ".safetensors":
        checkpoint = _load_safetensors(path)
    else:
        checkpoint = _from_torch_payload(load_torch_file(path), path)
    return Checkpoint(_without_wrapper_prefix(checkpoint.state_dict), checkpoint.metadata)


def load_torch_file(path: Path) -> Any:
    """What `torch.save` wrote to `path`, on the CPU, if it is nothing but data; raises BadInput."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})", "check the file") from error
    except Exception as error:  # The unpickler answers damaged bytes with errors of any kind.
        raise _unreadable(path, error) from error


def apply_state(model: nn.Module, state_dict: Mapping[str, Tensor], path: str | Path) -> None:
    """Put `state_dict` into `model`, in place, if every name and shape fits.

    BatchNorm's ``num_batches_tracked``, which old checkpoints lack and inference never uses, may
    be missing.

    Args:
        model: receives the weights.
        state_dict: tensors by name.
        path: the file they come from, for the message.

    Raises:
        BadInput: names are missing or unexpected, or shapes differ; the message lists them.
    """
    own = model.state_dict()
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    missing = sorted(own.keys() - state_dict.keys() - counters)
    unexpected = sorted(state_dict.keys() - own.keys())
    misshapen = [
        f"{name} {list(state_dict[name].shape)} instead of {list(own[name].shape)}"
        for name in sorted(own.keys() & state_dict.keys())
        if state_dict[name].shape != own[name].shape
    ]
    found = (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshapen))
    faults = [f"{kind} {_listed(names)}" for kind, names in found if names]
    if faults:
        raise BadInput(
            f"{path}: the weights are of another model: {'; '.join(faults)}",
            "give the model, --attention, --gate, --num-classes and --stem it was trained with",
        )
    model.load_state_dict(dict(state_dict), strict=False)


def state_dict_sha256(state_dict: Mapping[str, Tensor]) -> str:
    """Hash of the content: each tensor's name, dtype, shape and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{list(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _load_safetensors(path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Checkpoint(state_dict, dict(file.metadata() or {}))
    except (SafetensorError, OSError) as error:
        raise BadInput(
            f"{path}: is not a safetensors file, or is damaged ({error})", "get the file again"
        ) from error


def _from_torch_payload(payload: Any, path: Path) -> Checkpoint:
    metadata: dict[str, str] = {}
    state = payload
    if isinstance(payload, Mapping):
        state = next(
            (payload[key] for key in _NESTED_UNDER if isinstance(payload.get(key), Mapping)),
            payload,
        )
        recorded = payload.get("metadata")
        if isinstance(recorded, Mapping):
            metadata = {str(key): text for key, text in recorded.items() if isinstance(text, str)}
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(
            isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
        )
    ):
        raise BadInput(
            f"{path}: holds no state dict",
            "save one: torch.save(model.state_dict(), 'weights.pt')",
        )
    return Checkpoint(dict(state), metadata)


def _without_wrapper_prefix(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _WRAPPER_PREFIXES:
        if state_dict and all(name.startswith(prefix) for name in state_dict):
            state_dict = {name[len(prefix) :]: state_dict[name] for name in state_dict}
    return state_dict


def _unreadable(path: Path, error: Exception) -> BadInput:
    safe = "save the state dict as safetensors: safetensors.torch.save_file(model.state_dict(), …)"
    code = re.search(r"(?:GLOBAL|global:?) ([\w.]+\.\w+)", str(error))
    if code:
        return BadInput(f"{path}: is a pickle with code in it ({code[1]})", safe)
    if "TorchScript" in str(error):
        return BadInput(f"{path}: is a TorchScript program, not a checkpoint", safe)
    with path.open("rb") as file:
        starts_as_pickle = file.read(1) == b"\x80"  # The opcode that begins every pickle.
    if starts_as_pickle or zipfile.is_zipfile(path):
        return BadInput(
            f"{path}: is a pickle that is damaged or holds more than tensors, such as code", safe
        )
    return BadInput(f"{path}: is not a PyTorch checkpoint, or is damaged", "get the file again")


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_LISTED_KEYS])
    rest = len(names) - _LISTED_KEYS
    return f"{len(names)}: {shown}" + (f" and {rest} more" if rest > 0 else "")
