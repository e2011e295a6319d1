"""Checkpoints: every common form loads, no code runs, other models' weights are refused."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from cbam_deploy.errors import BadInput
from cbam_deploy.models import apply_state, create_model, load_state, state_dict_sha256
from cbam_deploy.provenance import METADATA_KEY, ModelIdentity, Provenance


def small() -> nn.Module:
    return create_model("resnet20", num_classes=3, seed=0)


class RunsCode:
    """Makes a file when unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


STATE = small().state_dict()
FORMS: dict[str, Callable[[Path], object]] = {
    "raw.pt": lambda path: torch.save(STATE, path),
    "legacy.pth": lambda path: torch.save(STATE, path, _use_new_zipfile_serialization=False),
    "nested.pt": lambda path: torch.save({"state_dict": STATE, "epoch": 3}, path),
    "model.pt": lambda path: torch.save({"model": STATE, "best": 0.9}, path),
    "parallel.pt": lambda path: torch.save({f"module.{k}": v for k, v in STATE.items()}, path),
    "compiled.pt": lambda path: torch.save({f"_orig_mod.{k}": v for k, v in STATE.items()}, path),
    "plain.safetensors": lambda path: save_file(STATE, path),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_common_form_of_checkpoint_loads(tmp_path: Path, name: str) -> None:
    FORMS[name](tmp_path / name)
    loaded = load_state(tmp_path / name).state_dict
    assert state_dict_sha256(loaded) == state_dict_sha256(STATE)
    model = create_model("resnet20", num_classes=3, seed=5)
    apply_state(model, loaded, name)
    assert all(torch.equal(model.state_dict()[key], STATE[key]) for key in STATE)


def test_provenance_travels_in_the_metadata(tmp_path: Path) -> None:
    provenance = Provenance(model=ModelIdentity("resnet20", num_classes=3), class_names=("a", "b"))
    path = tmp_path / "weights.safetensors"
    save_file(STATE, path, {METADATA_KEY: provenance.dumps()})
    assert load_state(path).provenance == provenance


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(
    tmp_path: Path, form: str, protocol: int
) -> None:
    path, trace = tmp_path / "evil.pt", tmp_path / "trace"
    payload = {"conv1.weight": RunsCode(trace)}
    if form == "torch":
        torch.save(payload, path, pickle_protocol=protocol)
    else:
        path.write_bytes(pickle.dumps(payload, protocol=protocol))
    with pytest.raises(BadInput, match=r"evil\.pt: is a pickle") as caught:
        load_state(path)
    assert "code" in caught.value.message
    assert "safetensors" in caught.value.hint
    assert not trace.exists()


def test_a_pickled_module_is_refused_by_its_class(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(BadInput, match=r"code in it \(torch\.nn\.modules\.linear\.Linear\)"):
        load_state(tmp_path / "module.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"hello world, no weights here", random.Random(0).randbytes(4096)]
)
def test_files_of_other_kinds_are_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=f"weights{suffix}: is"):
        load_state(path)


@pytest.mark.parametrize("name", ["raw.pt", "legacy.pth", "plain.safetensors"])
@given(data=st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_checkpoints_are_refused_or_still_tensors(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    path = tmp_path / name
    FORMS[name](path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), "truncate"):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:  # The first bytes are where formats keep their structure.
        at = data.draw(st.integers(0, min(len(content) - 1, 2000)))
        content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        tensors = list(load_state(path).state_dict.values())
        message = name
    except BadInput as error:
        tensors, message = [], error.message
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors)
    assert name in message
    assert "\n" not in message


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"absent\.pt: no such checkpoint") as caught:
        load_state(tmp_path / "absent.pt")
    assert "--weights" in caught.value.hint
    with pytest.raises(BadInput, match="is a folder"):
        load_state(tmp_path)


@pytest.mark.parametrize("payload", [{}, {"epoch": 3}, [1, 2], {"state_dict": {"a": 1}}], ids=str)
def test_data_without_a_state_dict_is_refused(tmp_path: Path, payload: object) -> None:
    torch.save(payload, tmp_path / "data.pt")
    with pytest.raises(BadInput, match="holds no state dict"):
        load_state(tmp_path / "data.pt")


def test_keys_that_do_not_fit_are_listed_and_nothing_is_loaded() -> None:
    model = small()
    before = state_dict_sha256(model.state_dict())
    state = dict(create_model("resnet20", num_classes=5, seed=1).state_dict())
    del state["bn1.bias"]
    state.update({f"extra.{number}": torch.zeros(1) for number in range(10)})
    with pytest.raises(BadInput) as caught:
        apply_state(model, state, "other.pt")
    message = caught.value.message
    assert message.startswith("other.pt: ")
    assert "missing 1: bn1.bias" in message
    assert "unexpected 10: extra.0, " in message
    assert "extra.7 and 2 more" in message
    assert "mis-shaped 2: fc.bias [5] instead of [3]" in message
    assert "\n" not in message
    assert state_dict_sha256(model.state_dict()) == before


def test_old_checkpoints_without_batch_counters_load() -> None:
    state = {name: value for name, value in STATE.items() if "num_batches" not in name}
    model = create_model("resnet20", num_classes=3, seed=5)
    apply_state(model, state, "old.pth")
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)


def test_content_hash_sees_names_dtypes_shapes_and_values_not_order() -> None:
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1)}
    digest = state_dict_sha256(state)
    assert digest == state_dict_sha256(dict(reversed(state.items())))
    assert digest == state_dict_sha256({**state, "a": state["a"].T.contiguous().T})
    others = [
        {"a": state["a"], "c": state["b"]},
        {**state, "a": state["a"].reshape(3, 2)},
        {**state, "a": state["a"].view(torch.int32)},
        {**state, "a": state["a"] + 1e-6},
    ]
    assert digest not in [state_dict_sha256(other) for other in others]
