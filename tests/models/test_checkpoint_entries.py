"""Of a checkpoint file, what fits the network is taken, and what was taken is said."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cbam_deploy.errors import BadInput
from cbam_deploy.models import apply_state, load_state, state_dict_sha256
from cbam_deploy.models.checkpoints import Checkpoint
from cbam_deploy.provenance import METADATA_KEY, ModelIdentity, Provenance


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3, 4, 3)
            self.bn = nn.BatchNorm2d(4)
            self.fc = nn.Linear(4, 2)


class Within(nn.Module):
    """Has the network as a child called `module`."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.module = Net(seed)


STATE = Net().state_dict()
OTHER = Net(1).state_dict()


def under(prefix: str, state: Mapping[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def loaded(path: Path, payload: Any, network: nn.Module | None = None) -> Checkpoint:
    torch.save(payload, path)
    network = network or Net(7)
    checkpoint = load_state(path, network.state_dict())
    apply_state(network, checkpoint.state_dict, path)
    return checkpoint


WRAPPINGS: dict[str, Any] = {
    **{key: {key: STATE, "epoch": 1} for key in ("net", "params_ema", "generator", "any thing")},
    "nested": {"checkpoint": {"ema": {"state_dict": STATE}}},
    "an empty one beside it": {"state_dict": {}, "model": STATE},
    "another network beside it": {
        "discriminator": {"conv.weight": torch.zeros(4, 3, 3, 3)},
        "model": {"fc.weight": torch.zeros(5, 5)},
        "generator": STATE,
    },
    "an optimizer beside it": {
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 0.1}]},
        "net": STATE,
    },
    "its average beside it": {"ema": OTHER, "model": STATE},
    "its average first": {"G_ema": OTHER, "G": STATE},
    "numbers among it": {**STATE, "epoch": 5, "best": torch.tensor(3), "_extra_state": None},
    "lightning": {"state_dict": under("model."), "pytorch-lightning_version": "2.4"},
    "lightning with its loss": {"state_dict": {**under("net."), "loss.weight": torch.ones(2)}},
    "lightning with an average": {"state_dict": {**under("ema_model.", OTHER), **under("model.")}},
    "compiled in data parallel": under("module._orig_mod."),
    "a part compiled": {name.replace("bn.", "bn._orig_mod."): t for name, t in STATE.items()},
    "averaged": {"n_averaged": torch.tensor(4), **under("module.")},
    "the same twice": {"one": STATE, "two": dict(STATE)},
}


@pytest.mark.parametrize("name", WRAPPINGS)
def test_every_wrapping_gives_the_same_weights(tmp_path: Path, name: str) -> None:
    state = loaded(tmp_path / "w.pt", WRAPPINGS[name]).state_dict
    assert state_dict_sha256(state) == state_dict_sha256(STATE)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "model._orig_mod."])
def test_a_network_with_a_child_called_module_gets_its_own_names(
    tmp_path: Path, prefix: str
) -> None:
    own = Within().state_dict()
    state = loaded(tmp_path / "w.pt", {"model": under(prefix, own)}, Within(7)).state_dict
    assert state_dict_sha256(state) == state_dict_sha256(own)
    without = loaded(tmp_path / "w.pt", STATE, Within(7)).state_dict
    assert state_dict_sha256(without) == state_dict_sha256(own)


def test_what_was_taken_is_said_and_nothing_where_there_was_no_choice(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    payload = {"model_ema": OTHER, "model": under("module."), "epoch": 12, "arch": "x"}
    assert loaded(path, payload).account == (
        "weights taken from 'model' (beside 'model_ema', 'epoch', 'arch'), epoch 12, "
        "prefix 'module.' removed"
    )
    beside = {"state_dict": {**under("net."), "loss.weight": torch.ones(2)}}
    assert "prefix 'net.' removed, left out: loss.weight" in str(loaded(path, beside).account)
    assert loaded(path, STATE).account is None


def test_entries_that_fit_as_well_and_differ_are_refused_by_their_names(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"'one' and 'two' fit the network equally well"):
        loaded(tmp_path / "w.pt", {"one": STATE, "two": OTHER})
    encoders = {**under("encoder_q."), **under("encoder_k.", OTHER)}
    with pytest.raises(BadInput, match=r"prefix 'encoder_q.' and .* 'encoder_k.' fit"):
        loaded(tmp_path / "w.pt", {"state_dict": encoders})


def test_layers_that_the_network_lacks_are_refused_under_its_own_prefix(tmp_path: Path) -> None:
    bigger = {**under("model."), "model.fc2.weight": torch.ones(2), "epoch": 3}
    with pytest.raises(BadInput, match=r"w\.pt.*unexpected 1: fc2\.weight"):
        loaded(tmp_path / "w.pt", bigger)
    with pytest.raises(BadInput, match=r"unexpected 1: scale"):
        loaded(tmp_path / "w.pt", {**STATE, "scale": torch.tensor(2.0)})


def test_a_file_without_weights_is_refused_with_what_it_has(tmp_path: Path) -> None:
    for payload, found in (({"epoch": 3, "model": None}, "'epoch', 'model'"), ([STATE], "a list")):
        torch.save(payload, tmp_path / "w.pt")
        with pytest.raises(BadInput, match=f"holds no state dict; it has {found}"):
            load_state(tmp_path / "w.pt")


@pytest.mark.parametrize("network", [Net, Within])
def test_weights_are_held_to_the_hash_that_training_recorded(
    tmp_path: Path, network: type[nn.Module]
) -> None:
    path = tmp_path / "best.safetensors"
    state = network().state_dict()
    recorded = ModelIdentity("m:f", weights_sha256=state_dict_sha256(state))
    metadata = {METADATA_KEY: Provenance(model=recorded).dumps()}
    save_file(state, path, metadata)
    own = network(7).state_dict()
    assert state_dict_sha256(load_state(path, own).state_dict) == recorded.weights_sha256
    assert state_dict_sha256(load_state(path).state_dict) == recorded.weights_sha256
    name = next(iter(state))
    save_file({**state, name: state[name] + 1}, path, metadata)
    with pytest.raises(BadInput, match=r"best\.safetensors: the weights are not those that train"):
        load_state(path)
