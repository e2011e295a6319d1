"""Which part of a checkpoint file is the network's state dict, and by which names it has it.

Training scripts put the state dict under a key of their own, beside other entries, and wrappers
(DataParallel, torch.compile, Lightning) put something before the names. Both are found by what fits
the network: the entry, at any key, most of whose names and shapes are the network's once a common
prefix is off. Where several fit as well, the order is: what was trained before its running average
(``ema``), then `KEYS`, then names at the top of the file; two that this does not tell apart and
that differ are refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cbam_deploy.errors import BadInput
from cbam_deploy.models.weight_check import COUNTER

# Where training scripts put the state dict; the first that is there is taken.
KEYS = (
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "generator",
)
# Parts of names that wrappers add, wherever they stand.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_AVERAGES = {"ema", "avg", "average", "averaged", "swa", "shadow"}
_DEEPEST = 4
_LISTED = 8


@dataclass(frozen=True)
class Entry:
    """One state dict in a file.

    Attributes:
        keys: where in the file, empty for its top.
        state_dict: its tensors by the names in the file.
    """

    keys: tuple[str, ...]
    state_dict: dict[str, Tensor]

    @property
    def place(self) -> str:
        """Such as ``'model'``."""
        return "'" + ".".join(self.keys) + "'" if self.keys else "the top of the file"


@dataclass(frozen=True)
class Fit:
    """An entry by the names of a network.

    Attributes:
        entry: it.
        state_dict: tensors by the network's names; those that the network does not know by theirs.
        removed: prefix taken off every name.
        left_out: names in the file of what stands beside the network.
        complete: whether every name and shape of the network is there, and nothing else.
        matched: how many names and shapes are the network's.
    """

    entry: Entry
    state_dict: dict[str, Tensor]
    removed: str
    left_out: tuple[str, ...]
    complete: bool
    matched: int

    @property
    def preference(self) -> tuple[bool, int, int]:
        """Smaller is preferred."""
        prefix = tuple(self.removed.split(".")[:-1])
        averaged, rank = _preference((*self.entry.keys, *prefix))
        return averaged, _preference(self.entry.keys)[1], rank


def entries(payload: Any) -> list[Entry]:
    """Every mapping in `payload` that has tensors by name, from the top down."""
    found: list[Entry] = []
    seen: set[int] = set()
    level: list[tuple[tuple[str, ...], Any]] = [((), payload)]
    for _ in range(_DEEPEST):
        below = []
        for keys, mapping in level:
            if not isinstance(mapping, Mapping) or id(mapping) in seen:
                continue
            seen.add(id(mapping))
            named = {key: value for key, value in mapping.items() if isinstance(key, str)}
            tensors = {key: value for key, value in named.items() if isinstance(value, Tensor)}
            if tensors:
                found.append(Entry(keys, tensors))
            below += [((*keys, key), value) for key, value in named.items()]
        level = below
    return found


def preferred(found: list[Entry]) -> Entry:
    """The entry to take where no network says which fits."""
    return min(found, key=lambda entry: _preference(entry.keys))


def fitting(found: list[Entry], own: Mapping[str, Tensor], path: Path) -> Fit:
    """The entry that fits the network whose tensors are `own`, by its names.

    Raises:
        BadInput: several fit as well, and differ.
    """
    fits = [fit for entry in found for fit in _fits(entry, own)]
    best = max((fit.complete, fit.matched) for fit in fits)
    equals = [fit for fit in fits if (fit.complete, fit.matched) == best]
    first = min(equals, key=lambda fit: fit.preference)
    rivals = [fit for fit in equals if fit.preference == first.preference]
    different = [fit for fit in rivals if not _same(fit.state_dict, first.state_dict)]
    if different and first.matched:
        names = " and ".join(_described(fit) for fit in (first, *different[:3]))
        raise BadInput(
            f"{path}: {names} fit the network equally well, and differ",
            "save the one that is meant as a file of its own",
        )
    return first


def without_wrappers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state_dict` without the wrappers' parts that every name begins with."""
    result = dict(state_dict)
    while result and any(
        all(name.startswith(f"{wrapper}.") for name in result) for wrapper in _WRAPPERS
    ):
        result = {name.partition(".")[2]: tensor for name, tensor in result.items()}
    return result


def contents(payload: Any, keys: tuple[str, ...] = ()) -> str:
    """What stands at the top of a file beside the entry `keys`, for messages."""
    if not isinstance(payload, Mapping):
        return f"a {type(payload).__name__}"
    names = [str(key) for key in payload if (str(key),) != keys[:1]]
    shown = ", ".join(f"'{name[:60]}'" for name in names[:_LISTED])
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{shown}{more}"


def account(payload: Any, fit: Fit) -> str | None:
    """Which weights were taken and what was done to their names; None where all is as expected."""
    keys = fit.entry.keys
    if not (keys or fit.removed or fit.left_out):
        return None
    parts = [f"weights taken from {fit.entry.place}"]
    beside = contents(payload, keys) if keys else ""
    if beside:
        parts[0] += f" (beside {beside})"
    epoch = payload.get("epoch") if isinstance(payload, Mapping) else None
    if isinstance(epoch, Tensor) and epoch.numel() == 1 and not epoch.is_meta:
        epoch = epoch.item()
    if isinstance(epoch, int | float):
        parts.append(f"epoch {epoch}")
    if fit.removed:
        parts.append(f"prefix '{fit.removed}' removed")
    if fit.left_out:
        shown = ", ".join(fit.left_out[:_LISTED])
        more = f" and {len(fit.left_out) - _LISTED} more" if len(fit.left_out) > _LISTED else ""
        parts.append(f"left out: {shown}{more}")
    return ", ".join(parts)


def _preference(keys: tuple[str, ...]) -> tuple[bool, int]:
    words = {word for key in keys for word in re.split(r"[^a-z]+", key.lower())}
    known = [KEYS.index(key) for key in keys if key in KEYS]
    return bool(words & _AVERAGES), min(known, default=len(KEYS) + bool(keys))


def _fits(entry: Entry, own: Mapping[str, Tensor]) -> Iterator[Fit]:
    """The entry with each prefix off that leaves most names of the network."""
    ours, theirs = _plain_names(own), _plain_names(entry.state_dict)
    shapes = {plain: own[name].shape for plain, name in ours.items()}
    counts: Counter[str] = Counter()
    for plain, name in theirs.items():
        for prefix, rest in _splits(plain):
            if rest in shapes and shapes[rest] == entry.state_dict[name].shape:
                counts[prefix] += 1
    most = max(counts.values(), default=0)
    prefixes = [prefix for prefix, count in counts.items() if count == most] or [""]
    if "" in prefixes or 2 * most < len(own):
        prefixes = [""]
    for prefix in prefixes:
        yield _fit(entry, own, ours, theirs, prefix, most)


def _fit(
    entry: Entry,
    own: Mapping[str, Tensor],
    ours: Mapping[str, str],
    theirs: Mapping[str, str],
    prefix: str,
    matched: int,
) -> Fit:
    state: dict[str, Tensor] = {}
    outside: dict[str, Tensor] = {}
    for plain, name in theirs.items():
        rest = plain.removeprefix(prefix)
        if plain.startswith(prefix) and not (rest not in ours and _is_count(name, entry)):
            state[ours.get(rest, rest)] = entry.state_dict[name]
        else:
            outside[name] = entry.state_dict[name]
    needed = {name for name in own if not name.endswith(COUNTER)}
    complete = (
        needed <= state.keys() <= own.keys()
        and all(state[name].shape == own[name].shape for name in state)
        and bool(state)
    )
    if not complete:
        state |= {name: tensor for name, tensor in outside.items() if name not in state}
        outside = {}
    kept = next(iter(name for plain, name in theirs.items() if plain.startswith(prefix)), "")
    return Fit(entry, state, _removed(kept, ours, prefix), tuple(outside), complete, matched)


def _removed(name: str, ours: Mapping[str, str], prefix: str) -> str:
    """What stands in the file before the network's own name: wrappers, and the prefix."""
    words = name.split(".")
    for start in range(len(words)):
        rest = ".".join(words[start:])
        if rest in ours.values() or rest in ours:
            return "".join(f"{word}." for word in words[:start])
    return prefix


def _plain_names(names: Mapping[str, Any]) -> dict[str, str]:
    """Names by what they are without wrappers' parts; as they are where that is not one to one."""
    plain = {
        ".".join(word for word in name.split(".") if word not in _WRAPPERS): name for name in names
    }
    return plain if len(plain) == len(names) else {name: name for name in names}


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Every prefix of whole words, with the rest."""
    yield "", name
    at = name.find(".")
    while at >= 0:
        yield name[: at + 1], name[at + 1 :]
        at = name.find(".", at + 1)


def _is_count(name: str, entry: Entry) -> bool:
    """Whether this is a number of a wrapper's or a script's own, such as ``n_averaged``."""
    tensor = entry.state_dict[name]
    return "." not in name and tensor.ndim == 0 and not tensor.is_floating_point()


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        tensor is other[name] or torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def _described(fit: Fit) -> str:
    return f"{fit.entry.place} with prefix '{fit.removed}'" if fit.removed else fit.entry.place
