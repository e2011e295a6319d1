"""The plugin library as a file: what it needs, what it shows, how large it is, on what it loads.

As `build-plugin` compiles it, for this machine's processors and for others where a cross-compiler
is installed; with ``qemu-user`` the aarch64 library is loaded too.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess

import pytest
from native_build import Programs, build_host, packaged_library
from native_cases import CASES

from cbam_deploy.errors import MissingCapability
from cbam_deploy.plugins.native_library import NATIVE, SOURCE

LIBC = {"libc.so.6", "libdl.so.2", "libpthread.so.0", "libm.so.6"}
LOADERS = {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
MOST_BYTES = 300_000
OLDEST_GLIBC = (2, 35)  # of Ubuntu 22.04, which JetPack 6 is


ARCHITECTURES = ("x86_64", "aarch64")
FOREIGN = [arch for arch in ARCHITECTURES if arch != platform.machine()]


@pytest.fixture(scope="session", params=ARCHITECTURES)
def built_for(request, built):
    """Architecture and library."""
    try:
        return request.param, packaged_library(built, request.param)
    except MissingCapability as missing:
        pytest.skip(missing.message)


def read_elf(path, *options):
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf, of binutils")
    done = subprocess.run(
        ["readelf", "-W", *options, path], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_it_is_small(built_for):
    _, library = built_for
    assert library.stat().st_size <= MOST_BYTES


def test_it_needs_libc_alone(built_for):
    _, library = built_for
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", read_elf(library, "--dynamic")))
    assert "libc.so.6" in needed
    assert needed <= LIBC | LOADERS


def test_it_loads_on_systems_as_old_as_jetpack_6(built_for):
    _, library = built_for
    versions = re.findall(r"Name: GLIBC_(\d+)\.(\d+)", read_elf(library, "--version-info"))
    assert max((int(major), int(minor)) for major, minor in versions) <= OLDEST_GLIBC


def test_it_shows_what_a_loader_looks_for_and_nothing_else(built_for):
    _, library = built_for
    symbols = [line.split() for line in read_elf(library, "--dyn-syms").splitlines()]
    found = [one for one in symbols if len(one) > 7 and one[4] in ("GLOBAL", "WEAK", "UNIQUE")]
    defined = {name for *_, section, name in (one[:8] for one in found) if section != "UND"}
    assert defined == {"getCreators", "setLoggerFinder"}


def test_it_is_for_the_processors_it_was_built_for(built_for):
    arch, library = built_for
    machine = {"x86_64": "X86-64", "aarch64": "AArch64"}[arch]
    assert machine in read_elf(library, "--file-header")


@pytest.mark.parametrize("built_for", FOREIGN, indirect=True)
def test_it_makes_plugins_on_other_processors(built_for, built, tmp_path):
    """Without a GPU: a plugin from good fields, and sentences about bad ones."""
    arch, library = built_for
    emulator = shutil.which(f"qemu-{arch}") or shutil.which(f"qemu-{arch}-static")
    if emulator is None:
        pytest.skip(f"needs qemu-{arch}, of qemu-user")
    cross = f"{arch}-linux-gnu-g++"
    root = subprocess.run([cross, "-print-sysroot"], capture_output=True, text=True, check=True)
    sysroot = root.stdout.strip() if len(root.stdout.strip()) > 1 else f"/usr/{arch}-linux-gnu"
    host = build_host(built, compiler=cross)
    programs = Programs(library, host, None, emulator=(emulator, "-L", sysroot))
    lines = [*CASES[0].input_lines(tmp_path, "HWC8"), *CASES[0].node.field_lines(tmp_path)]
    said = programs.run([*lines, "parse", "offers-anyhow", "fields", "parse"])
    assert said[0] == "creator cbam_deploy FusedGate 1"
    assert "libcuda.so.1" in said[3], said
    assert said[4:] == ["cbam_deploy: a gate: it has no launch program", "refused createPlugin"]


def test_every_source_is_part_of_it():
    included = re.findall(r'#include "(\w+\.cpp)"', (NATIVE / SOURCE).read_text())
    assert included == sorted(path.name for path in NATIVE.glob("*.cpp") if path.name != SOURCE)
