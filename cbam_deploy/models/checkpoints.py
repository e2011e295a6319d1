"""Read weights without running anybody's code, and refuse those of another model.

Both safetensors files and PyTorch files (``torch.load(weights_only=True)``) are read. Where in the
file the state dict is, and by which names, `checkpoint_entries` finds. A file that `train` wrote
carries its provenance in the metadata, under `provenance.METADATA_KEY`.
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

from cbam_deploy.command_files import check_regular
from cbam_deploy.errors import BadInput, in_one_line
from cbam_deploy.foreign_code import foreign_code
from cbam_deploy.models.checkpoint_entries import (
    account,
    contents,
    entries,
    fitting,
    preferred,
    without_wrappers,
)
from cbam_deploy.models.weight_check import (
    COUNTER,
    check_kinds,
    check_stored,
    check_values,
    tensors_of,
)
from cbam_deploy.provenance import METADATA_KEY, Provenance

_LISTED_KEYS = 8


@dataclass(frozen=True)
class Checkpoint:
    """Weights as read from a file.

    Attributes:
        state_dict: tensors on the CPU, by parameter or buffer name.
        metadata: texts by name.
        place: the file, and where in it, for messages.
        account: which weights of the file these are, where that was a choice.
    """

    state_dict: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    place: str = ""
    account: str | None = None

    @property
    def provenance(self) -> Provenance | None:
        """What `train` recorded, None in a checkpoint of other origin."""
        text = self.metadata.get(METADATA_KEY)
        return Provenance.loads(text) if text else None


def load_state(path: str | Path, own: Mapping[str, Tensor] | None = None) -> Checkpoint:
    """Read a checkpoint: a state dict, or dicts with one somewhere inside.

    Args:
        path: the file.
        own: tensors of the network that the weights are for. What fits them is taken, by their
            names. None takes the entry of the best known key, and what wrappers (``module.``) put
            before every name away.

    Raises:
        BadInput: the file is missing, a folder, damaged, holds more than data, or no state dict;
            its tensors are sparse, quantized or without values, or not those that `train` recorded;
            several entries fit as well, and differ.
    """
    path = Path(path)
    if not path.exists():
        raise BadInput(f"{path}: no such checkpoint", "give an existing file with --weights")
    if path.is_dir():
        raise BadInput(f"{path}: is a folder, not a checkpoint", "give a file with --weights")
    if path.suffix == ".safetensors":
        payload, metadata = _load_safetensors(path)
    else:
        payload = load_torch_file(path)
        metadata = _metadata(payload)
    found = entries(payload)
    if not found:
        raise BadInput(
            f"{path}: holds no state dict; it has {contents(payload) or 'nothing in it'}",
            "save one: torch.save(model.state_dict(), 'weights.pt')",
        )
    fit = None if own is None else fitting(found, own, path)
    entry = preferred(found) if fit is None else fit.entry
    place = f"{path}, {entry.place}" if entry.keys else str(path)
    check_stored(entry.state_dict, place)
    recorded = _check_recorded(entry.state_dict, metadata, path)
    if fit is None:
        state = entry.state_dict if recorded else without_wrappers(entry.state_dict)
        return Checkpoint(dict(state), metadata, place)
    return Checkpoint(fit.state_dict, metadata, place, account(payload, fit))


def load_torch_file(path: Path) -> Any:
    """What `torch.save` wrote to `path`, on the CPU, if it is nothing but data; raises BadInput."""
    check_regular(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})", "check the file") from error
    except Exception as error:  # The unpickler answers damaged bytes with errors of any kind.
        raise _unreadable(path, error) from error


def apply_state(model: nn.Module, state_dict: Mapping[str, Tensor], path: str | Path) -> None:
    """Put `state_dict` into `model`, in place, if every name, shape, type and value fits.

    BatchNorm's ``num_batches_tracked``, which old checkpoints lack and inference never uses, may
    be missing.

    Args:
        model: receives the weights.
        state_dict: tensors by name.
        path: the file they come from, for the message.

    Raises:
        BadInput: names are missing or unexpected, or shapes differ (the message lists them), or a
            tensor is not what a network computes with (`weight_check`).
    """
    own = tensors_of(model)
    counters = {name for name in own if name.endswith(COUNTER)}
    missing = sorted(own.keys() - state_dict.keys() - counters)
    unexpected = sorted(state_dict.keys() - own.keys())
    check_stored(state_dict, str(path))
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
    check_kinds(own, state_dict, str(path))
    check_values(model, state_dict, str(path))
    with foreign_code(f"{path}: loading it into {type(model).__name__}"):
        model.load_state_dict(dict(state_dict), strict=False)


def state_dict_sha256(state_dict: Mapping[str, Tensor]) -> str:
    """Hash of the content: each tensor's name, dtype, shape and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().cpu().resolve_conj().resolve_neg().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{list(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _load_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return state_dict, dict(file.metadata() or {})
    except Exception as error:  # Types that this torch lacks are errors of any kind.
        reason = in_one_line(error)
        if isinstance(error, SafetensorError | OSError):
            reason = f"is not a safetensors file, or is damaged ({reason})"
        else:
            reason = f"cannot be read ({reason})"
        raise BadInput(f"{path}: {reason}", "get the file again") from error


def _metadata(payload: Any) -> dict[str, str]:
    recorded = payload.get("metadata") if isinstance(payload, Mapping) else None
    if not isinstance(recorded, Mapping):
        return {}
    return {str(key): text for key, text in recorded.items() if isinstance(text, str)}


def _check_recorded(state: dict[str, Tensor], metadata: dict[str, str], path: Path) -> bool:
    """Whether `train` recorded these weights; raises `BadInput` where they are others."""
    text = metadata.get(METADATA_KEY)
    if not text:
        return False
    try:
        model = Provenance.loads(text).model
    except BadInput as error:
        raise BadInput(f"{path}: {error.message}", error.hint) from error
    if model is None or model.weights_sha256 is None:
        return False
    if state_dict_sha256(state) != model.weights_sha256:
        raise BadInput(
            f"{path}: the weights are not those that training recorded "
            f"(sha256 {model.weights_sha256[:12]}…)",
            "get the file again, or save changed weights without its metadata",
        )
    return True


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
