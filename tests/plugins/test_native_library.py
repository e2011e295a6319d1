"""The plugin library is built by whatever C++ compiler there is, once, and said to be missing else.

What it does in TensorRT is for its own tests; here it is any C++.
"""

from __future__ import annotations

import ctypes
import platform
import subprocess

import pytest

from cbam_deploy.errors import BadInput, MissingCapability
from cbam_deploy.plugins import native_library
from cbam_deploy.plugins.native_library import LIBRARY, build_plugin, find_compiler, plugin_library

SOURCE = """
#include "answer.h"
extern "C" __attribute__((visibility("default"))) int getCreators() { return answer; }
"""
HOST = platform.machine()
OTHER = {"x86_64": "aarch64", "aarch64": "x86_64"}[HOST]


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A folder of small sources in place of the library's, and an empty cache."""
    folder = tmp_path / "native"
    folder.mkdir()
    (folder / "answer.h").write_text("static int const answer = 42;\n")
    (folder / native_library.SOURCE).write_text(SOURCE)
    flags = [flag for flag in native_library.FLAGS if "version-script" not in flag]
    monkeypatch.setattr(native_library, "FLAGS", (*flags, "-DSMALL"))
    monkeypatch.setattr(native_library, "NATIVE", folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Makes these programs, which all fail, the only ones on the PATH."""

    def install(*names, answer="exit 1"):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / name).write_text(f"#!/bin/sh\n{answer}\n")
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        monkeypatch.delenv("CXX", raising=False)

    return install


def test_the_library_is_built_where_it_was_asked_for(sources, tmp_path):
    built = build_plugin(tmp_path)
    assert built.path == tmp_path / LIBRARY
    assert built.bytes == built.path.stat().st_size
    assert built.arch == HOST
    assert ctypes.CDLL(str(built.path)).getCreators() == 42


def test_the_library_is_built_once_for_the_same_sources(sources, monkeypatch):
    first = plugin_library()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("built again"))
    assert plugin_library() == first
    assert first.parent.parent.name == "plugin"
    assert ctypes.CDLL(str(first)).getCreators() == 42


def test_the_library_is_built_anew_when_a_header_changes(sources):
    first = plugin_library()
    (sources / "answer.h").write_text("static int const answer = 43;\n")
    second = plugin_library()
    assert second != first
    assert ctypes.CDLL(str(second)).getCreators() == 43


def test_a_library_that_came_with_the_package_is_taken_first(sources, programs):
    assert plugin_library() != sources / LIBRARY
    programs()
    (sources / LIBRARY).write_bytes(b"a library")
    assert plugin_library() == sources / LIBRARY


def test_without_a_compiler_it_is_said_how_to_get_one(sources, programs):
    programs()
    for build in (build_plugin, plugin_library):
        with pytest.raises(MissingCapability, match="this machine has no C") as missing:
            build()
        assert "apt install g++" in missing.value.hint


def test_any_of_the_usual_compilers_is_taken_and_the_one_that_is_named_first(programs, monkeypatch):
    programs("clang++")
    assert find_compiler(HOST) == ("clang++",)
    programs("g++")
    assert find_compiler(HOST) == ("g++",)
    programs("c++", "my-c++")
    assert find_compiler(HOST) == ("c++",)
    monkeypatch.setenv("CXX", "my-c++ -march=native")
    assert find_compiler(HOST) == ("my-c++", "-march=native")


@pytest.mark.parametrize("named", ["no-c++ -O3", "'", " "])
def test_a_compiler_that_is_named_and_not_there_is_not_replaced(named, programs, monkeypatch):
    programs("c++")
    monkeypatch.setenv("CXX", named)
    with pytest.raises(MissingCapability, match=r"CXX=.* is no command of this machine"):
        find_compiler(HOST)


def test_the_other_architecture_takes_its_cross_compiler(programs):
    programs("c++")
    with pytest.raises(MissingCapability, match=f"{OTHER}-linux-gnu-g") as missing:
        find_compiler(OTHER)
    assert "apt install g++-" in missing.value.hint
    programs(f"{OTHER}-linux-gnu-g++")
    assert find_compiler(OTHER) == (f"{OTHER}-linux-gnu-g++",)


def test_other_processors_are_refused():
    with pytest.raises(BadInput, match="riscv64: the plugin library is for"):
        build_plugin(arch="riscv64")


def test_what_the_compiler_says_is_in_the_error(sources, programs, tmp_path):
    programs("c++", answer="echo 'plugin.cpp:3: error: no such thing' >&2; exit 1")
    with pytest.raises(MissingCapability, match=r"c\+\+ cannot compile .* no such thing"):
        build_plugin(tmp_path)
    assert not (tmp_path / LIBRARY).exists()


def test_a_cache_that_cannot_be_is_said(sources, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for build in (build_plugin, plugin_library):
        with pytest.raises(BadInput, match=r"file.* cannot be written \(Not a directory\)"):
            build()


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no such folder"):
        build_plugin(tmp_path / "missing")
