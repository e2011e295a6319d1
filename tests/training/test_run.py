"""A training run: learns, repeats, goes on after an interruption, refuses what cannot work."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cbam_deploy.errors import BadInput, CheckFailed
from cbam_deploy.models import (
    load_identified,
    load_state,
    resolve_identity,
    state_dict_sha256,
)
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.provenance import ModelIdentity
from cbam_deploy.training import epoch as epoch_module
from cbam_deploy.training import preparation
from cbam_deploy.training.result import Epoch, TrainResult
from cbam_deploy.training.run_folder import claimed

Quick = Callable[..., TrainResult]


def content(result: TrainResult) -> tuple[str, str, list[Epoch]]:
    """Everything a run comes to, but for the seconds."""
    folder = Path(result.output)
    return (
        state_dict_sha256(load_state(folder / "best.safetensors").state_dict),
        state_dict_sha256(load_state(folder / "last.pt").state_dict),
        [replace(epoch, seconds=0) for epoch in result.epochs],
    )


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Raise KeyboardInterrupt, as Ctrl-C does, in the step after so many."""
    original = functional.cross_entropy
    calls = iter(range(steps))

    def counted(logits: Tensor, labels: Tensor) -> Tensor:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return original(logits, labels)

    monkeypatch.setattr(epoch_module, "cross_entropy", counted)


def test_the_same_seed_gives_the_same_run_and_another_another(quick: Quick) -> None:
    first = quick("a")
    torch.rand(1)  # What the caller draws meanwhile does not matter.
    again, other = quick("b", workers=0), quick("c", seed=1)
    assert content(first) == content(again)
    assert content(first)[1] != content(other)[1]


def test_training_learns(quick: Quick) -> None:
    result = quick("run", epochs=12, lr_step=8, augmentation="none")
    assert result.epochs[-1].train_loss < 0.5 * result.epochs[0].train_loss
    assert result.best.val_accuracy == 1.0


@pytest.mark.parametrize("steps", [2, 7, 11])
def test_resuming_gives_what_an_uninterrupted_run_gives(
    quick: Quick, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    whole = quick("whole")
    with monkeypatch.context() as patch:
        interrupt_after(patch, steps)  # 3 steps to learn, 2 to test make an epoch.
        with pytest.raises(KeyboardInterrupt):
            quick("stopped")
    resumed = quick("stopped", resume=True)
    assert content(resumed) == content(whole)


def test_an_interruption_leaves_the_last_epochs_files(
    quick: Quick, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    quick("run", epochs=1)
    folder = tmp_path / "run"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == {"best.safetensors", "last.pt", "history.json"}
    interrupt_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        quick("run", epochs=2, resume=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_more_epochs_can_be_added_to_a_finished_run(quick: Quick) -> None:
    assert len(quick("run", epochs=2).epochs) == 2
    assert content(quick("run", epochs=4, resume=True)) == content(quick("whole", epochs=4))
    assert len(quick("run", epochs=3, resume=True).epochs) == 4  # Nothing left to do.


def test_global_random_state_is_left_alone(quick: Quick) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    quick("run", epochs=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lr": 0.05}, "lr 0.1, not 0.05"),
        ({"seed": 1}, "seed 0, not 1"),
        ({"image_size": 16}, "image_size 8, not 16"),
        ({"model": "resnet20"}, "network.py:build, not resnet20"),
    ],
)
def test_resuming_with_other_options_is_refused_by_name(
    quick: Quick, options: dict[str, Any], named: str
) -> None:
    quick("run", epochs=1)
    with pytest.raises(BadInput, match=r"last\.pt: the run was made with") as caught:
        quick("run", resume=True, **options)
    assert named in caught.value.message


def test_an_earlier_run_is_not_overwritten(quick: Quick, tmp_path: Path) -> None:
    quick("run", epochs=1)
    before = (tmp_path / "run/last.pt").read_bytes()
    with pytest.raises(BadInput, match="earlier training run") as caught:
        quick("run", epochs=1)
    assert "--resume" in caught.value.hint
    assert (tmp_path / "run/last.pt").read_bytes() == before


def test_best_weights_are_those_of_the_best_epoch(quick: Quick) -> None:
    # A learning rate that explodes in the end spoils the last epochs.
    explosive = {"lr_step": 4, "lr_gamma": 100.0}
    result = quick("run", epochs=6, **explosive)
    assert result.best.val_accuracy == max(epoch.val_accuracy or 0 for epoch in result.epochs)
    assert result.best.number < 6
    assert result.provenance.model is not None
    assert result.provenance.model.weights_sha256 == content(result)[0]
    shorter = quick("shorter", epochs=result.best.number, **explosive)
    assert content(result)[0] == content(shorter)[1]


def test_without_validation_the_last_epoch_is_kept(quick: Quick, pictures: Path) -> None:
    result = quick("run", data=str(pictures / "train"))
    assert result.best.number == 4
    assert result.best.val_accuracy is None
    assert content(result)[0] == content(result)[1]


def test_validation_pictures_can_be_elsewhere(quick: Quick, pictures: Path) -> None:
    apart = quick("apart", data=str(pictures / "train"), val_data=str(pictures / "val"))
    assert content(apart) == content(quick("inside"))


def test_best_weights_carry_the_provenance_that_rebuilds_them(quick: Quick, tmp_path: Path) -> None:
    result = quick("run", model="resnet20", attention="se", epochs=1, batch_size=24, image_size=16)
    identity, provenance = resolve_identity(ModelIdentity("resnet20", weights=result.weights))
    assert (identity.attention, identity.num_classes) == ("se", 2)
    assert provenance == result.provenance
    assert provenance is not None
    assert provenance.class_names == ("blue", "red")
    assert provenance.preprocessing is not None
    assert provenance.preprocessing.image_size == 16
    assert provenance.model is not None
    network, identity = load_identified(identity)
    assert provenance.model.weights_sha256 == identity.weights_sha256
    assert not network.training
    last = load_state(tmp_path / "run/last.pt").provenance
    assert last is not None
    assert last.class_names == provenance.class_names
    assert last.model == replace(provenance.model, weights="last.pt")


def test_training_can_start_from_a_checkpoint(quick: Quick) -> None:
    first = quick("first", model="resnet20", epochs=1, image_size=16)
    second = quick("second", model="resnet20", epochs=1, image_size=16, weights=first.weights)
    assert second.epochs[0].train_loss < first.epochs[0].train_loss


def test_history_and_result_say_the_same(quick: Quick, tmp_path: Path) -> None:
    result = quick("run")
    history = json.loads((tmp_path / "run/history.json").read_text())
    assert history["epochs"] == [asdict(epoch) for epoch in result.epochs]
    assert [epoch.lr for epoch in result.epochs] == pytest.approx([0.1, 0.1, 0.01, 0.01])
    data = json.loads(json.dumps(result.to_json()))
    assert (data["schema"], data["schema_version"]) == ("cbam_deploy.training", 1)
    assert data["best_epoch"] == result.best.number
    assert len(data["epochs"]) == 4


def test_the_printed_result_has_accuracy_and_weights(quick: Quick) -> None:
    from rich.console import Console

    result = quick("[bold]run[", epochs=1)  # No markup, and nothing to stumble over.
    console = Console(width=400, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(result)
    text = console.export_text()
    assert result.weights in text
    assert "2: blue, red" in text
    assert f"{result.best.val_accuracy:.2%}" in text


def test_a_loss_that_is_no_number_stops_the_run(quick: Quick) -> None:
    with pytest.raises(CheckFailed, match=r"the loss became (nan|inf) in epoch \d") as caught:
        quick("run", lr=1e30)
    assert "--lr" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "photos"}, "photos: the pictures have no labels"),
        ({"data": "digits"}, "gives [1, 2] for one picture, where 10 classes need [1, 10]"),
        ({"val_data": "digits"}, "has no class '0', '1', '2'"),
        ({"val_data": "photos"}, "photos: the pictures have no labels to validate with"),
        ({"model": "resnet21"}, "model 'resnet21' is unknown"),
        ({"epochs": 0}, "--epochs 0"),
        ({"batch_size": -1}, "--batch-size -1"),
        ({"momentum": -0.1}, "--momentum -0.1"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"augmentation": "mixup"}, "augmentation 'mixup'"),
        ({"device": "tpu"}, "device 'tpu'"),
        ({"workers": 10**6}, "1000000 threads"),
        ({"image_size": 10**6}, "1000000 x 1000000 pixels"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    quick: Quick, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput) as caught:
        quick("run", **options)
    assert message in caught.value.message
    assert not (tmp_path / "run").exists()


def test_a_damaged_last_file_is_refused(quick: Quick, tmp_path: Path) -> None:
    quick("run", epochs=1)
    last = tmp_path / "run/last.pt"
    last.write_bytes(last.read_bytes()[:500])
    with pytest.raises(BadInput, match=r"last\.pt"):
        quick("run", resume=True)
    torch.save({"epochs": 3}, last)
    with pytest.raises(BadInput, match="not from a training run"):
        quick("run", resume=True)


@pytest.mark.parametrize(
    ("body", "options", "message"),
    [
        ("nn.Sequential(nn.AvgPool2d(8), nn.Flatten())", {}, "has no parameters to learn"),
        ("nn.Sequential(nn.Linear(8, 2)).requires_grad_(False)", {}, "no parameters to learn"),
        ("Raises()", {}, "picture of 8 x 8 pixels failed (KeyError: 'lost')"),
        ("nn.Sequential(nn.Conv2d(3, 2, 8), nn.BatchNorm2d(2), nn.Flatten())",
         {"batch_size": 1}, "on a batch of 1 failed (ValueError: Expected more than 1 value"),
    ],
)  # fmt: skip
def test_a_network_that_cannot_learn_is_refused(
    quick: Quick, tmp_path: Path, body: str, options: dict[str, int], message: str
) -> None:
    (tmp_path / "other.py").write_text(
        "from torch import nn\nclass Raises(nn.Linear):\n"
        "    def __init__(self): super().__init__(1, 1)\n"
        "    def forward(self, x): raise KeyError('lost')\n"
        f"def build(): return {body}\n"
    )
    with pytest.raises(BadInput) as caught:
        quick("run", model=f"{tmp_path}/other.py:build", **options)
    assert message in caught.value.message


def test_a_folder_at_work_is_refused_to_a_second_training(quick: Quick, tmp_path: Path) -> None:
    with claimed(tmp_path / "run"):
        for resume in (False, True):
            with pytest.raises(BadInput, match="run: another training is at work there"):
                quick("run", epochs=1, resume=resume)
    assert not list((tmp_path / "run").iterdir())
    assert len(quick("run", epochs=1).epochs) == 1


def test_the_claim_of_a_process_that_was_killed_holds_nobody_up(tmp_path: Path) -> None:
    folder, (reads, writes) = tmp_path / "run", os.pipe()
    child = os.fork()
    if child == 0:
        with claimed(folder):
            os.write(writes, b"claimed")
            signal.pause()
    os.read(reads, 7)
    with pytest.raises(BadInput, match="at work there"), claimed(folder):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with claimed(folder):
        assert folder.is_dir()


def test_output_that_is_a_file_is_refused(quick: Quick, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(BadInput, match="is a file, not a folder"):
        quick("run")
    assert (tmp_path / "run").read_text() == "mine"


def test_pictures_of_one_class_teach_nothing(quick: Quick, pictures: Path) -> None:
    (pictures / "one/a").mkdir(parents=True)
    (pictures / "train/blue").rename(pictures / "one/b")
    with pytest.raises(BadInput, match="all pictures are of one class, 'b'") as caught:
        quick("run", data=str(pictures / "one"))
    assert "subfolders" in caught.value.hint


def test_digits_are_tested_on_their_own_test_part() -> None:
    preprocessing = Preprocessing.for_size(8)
    train_set, val_set = preparation.open_sets("digits", None, preprocessing)
    assert val_set is not None
    assert (len(train_set), len(val_set)) == (1442, 355)


VIEW = """
from torch import nn

class Flattened(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 8 * 8, 2)

    def forward(self, x):
        return self.fc(self.conv(x).view(len(x), -1))
"""


def test_a_network_that_relies_on_the_order_in_memory_trains(quick: Quick, tmp_path: Path) -> None:
    (tmp_path / "view.py").write_text(VIEW)
    result = quick("run", model=f"{tmp_path}/view.py:Flattened", epochs=1)
    assert result.epochs[0].val_accuracy is not None
