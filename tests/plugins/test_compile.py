from __future__ import annotations

import concurrent.futures
import importlib.util
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import kernel_report
from cbam_deploy.errors import BadInput, MissingCapability
from cbam_deploy.gates.description import CBAM, SE
from cbam_deploy.gates.operators import operator_for
from cbam_deploy.plugins import compile as compilation
from cbam_deploy.plugins.entries import Kernel
from cbam_deploy.plugins.gate import Gate
from cbam_deploy.plugins.geometry import KNOWN_DEVICES, plan

nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="needs the extra kernels")

CBAM_GATE, SE_GATE = operator_for(CBAM), operator_for(SE)
CBAM_ADD_RELU = operator_for(CBAM, residual=True, activation="relu")
SE_ADD_RELU = operator_for(SE, residual=True, activation="relu")
IN_48_KIB = replace(KNOWN_DEVICES[80], block_shared_bytes=48 * 1024)


def excitation(channels: int) -> Kernel:
    """A kernel that compiles fast."""
    gate = Gate(SE_GATE, channels, 5, 5, 4)
    return plan(gate, IN_48_KIB, strategy="staged").launches[1].kernel


SMALL, LARGE = excitation(20), excitation(12_500)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "cbam-deploy" / "kernels"


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """A cache with one entry, and what it holds."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        return folder, compilation.compile_kernels([SMALL], "sm_80")


@pytest.fixture
def entry(compiled_once, cache):
    """A copy of that entry in the test's own cache: the file, and what it holds."""
    folder, compiled = compiled_once
    shutil.copytree(folder, cache.parents[1], dirs_exist_ok=True)
    (file,) = cache.iterdir()
    return file, compiled


def no_more_compilation(monkeypatch):
    monkeypatch.setattr(nvrtc, "nvrtcCreateProgram", lambda *_: pytest.fail("compiled again"))


def test_ptx_is_for_cuda_13_0_and_has_the_cluster_in_it(cache):
    (launch,) = plan(Gate(CBAM_GATE, 256, 56, 56, 16, 7), KNOWN_DEVICES[90]).launches
    compiled = compilation.compile_kernels([launch.kernel], "compute_90")
    ptx = compiled.image.decode()
    assert ".version 9.0\n" in ptx, "PTX of CUDA 13.0, which its driver loads"
    assert f".entry {launch.kernel.name}(" in ptx
    assert f".reqnctapercluster {launch.cluster}, 1, 1" in ptx
    parameters = ptx.partition(".entry")[2].partition(")")[0].count(".param")
    assert parameters == len(launch.arguments)


def test_a_launch_may_overlap_only_where_its_kernel_waits(cache):
    with pytest.raises(RuntimeError, match="kOverlaps"):
        compilation.compile_kernels([SMALL.programmatic], "compute_80")
    overlapping = compilation.compile_kernels([SMALL.programmatic], "compute_90").image
    assert overlapping.index(b"griddepcontrol.launch") < overlapping.index(b"griddepcontrol.wait")
    assert b"griddepcontrol" not in compilation.compile_kernels([SMALL], "compute_80").image


def test_maps_move_in_16_byte_accesses(cache):
    (launch,) = plan(Gate(CBAM_ADD_RELU, 256, 56, 56, 16, 7), KNOWN_DEVICES[90]).launches
    ptx = compilation.compile_kernels([launch.kernel], "compute_90").image.decode()
    reads = re.findall(r"ld\.global\.nc\.v4\.[a-z]*32", ptx)
    writes = re.findall(r"st\.global\.v4\.[a-z]*32", ptx)
    assert len(reads) >= 8  # a batch of four vectors of x, and of r
    assert len(writes) >= 4
    assert not re.findall(r"(ld\.global|st\.global)[a-z0-9.]*\.[a-z]*16 ", ptx), "no single halves"


def test_second_compilation_comes_from_the_cache(entry, monkeypatch):
    _, first = entry
    no_more_compilation(monkeypatch)
    assert compilation.compile_kernels([SMALL], "sm_80") == first


def test_cache_depends_on_source_architecture_and_kernels(entry, cache, monkeypatch, tmp_path):
    compilation.compile_kernels([SMALL], "compute_80")
    compilation.compile_kernels([LARGE], "sm_80")
    assert len(list(cache.iterdir())) == 3
    changed = tmp_path / "changed"
    changed.mkdir()
    for path in compilation.KERNELS.glob("*.cuh"):
        (changed / path.name).write_text(path.read_text() + "\n// changed\n")
    monkeypatch.setattr(compilation, "KERNELS", changed)
    compilation.compile_kernels([SMALL], "sm_80")
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize(
    "damage", ["", "{}", "[]", "[" * 100_000, '{"image": 1}', "truncate", "flip"]
)
def test_damaged_cache_entry_is_compiled_again(damage, entry):
    file, first = entry
    text = file.read_text()
    if damage == "truncate":
        file.write_text(text[: len(text) // 2])
    elif damage == "flip":
        data = json.loads(text)
        data["image"] = "AAAA" + data["image"][4:]
        file.write_text(json.dumps(data))
    else:
        file.write_text(damage)
    assert compilation.compile_kernels([SMALL], "sm_80").names == first.names
    assert tuple(json.loads(file.read_text())["names"]) == first.names


def test_a_cache_entry_of_other_kernels_is_not_taken(entry, cache):
    other, _ = entry
    compilation.compile_kernels([SMALL], "compute_80")
    (file,) = set(cache.iterdir()) - {other}
    file.write_bytes(other.read_bytes())
    assert compilation.compile_kernels([SMALL], "compute_80").architecture == "compute_80"


def test_a_folder_in_place_of_a_cache_entry_is_no_obstacle(entry):
    file, first = entry
    file.unlink()
    file.mkdir()
    assert compilation.compile_kernels([SMALL], "sm_80").names == first.names


def test_unwritable_cache_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compilation.compile_kernels([SMALL], "sm_80").image


def _compile_small(_: int) -> compilation.CompiledKernels:
    return compilation.compile_kernels([SMALL], "sm_80")


def test_concurrent_processes_leave_one_whole_entry(cache, monkeypatch):
    with concurrent.futures.ProcessPoolExecutor(4) as processes:
        compiled = list(processes.map(_compile_small, range(8)))
    assert len(list(cache.iterdir())) == 1
    no_more_compilation(monkeypatch)
    assert _compile_small(0) in compiled


def test_unknown_architecture_is_named(cache):
    with pytest.raises(BadInput, match="sm_70"):
        compilation.compile_kernels([SMALL], "sm_70")


def test_a_kernel_that_does_not_compile_shows_the_log(cache):
    broken = Kernel("broken", 'extern "C" __global__ void broken() { no_such_kernel(); }')
    with pytest.raises(RuntimeError, match="do not compile for sm_80") as raised:
        compilation.compile_kernels([broken], "sm_80")
    assert "no_such_kernel" in str(raised.value)
    assert not cache.exists()


def test_without_nvrtc_the_hint_names_the_extra(monkeypatch, cache):
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    with pytest.raises(MissingCapability) as raised:
        compilation.compile_kernels([SMALL], "sm_80")
    assert ".[kernels]" in raised.value.hint


@pytest.fixture
def no_header_packages(monkeypatch):
    """As where NVRTC is installed, and the headers' packages are not; where these really are."""
    packages = importlib.util.find_spec("nvidia").submodule_search_locations
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    return next(Path(path) for path in packages) / "cu13" / "include"


def test_headers_of_a_cuda_toolkit_serve_too(no_header_packages, tmp_path, monkeypatch, cache):
    include = tmp_path / "toolkit" / "include"
    (include / "cccl").mkdir(parents=True)
    for entry in no_header_packages.iterdir():
        if entry.name not in ("nv", "cccl"):
            (include / entry.name).symlink_to(entry)
    (include / "cccl" / "nv").symlink_to(no_header_packages / "nv")
    monkeypatch.setenv("CUDA_HOME", str(include.parent))
    read = []
    compile_program = nvrtc.nvrtcCompileProgram

    def noted(program, count, options):
        read.extend(options)
        return compile_program(program, count, options)

    monkeypatch.setattr(nvrtc, "nvrtcCompileProgram", noted)
    assert compilation.compile_kernels([SMALL], "sm_80").image
    folders = [Path(o.decode().partition("=")[2]) for o in read if b"include-path" in o]
    assert folders == [compilation.KERNELS, include, include / "cccl"]


def test_without_headers_the_hint_names_the_extra(no_header_packages, monkeypatch):
    monkeypatch.setattr(Path, "is_file", lambda _: False)
    with pytest.raises(MissingCapability, match="headers") as raised:
        compilation.compile_kernels([SMALL], "sm_80")
    assert ".[kernels]" in raised.value.hint


REPRESENTATIVE = (
    # Every kernel, type and layout at least once.
    (Gate(CBAM_ADD_RELU, 512, 28, 28, 32, 7, dtype="float16", layout="nhwc"), "auto"),
    (Gate(CBAM_ADD_RELU, 256, 56, 56, 16, 7, dtype="int8", layout="chw32"), "auto"),
    (Gate(SE_ADD_RELU, 1024, 14, 14, 64, 0, dtype="float32", layout="nchw"), "auto"),
    (Gate(CBAM_GATE, 256, 56, 56, 16, 7, dtype="bfloat16", layout="nhwc"), "staged"),
    (Gate(CBAM_GATE, 20, 5, 5, 2, 3, dtype="float16", layout="nchw"), "auto"),
    (Gate(SE_GATE, 512, 28, 28, 32, 0, dtype="int8", layout="nhwc"), "staged"),
    (Gate(SE_GATE, 20, 8, 8, 2, 0, dtype="bfloat16", layout="nchw"), "auto"),
    (Gate(CBAM_ADD_RELU, 256, 56, 56, 16, 3, dtype="float32", layout="nhwc"), "staged"),
)


def on(architecture: int) -> list[tuple[Gate, str]]:
    """The first on every architecture, each other one on two; `make kernel-report` has them all."""
    first, *others = REPRESENTATIVE
    place, count = list(KNOWN_DEVICES).index(architecture), len(KNOWN_DEVICES)
    turn = [one for number, one in enumerate(others) if (place - number) % count in (0, 3)]
    return [first, *turn]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", KNOWN_DEVICES)
def test_representative_kernels_spill_nothing(architecture, pytestconfig, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytestconfig.cache.mkdir("kernels")))
    limits = KNOWN_DEVICES[architecture]
    launches = {}
    for gate, strategy in on(architecture):
        for launch in plan(gate, limits, strategy=strategy).launches:
            launches[launch.kernel.name] = launch
    usages = kernel_report.measure(architecture, list(launches.values()))
    assert [problem for usage in usages for problem in usage.problems(limits)] == []
    assert all(0 < usage.registers <= 128 for usage in usages)
