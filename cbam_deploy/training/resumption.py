"""`last.pt` of an earlier run, believed only as far as it fits the run that is to go on.

Everything in the file is checked before any of it is used: its kind, shape and range against the
network and optimizer as they are built anew, and all together by the hash that was written with it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.int8.qdq import SMALLEST_SCALE
from cbam_deploy.models.checkpoints import load_torch_file, state_dict_sha256
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.training.precision import MixedPrecision
from cbam_deploy.training.quantization import QuantizedNetwork
from cbam_deploy.training.result import Epoch
from cbam_deploy.training.settings import FLT_MAX

HASH = "sha256"
_HASHED = ("model", "optimizer", "epochs", "precision", "configuration", "scales")
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Progress:
    """Where a run stands after an epoch: weights, optimizer state and the epochs so far.

    `precision` is the state of mixed precision, empty where that has none; `scales` are those of
    fake quantization, by tensor, empty where there is none.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    epochs: tuple[Epoch, ...]
    precision: dict[str, Any] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Learner:
    """What an earlier run's state goes into, as it is before the first step."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    precision: MixedPrecision
    quantized: QuantizedNetwork | None = None

    @property
    def trained(self) -> nn.Module:
        """What is trained: `network`, or `quantized`, which computes with its weights."""
        return self.quantized or self.network


class _Fault(Exception):
    """What is wrong with the file, as the end of a sentence about it."""


def read_last(path: Path, configuration: dict[str, Any], learner: Learner) -> Progress:
    """What the run in `path` came to, if it is one of this `configuration`.

    Raises:
        BadInput: the file is damaged, altered, not from a training run or from another one; the
            message says what in it is wrong.
    """
    if not path.is_file():
        raise BadInput(f"{path}: is not a regular file", "start in another folder")
    state = load_torch_file(path)
    try:
        return _checked(state, configuration, learner)
    except _Fault as fault:
        raise BadInput(
            f"{path}: {fault}", "resume from an unaltered copy, or start in another folder"
        ) from None
    except RecursionError:
        raise BadInput(
            f"{path}: is not from a training run, but holds itself", "start in another folder"
        ) from None


def content_sha256(state: Mapping[str, Any]) -> str:
    """Hash of what resuming takes: tensors by their content, all else as Python writes it."""
    tensors: dict[str, Tensor] = {}
    digest = hashlib.sha256()
    for path, value in _leaves({key: state[key] for key in _HASHED if key in state}):
        if isinstance(value, Tensor) and _is_array(value):
            tensors[path] = value
        else:
            digest.update(f"{path}={value!r}\n".encode())
    digest.update(state_dict_sha256(tensors).encode())
    return digest.hexdigest()


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            yield from _leaves(value[key], f"{path}/{key!r}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}/{index}")
    else:
        yield path, value


def _is_array(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized)


def _checked(state: Any, configuration: dict[str, Any], learner: Learner) -> Progress:
    if not isinstance(state, dict) or not {*_HASHED} - {"precision", "scales"} <= state.keys():
        raise _Fault("is not from a training run")
    state = {"precision": {}, **state}  # Older runs knew no mixed precision.
    _check_configuration(state["configuration"], configuration)
    epochs = _epochs(state["epochs"])
    model = _tensors(state["model"], learner.network.state_dict(), "the model")
    progress = Progress(
        model,
        _optimizer(state["optimizer"], learner.optimizer),
        epochs,
        _precision(state["precision"], learner.precision.state()),
        _scales(state.get("scales", {}), learner.quantized.scales() if learner.quantized else {}),
    )
    if HASH in state and state[HASH] != content_sha256(state):
        raise _Fault("was altered after it was written: its content has another hash")
    return progress


def _check_configuration(found: Any, configuration: dict[str, Any]) -> None:
    if not isinstance(found, dict) or not all(
        isinstance(value, _PLAIN) for _, value in _leaves(found)
    ):
        raise _Fault("is not from a training run: its configuration is no plain data")
    # Older runs knew no mixed precision, no INT8, and one way only to prepare pictures.
    before = {"amp": "none", "quantize": None, **asdict(Preprocessing()), **found}
    for key, value in configuration.items():
        if before.get(key) != value:
            was, is_ = ("none" if one is None else one for one in (before.get(key), value))
            raise _Fault(f"the run was made with {key} {was}, not {is_}")


def _epochs(found: Any) -> tuple[Epoch, ...]:
    if not isinstance(found, list) or not found:
        raise _Fault("has no list of epochs")
    names = {each.name for each in fields(Epoch)}
    for number, epoch in enumerate(found, 1):
        if not isinstance(epoch, dict) or epoch.keys() != names:
            raise _Fault(f"epoch {number} does not have {', '.join(sorted(names))}")
        validated = epoch["val_accuracy"] is not None
        right = {
            "number": _in(epoch["number"], number, number, integer=True),
            "lr": _in(epoch["lr"], 0),
            "train_loss": _in(epoch["train_loss"], 0),
            "train_accuracy": _in(epoch["train_accuracy"], 0, 1),
            # A network may be so bad that its loss on other pictures is no number.
            "val_loss": isinstance(epoch["val_loss"], float if validated else type(None)),
            "val_accuracy": not validated or _in(epoch["val_accuracy"], 0, 1),
            "seconds": _in(epoch["seconds"], 0),
        }
        for name, holds in right.items():
            if not holds:
                raise _Fault(f"epoch {number} has {name} {_shown(epoch[name])}")
    return tuple(Epoch(**epoch) for epoch in found)


def _in(value: Any, low: float, high: float = math.inf, *, integer: bool = False) -> bool:
    """Whether `value` is a finite number of that range."""
    if isinstance(value, bool) or not isinstance(value, int if integer else int | float):
        return False
    return low <= value <= high and value < math.inf


def _tensors(found: Any, own: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """`found`, if it has the names of `own`, and under each a tensor like it."""
    if not isinstance(found, dict):
        raise _Fault(f"{what} is no dictionary, but {_shown(found)}")
    if found.keys() != own.keys():
        name = sorted(found.keys() ^ own.keys(), key=repr)[0]
        kind = "has no" if name in own else "has an unknown"
        raise _Fault(f"{what} {kind} tensor {_shown(name)}")
    for name, tensor in own.items():
        _check_tensor(found[name], tensor, f"{what} has under {name}")
    return found


def _check_tensor(found: Any, own: Tensor, where: str) -> None:
    like = f"{own.dtype} {list(own.shape)}"
    if not isinstance(found, Tensor) or not _is_array(found):
        raise _Fault(f"{where} {_shown(found)}, where it is {like}")
    if (found.dtype, found.shape) != (own.dtype, own.shape):
        raise _Fault(f"{where} {found.dtype} {list(found.shape)}, where it is {like}")
    if found.is_floating_point() and not bool(torch.isfinite(found).all()):
        raise _Fault(f"{where} NaN or infinite values")


def _optimizer(found: Any, own: torch.optim.Optimizer) -> dict[str, Any]:
    """A state for `own`: its hyperparameters, which follow from the options, and found momentum."""
    groups = own.state_dict()["param_groups"]
    if not isinstance(found, dict) or not {"state", "param_groups"} <= found.keys():
        raise _Fault("the optimizer has no state and param_groups")
    _check_groups(found["param_groups"], groups)
    parameters = [parameter for group in own.param_groups for parameter in group["params"]]
    state = found["state"]
    if not isinstance(state, dict):
        raise _Fault(f"the optimizer's state is no dictionary, but {_shown(state)}")
    for index, kept in state.items():
        if not _in(index, 0, len(parameters) - 1, integer=True):
            raise _Fault(f"the optimizer has a state for {_shown(index)}, which is no parameter")
        if not isinstance(kept, dict) or kept.keys() != {"momentum_buffer"}:
            raise _Fault(f"the optimizer keeps for parameter {index} {_shown(kept)}, not momentum")
        if kept["momentum_buffer"] is not None or groups[0]["momentum"]:
            where = f"the optimizer has as momentum of parameter {index}"
            _check_tensor(kept["momentum_buffer"], parameters[index], where)
    return {"state": state, "param_groups": groups}


def _check_groups(found: Any, own: list[dict[str, Any]]) -> None:
    if not isinstance(found, list) or len(found) != len(own):
        raise _Fault("the optimizer is of another kind")
    for group, like in zip(found, own, strict=True):
        if not isinstance(group, dict) or not {"params", "momentum"} <= group.keys():
            raise _Fault("the optimizer is of another kind")
        # The learning rate follows from the epoch; other versions of PyTorch have other entries.
        for name in (like.keys() & group.keys()) - {"lr"}:
            plain = all(isinstance(value, _PLAIN) for _, value in _leaves(group[name]))
            if not plain or group[name] != like[name]:
                raise _Fault(f"the optimizer has {name} {_shown(group[name])}, not {like[name]}")


def _precision(found: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(found, dict) or found.keys() != own.keys():
        raise _Fault("its state of mixed precision is of another kind")
    for name, value in own.items():
        if not _in(found[name], 0, integer=isinstance(value, int)):
            raise _Fault(f"mixed precision has {name} {_shown(found[name])}")
    return found


def _scales(found: Any, own: Mapping[str, float]) -> dict[str, float]:
    if not isinstance(found, dict) or found.keys() != own.keys():
        raise _Fault("its scales are of another network")
    for name, scale in found.items():
        if not _in(scale, SMALLEST_SCALE, FLT_MAX):
            raise _Fault(f"{name} has the scale {_shown(scale)}")
    return found


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {value.dtype} {list(value.shape)} ({value.layout})"
    return repr(value)[:60] if isinstance(value, _PLAIN) else f"a {type(value).__name__}"
