"""A user's own model: found by module or file, with its failures told apart."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cbam_deploy.errors import BadInput
from cbam_deploy.models import load_model
from cbam_deploy.models.factory import call_factory
from cbam_deploy.provenance import ModelIdentity

SOURCE = """
from torch import nn
import layers_beside

def build():
    return nn.Sequential(nn.Flatten(), layers_beside.layer())

def number():
    return 3

def broken():
    raise RuntimeError("no\\nluck")

def leaves():
    raise SystemExit(3)

def gives_up():
    class Own(BaseException):
        def __str__(self):
            raise ValueError
    raise Own

def interrupted():
    raise KeyboardInterrupt

def needs(width):
    return nn.Identity()

class Raw(nn.Module):
    def __init__(self):
        pass

def parallel():
    return nn.DataParallel(build())

constant = 5
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "layers_beside.py").write_text(
        "from torch import nn\ndef layer():\n    return nn.Linear(12, 2)\n"
    )
    (tmp_path / "own_model.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("layers_beside", "own_model"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["own_model:build", "own_model.py:build", "./own_model.py:build"])
def test_factories_are_found_by_module_and_by_file(folder: Path, name: str) -> None:
    model = call_factory(name)
    assert model(torch.zeros(1, 3, 2, 2)).shape == (1, 2)


def test_a_file_elsewhere_works_twice_and_leaves_the_import_path_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    before = list(sys.path)
    for _ in range(2):
        call_factory(f"{folder}/own_model.py:build")
    assert sys.path == before
    assert "own_model" not in sys.modules


def test_an_edited_file_is_read_anew(folder: Path) -> None:
    call_factory("own_model.py:build")
    (folder / "own_model.py").write_text("from torch import nn\nbuild = nn.Identity\n")
    assert type(call_factory("own_model.py:build")).__name__ == "Identity"


def test_seed_makes_a_factorys_weights(folder: Path) -> None:
    weights = [
        load_model(ModelIdentity("own_model.py:build", seed=seed)).state_dict()["1.weight"]
        for seed in (1, 1, 2)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.py:build", "absent.py: no such file"),
        ("absent_module:build", "absent_module: importing it failed"),
        ("own_model.py:other", "own_model.py has no 'other'"),
        ("own_model.py:constant", "own_model.py:constant is a int, not a callable"),
        ("own_model.py:number", "own_model.py:number returned a int, not an nn.Module"),
        ("own_model.py:broken", "the factory failed (RuntimeError: no luck)"),
        ("own_model.py:leaves", "own_model.py:leaves: the factory failed (SystemExit: 3)"),
        ("own_model.py:gives_up", "own_model.py:gives_up: the factory failed (Own)"),
        ("own_model.py:needs", "TypeError: needs() missing 1 required positional argument"),
        ("own_model.py:Raw", "own_model.py:Raw returned a Raw that was never initialized"),
        ("own_model.py:", "'own_model.py:' lacks a part"),
        (":build", "':build' lacks a part"),
        ("syntax.py:build", "syntax.py: importing it failed (SyntaxError"),
        ("leaves.py:build", "leaves.py: importing it failed (SystemExit"),
    ],
)
def test_each_failure_is_named_in_one_line(folder: Path, name: str, message: str) -> None:
    (folder / "syntax.py").write_text("def build(:\n")
    (folder / "leaves.py").write_text("raise SystemExit(0)\n")
    before = list(sys.path)
    with pytest.raises(BadInput) as caught:
        call_factory(name)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert sys.path == before


def test_an_interrupt_stays_one(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        call_factory("own_model.py:interrupted")


def test_the_network_is_taken_out_of_its_wrapper(folder: Path) -> None:
    assert isinstance(call_factory("own_model.py:parallel"), torch.nn.Sequential)
