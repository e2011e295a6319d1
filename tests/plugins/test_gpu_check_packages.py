"""What stands in for small packages where a machine with a GPU lacks them."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import lazy_loader
import msgspec
import pytest

import cbam_deploy
from benchmarks.gpu_check.missing_packages import fill_in


@dataclass(frozen=True)
class Entry:
    name: str
    sizes: tuple[int, ...]


@pytest.fixture
def stand_ins(monkeypatch):
    for name in ("msgspec", "lazy_loader"):
        monkeypatch.setitem(sys.modules, name, None)
    assert fill_in() == ("msgspec", "lazy_loader")
    return sys.modules["msgspec"], sys.modules["lazy_loader"]


def test_what_is_installed_stays():
    assert fill_in() == ()
    assert sys.modules["msgspec"] is msgspec


def test_json_is_read_as_msgspec_does(stand_ins):
    text = json.dumps({"name": "a", "sizes": [1, 2]}).encode()
    for one in (msgspec, stand_ins[0]):
        entry = one.convert(one.json.decode(text), Entry)
        assert entry == Entry("a", (1, 2))
        plain = one.to_builtins(entry)
        assert (plain["name"], list(plain["sizes"])) == ("a", [1, 2])


@pytest.mark.parametrize("text", ["{", "[1]", '{"name": "a"}', "3"])
def test_damaged_json_is_the_same_error(text, stand_ins):
    for one in (msgspec, stand_ins[0]):
        with pytest.raises(one.MsgspecError):
            one.convert(one.json.decode(text), Entry)


def test_names_of_the_package_are_those_of_lazy_loader(stand_ins):
    *_, expected = lazy_loader.attach_stub("cbam_deploy", cbam_deploy.__file__)
    get, listed, found = stand_ins[1].attach_stub("cbam_deploy", cbam_deploy.__file__)
    assert sorted(found) == sorted(expected) == listed()
    assert get("create_model") is cbam_deploy.create_model
    with pytest.raises(AttributeError, match="no_such_name"):
        get("no_such_name")
