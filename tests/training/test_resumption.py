"""An altered `last.pt` is refused in one sentence, or resumes as if it had not been altered."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cbam_deploy.errors import BadInput
from cbam_deploy.models import load_state, state_dict_sha256
from cbam_deploy.models.factory import call_factory
from cbam_deploy.training import resumption
from cbam_deploy.training.precision import MixedPrecision
from cbam_deploy.training.result import TrainResult
from cbam_deploy.training.resumption import Learner, Progress, content_sha256, read_last

CYCLE: list[Any] = []
CYCLE.append(CYCLE)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    QUANTIZED = torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)
# Something of every kind, to be put where something of another kind belongs.
OTHERS: tuple[Any, ...] = (
    None,
    True,
    -1,
    3,
    10**30,
    math.nan,
    -math.inf,
    0.25,
    "1",
    "",
    [],
    [1],
    {},
    {"0": 1},
    CYCLE,
    torch.zeros(2, 3),
    torch.zeros((), dtype=torch.complex64),
    torch.zeros(2, 3).to_sparse(),
    QUANTIZED,
)


def tensors_like(tensor: Tensor) -> Iterator[Tensor]:
    """Tensors that could be in the place of `tensor`, and must not."""
    yield tensor.double()
    yield tensor.to(torch.complex64)
    yield tensor[None]
    yield tensor.reshape(-1)[:0]
    yield tensor.to_sparse()
    yield tensor.to(torch.bool)
    yield tensor + 1
    if tensor.is_floating_point():
        yield torch.full_like(tensor, math.nan)
        yield torch.full_like(tensor, math.inf)


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything inside; of lists and tensors by name the first few stand for all."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from paths(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(2, len(value))):
            yield from paths(value[index], (*path, index))


def alterations(state: dict[str, Any], path: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    """Copies of `state` with what is at `path` replaced, taken out, or something put beside it."""
    value = state
    for step in path:
        value = value[step]
    instead = [*OTHERS, *(tensors_like(value) if isinstance(value, Tensor) else ())]
    for other in instead:
        yield replaced(state, path, lambda parent, key, other=other: parent.__setitem__(key, other))
    yield replaced(state, path, lambda parent, key: parent.pop(key))
    if isinstance(value, dict):
        yield replaced(state, path, lambda parent, key: parent[key].update(more=torch.zeros(1)))
    if isinstance(value, list):
        yield replaced(state, path, lambda parent, key: parent[key].append(parent[key][:1]))


def replaced(state: Any, path: tuple[Any, ...], change: Callable[[Any, Any], Any]) -> Any:
    """A copy of the containers along `path`, changed at its end; all else is shared."""
    result = parent = copy.copy(state)
    for step in path[:-1]:
        parent[step] = copy.copy(parent[step])
        parent = parent[step]
    if isinstance(parent[path[-1]], dict | list):
        parent[path[-1]] = copy.copy(parent[path[-1]])
    change(parent, path[-1])
    return result


@pytest.fixture
def finished(quick: Callable[..., TrainResult], tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a run of two epochs, and what its `last.pt` holds."""
    quick("run", epochs=2)
    return tmp_path / "run", torch.load(tmp_path / "run/last.pt", weights_only=True)


def as_read(progress: Progress) -> str:
    """All of it that a resumed run depends on: not the rate, which follows from the epoch."""
    optimizer = copy.deepcopy(progress.optimizer)
    for group in optimizer["param_groups"]:
        del group["lr"]
    epochs = [vars(epoch) for epoch in progress.epochs]
    state = {"model": progress.model, "optimizer": optimizer, "epochs": epochs}
    return content_sha256({**state, "precision": progress.precision, "configuration": {}})


@pytest.mark.parametrize("hashed", [True, False])
def test_whatever_is_altered_is_refused_by_name_or_changes_nothing(
    finished: tuple[Path, dict[str, Any]], network: str, hashed: bool, monkeypatch: Any
) -> None:
    folder, state = finished
    module = call_factory(network)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    learner = Learner(module, optimizer, MixedPrecision("none", torch.device("cpu")))
    configuration = state["configuration"]
    if not hashed:  # As the version before wrote it: other numbers in their range go unseen.
        state = {key: value for key, value in state.items() if key != "sha256"}
    expected = as_read(read_last(folder / "last.pt", configuration, learner))
    tried, resumed = 0, []
    refusals: set[str] = set()
    for path in paths(state):
        for altered in alterations(state, path):
            # What is in memory instead of a file: thousands of files would take minutes.
            monkeypatch.setattr(resumption, "load_torch_file", lambda _, state=altered: state)
            tried += 1
            try:
                progress = read_last(folder / "last.pt", configuration, learner)
            except BadInput as error:
                refusals.add(error.message)
            else:
                if as_read(progress) != expected:
                    resumed.append((path, progress))
    assert tried > 1000
    start = f"{folder / 'last.pt'}: "
    assert [told for told in refusals if not told.startswith(start) or "\n" in told] == []
    assert max(map(len, refusals)) < len(start) + 200
    if hashed:
        assert [path for path, _ in resumed] == []
    for path, progress in resumed:
        # Other values of the same kind, shape and range: what is put in place works.
        assert path[0] in ("model", "optimizer", "epochs")
        module.load_state_dict(progress.model)
        optimizer.load_state_dict(progress.optimizer)


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("model", "0.weight"), torch.zeros(1), "under 0.weight torch.float32 [1], where it is"),
        (("model",), [1], "the model is no dictionary, but a list"),
        (("optimizer", "state", 0, "momentum_buffer"), torch.zeros(3), "momentum of parameter 0"),
        (("optimizer", "param_groups", 0, "momentum"), 0.5, "the optimizer has momentum 0.5"),
        (("epochs", 0, "train_loss"), "low", "epoch 1 has train_loss 'low'"),
        (("epochs", 1, "number"), -2, "epoch 2 has number -2"),
        (("epochs", 1, "val_accuracy"), math.nan, "epoch 2 has val_accuracy nan"),
        (("configuration", "lr"), torch.ones(2), "its configuration is no plain data"),
        (("epochs", 0, "train_loss"), 0.5, "was altered after it was written"),
    ],
    ids=str,
)
def test_the_error_says_what_is_wrong_and_nothing_is_touched(
    finished: tuple[Path, dict[str, Any]],
    quick: Callable[..., TrainResult],
    path: tuple[Any, ...],
    value: Any,
    told: str,
) -> None:
    folder, state = finished
    altered = replaced(state, path, lambda parent, key: parent.update({key: value}))
    torch.save(altered, folder / "last.pt")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(BadInput) as caught:
        quick("run", epochs=3, resume=True)
    assert caught.value.message.startswith(f"{folder / 'last.pt'}: ")
    assert told in caught.value.message
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_run_of_the_version_before_still_resumes(
    finished: tuple[Path, dict[str, Any]], quick: Callable[..., TrainResult]
) -> None:
    folder, state = finished
    for added in ("sha256", "precision"):
        del state[added]
    del state["configuration"]["amp"]
    torch.save(state, folder / "last.pt")
    quick("run", epochs=3, resume=True)
    quick("whole", epochs=3)
    resumed, whole = (load_state(folder.parent / name / "last.pt") for name in ("run", "whole"))
    assert state_dict_sha256(resumed.state_dict) == state_dict_sha256(whole.state_dict)


@pytest.mark.parametrize("damage", ["absent", "broken", "folder"])
def test_a_run_whose_best_weights_are_lost_is_refused_before_it_goes_on(
    finished: tuple[Path, dict[str, Any]], quick: Callable[..., TrainResult], damage: str
) -> None:
    best = finished[0] / "best.safetensors"
    best.unlink()
    if damage == "broken":
        best.write_bytes(b"no weights")
    if damage == "folder":
        best.mkdir()
    with pytest.raises(BadInput, match=r"best\.safetensors"):
        quick("run", epochs=3, resume=True)


def test_a_last_file_that_is_no_file_is_refused(
    finished: tuple[Path, dict[str, Any]], quick: Callable[..., TrainResult]
) -> None:
    folder, _ = finished
    (folder / "last.pt").unlink()
    os.mkfifo(folder / "last.pt")
    with pytest.raises(BadInput, match=r"last\.pt: is not a regular file"):
        quick("run", resume=True)
