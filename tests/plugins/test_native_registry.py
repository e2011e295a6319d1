"""TensorRT's genuine plugin registry takes the plugin library, however it comes to the process.

What is genuine: TensorRT-RTX's library with its registry, and the Python bindings of TensorRT 11.4
over it. What is not: the rest of TensorRT, for which small stand-ins are loaded. The bindings can
create a plugin but hand none of its work out, so cloning and serializing are asked in C++, by the
host of `test_native_host`, of the creator that the registry gives it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from native_build import Programs, build_driver, build_host, packaged_library
from native_cases import CAPABILITY, CASES, STAGED

HERE = Path(__file__).parent
STAND_INS = ("nvinfer", "nvonnxparser", "nvinfer_plugin")
CASE = CASES[0]
CREATOR = ["cbam_deploy FusedGate 1"]


@pytest.fixture(scope="session")
def rtx() -> Path:
    """TensorRT-RTX's library."""
    found = importlib.util.find_spec("tensorrt_rtx_libs")
    if found is None:
        pytest.skip("needs tensorrt_rtx_libs, of the extra rtx")
    return Path(*found.submodule_search_locations or ()) / "libtensorrt_rtx.so.1"


@pytest.fixture(scope="session")
def stand_ins(rtx, tmp_path_factory) -> Path:
    """A folder with stand-ins for TensorRT's libraries."""
    if importlib.util.find_spec("tensorrt_bindings") is None:
        pytest.skip("needs tensorrt_bindings, of the extra dev")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("stand_ins")
    for name in STAND_INS:
        output = folder / f"lib{name}.so.11"
        options = ["-shared", "-fPIC", f"-Wl,-soname,{output.name}", "-o", str(output)]
        define = f'-DREGISTRY_LIBRARY="{rtx}"'
        source = HERE / "stand_ins" / f"{name}.c"
        subprocess.run([compiler, *options, define, str(source), "-ldl"], check=True)
    return folder


@pytest.fixture(scope="session")
def library(built) -> Path:
    return packaged_library(built)


def met(how: str, library: Path, stand_ins: Path, folder: Path) -> dict[str, dict]:
    """What the registry said after each step of `native_registry.py`."""
    lines = CASE.node.field_lines(folder)
    files = [line.split(" ")[4] for line in lines if line.startswith("field ")]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(stand_ins)}
    if how == "preload":
        environment["LD_PRELOAD"] = str(library)
    done = subprocess.run(
        [sys.executable, str(HERE / "native_registry.py"), how, str(library), *files],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "its launch program is damaged: its last line is cut off" in done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module", params=["load", "dlopen", "before", "preload"])
def steps(request, library, stand_ins, tmp_path_factory):
    return request.param, met(request.param, library, stand_ins, tmp_path_factory.mktemp("fields"))


def test_creator_is_there_once_the_library_is(steps):
    how, said = steps
    assert said["start"]["creators"] == (CREATOR if how in ("before", "preload") else [])
    assert said["load" if how == "load" else "creator"]["creators"] == CREATOR
    assert said["load"]["answer"], "also where the library had registered itself"


def test_loading_twice_registers_once(steps):
    _, said = steps
    assert not said["load again"]["answer"], "as for every library whose plugins are there already"
    assert said["load again"]["creators"] == CREATOR


def test_a_library_that_is_given_back_is_gone_and_may_come_again(steps):
    _, said = steps
    assert said["deregister"]["creators"] == []
    assert (said["load anew"]["answer"], said["load anew"]["creators"]) == (True, CREATOR)


def test_a_second_copy_of_the_library_does_no_harm(steps):
    """As an engine has one that carries its plugins."""
    _, said = steps
    assert said["copy"]["creators"] == CREATOR


def test_plugin_is_made_from_fields_with_its_three_capabilities(steps):
    _, said = steps
    answers = {step: one["answer"] for step, one in said.items()}
    assert answers["creator"] == ["PLUGIN CREATOR_V3ONE", 1, 0]
    assert answers["fields"] == [["program", "CHAR"], ["images", "INT8"]]
    assert answers["core"] == ["cbam_deploy", "FusedGate", "1"]
    assert answers["build"] == [1, 100, CASE.node.program.gate]
    assert answers["runtime"] == "PLUGIN_V3ONE_RUNTIME"
    assert answers["damaged"] is None


def test_creator_from_the_registry_serves_builder_and_engine(rtx, built, library, tmp_path):
    """Create, clone, serialize, create again, run."""
    driver = build_driver(built, set().union(*(case.kernels for case in CASES)))
    programs = Programs(library, build_host(built), driver, registry=rtx).on(CAPABILITY)
    lines = [*CASE.input_lines(tmp_path, "HWC8"), *CASE.node.field_lines(tmp_path)]
    said = programs.run([*lines, "build float16 HWC8 1 2 4", f"run {STAGED} {tmp_path}/y 1@0 2@0"])
    assert said[0] == "creator cbam_deploy FusedGate 1"
    assert said[-1] == f"ran {STAGED}"


# Of each version: its file's name, and in the tables of its registry and logger the places of
# getCreator, registerCreator, deregisterCreator and log. `test_native_headers` finds them in
# TensorRT's headers.
VERSIONS = {
    100000: ("libnvinfer.so.10", (14, 12, 15), 0),
    101600: ("libnvinfer.so.10", (14, 12, 15), 0),
    110400: ("libnvinfer.so.11", (10, 8, 11), 4),
}


def numbered(version: int, name: str, place: int, folder: Path) -> Path:
    """A stand-in for a version of TensorRT, that registers creators at a place."""
    tensorrt = folder / name
    options = ["-shared", "-fPIC", f"-Wl,-soname,{name}", f"-DVERSION={version}"]
    options += [f"-DREGISTER={place}", "-o", str(tensorrt), str(HERE / "stand_ins" / "numbered.c")]
    subprocess.run(["gcc", *options], check=True)
    return tensorrt


def said_beside(tensorrt: Path, built, library) -> list[str]:
    """What is said where a stand-in for TensorRT is in the process already."""
    programs = Programs(library, build_host(built), None)
    return programs.run(["fields", "parse"], LD_PRELOAD=str(tensorrt))


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_of_tensorrt_is_called_at_its_own_places(version, built, library, tmp_path):
    name, (find, register, deregister), log = VERSIONS[version]
    said = said_beside(numbered(version, name, register, tmp_path), built, library)
    calls = [line for line in said if line.startswith(("registry ", "logger "))]
    assert calls == [
        *(f"registry {place}" for place in (find, register)),  # when it is loaded
        f"registry {deregister}",  # when its creators are asked for, to be registered by others
        f"logger {log} 1 cbam_deploy: a gate: it has no launch program",
        "registry gone",
    ]


@pytest.mark.parametrize("version", [80600, 120000])
def test_a_version_whose_interface_is_not_known_is_left_alone(version, built, library, tmp_path):
    said = said_beside(numbered(version, "libnvinfer.so.11", 8, tmp_path), built, library)
    assert not any(line.startswith(("registry", "logger")) for line in said)
    assert "cbam_deploy: a gate: it has no launch program" in said


@pytest.mark.parametrize("close", [False, True], ids=["exit", "dlclose"])
def test_creator_is_taken_back_before_the_registry_is_gone(close, library, tmp_path):
    """Where the library was only loaded, and the process ends, or closes it."""
    name, (find, register, deregister), _ = VERSIONS[110400]
    tensorrt = numbered(110400, name, register, tmp_path)
    program = "import ctypes, sys\nctypes.CDLL(sys.argv[1])\nlibrary = ctypes.CDLL(sys.argv[2])\n"
    if close:
        program += "import _ctypes\n_ctypes.dlclose(library._handle)\n"
    command = [sys.executable, "-c", program, str(tensorrt), str(library)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == [
        *(f"registry {place}" for place in (find, register, deregister)),
        "registry gone",
    ]
