"""The plugin library: that of a wheel, or one compiled from ``native/`` on this machine.

It needs no TensorRT and no CUDA to be built, and links to neither. What was compiled is kept in the
user's cache, by a hash of all that it was made from.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from cbam_deploy.errors import BadInput, DeployError, MissingCapability
from cbam_deploy.outputs import atomic_output, write_errors
from cbam_deploy.plugins.compile import user_cache
from cbam_deploy.provenance import file_sha256
from cbam_deploy.report.content import Section, Table
from cbam_deploy.report.result import Result
from cbam_deploy.report.units import duration, size
from cbam_deploy.terminal import visible

LIBRARY = "libcbam_deploy_plugin.so"
NATIVE = Path(__file__).parent / "native"
SOURCE = "library.cpp"
"""In `NATIVE`; it includes all others."""
Architecture = Literal["x86_64", "aarch64"]

FLAGS = (
    *("-std=c++17", "-O2", "-fPIC", "-shared", "-pthread"),
    *("-fvisibility=hidden", "-fvisibility-inlines-hidden"),
    # It must load beside any libstdc++, and export only what a loader looks for.
    *("-static-libstdc++", "-static-libgcc", "-ffunction-sections", "-fdata-sections"),
    *("-Wl,--gc-sections", "-Wl,--exclude-libs,ALL", "-Wl,-z,defs", "-s"),
    f"-Wl,--version-script={NATIVE / 'exports.map'}",
)
LIBRARIES = ("-ldl",)
_COMPILERS = ("c++", "g++", "clang++")
_HINT = "install g++ 8 or later (apt install g++), or name a compiler in CXX"


@dataclass(frozen=True)
class BuiltPlugin(Result):
    """The plugin library, built.

    Attributes:
        path: the library.
        bytes: its size.
        sha256: its hash.
        arch: of the processors that it is for.
        compiler: what compiled it.
        seconds: duration.
    """

    title: ClassVar[str] = "TensorRT plugin library"
    schema: ClassVar[str] = "cbam_deploy.plugin_library"

    path: Path
    bytes: int
    sha256: str
    arch: str
    compiler: str
    seconds: float

    def sections(self) -> tuple[Section, ...]:
        """Where it is, and what it was made by."""
        facts = (
            ("library", f"{self.path} ({size(self.bytes)})"),
            ("sha256", self.sha256),
            ("for", f"Linux on {self.arch}"),
            ("compiler", self.compiler),
            ("took", duration(self.seconds)),
        )
        return (Section(self.title, tables=(Table.facts(facts),)),)


def build_plugin(output: str | Path | None = None, *, arch: str | None = None) -> BuiltPlugin:
    """Compile the plugin library.

    Args:
        output: folder for it, by default one in the user's cache.
        arch: of the processors, ``x86_64`` or ``aarch64``; by default this machine's.

    Raises:
        BadInput: `arch` is another one, or the folder cannot be written.
        MissingCapability: there is no compiler for it, or it cannot compile the library.
    """
    begin = time.perf_counter()
    arch = arch or platform.machine()
    compiler = find_compiler(arch)
    if output is None:
        folder = _cached(arch).parent
        with write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    else:
        folder = Path(output)
        if not folder.is_dir():
            raise BadInput(f"{folder}: no such folder", "create it first")
    path = folder / LIBRARY
    with atomic_output(path) as temporary:
        _compile(compiler, temporary)
    return BuiltPlugin(
        path=path,
        bytes=path.stat().st_size,
        sha256=file_sha256(path),
        arch=arch,
        compiler=shlex.join(compiler),
        seconds=time.perf_counter() - begin,
    )


def plugin_library() -> Path:
    """The plugin library for this machine: that of the wheel, or of the cache, or built now.

    Raises:
        MissingCapability: there is none, and no compiler to build it.
    """
    packaged, cached = NATIVE / LIBRARY, _cached(platform.machine())
    found = next((path for path in (packaged, cached) if path.is_file()), None)
    return found or build_plugin().path


def is_within_reach() -> bool:
    """Whether `plugin_library` can give one."""
    try:
        return (NATIVE / LIBRARY).is_file() or bool(find_compiler(platform.machine()))
    except DeployError:
        return False


def find_compiler(arch: str) -> tuple[str, ...]:
    """The command that compiles C++ for `arch`, found on this machine.

    Raises:
        BadInput: the library is for no such processors.
        MissingCapability: there is none.
    """
    if arch not in ("x86_64", "aarch64"):
        raise BadInput(f"{arch}: the plugin library is for x86_64 and aarch64", "choose one")
    if arch != platform.machine():
        cross = f"{arch}-linux-gnu-g++"
        if shutil.which(cross) is None:
            package = f"g++-{arch.replace('_', '-')}-linux-gnu"
            raise MissingCapability(
                f"this machine has no C++ compiler for {arch} ({cross})",
                f"apt install {package}, or run build-plugin on the machine it is for",
            )
        return (cross,)
    if named := os.environ.get("CXX"):
        try:
            command = tuple(shlex.split(named))
        except ValueError:
            command = ()
        if not command or shutil.which(command[0]) is None:
            raise MissingCapability(f"CXX={visible(named)} is no command of this machine", _HINT)
        return command
    for name in _COMPILERS:
        if shutil.which(name):
            return (name,)
    raise MissingCapability("this machine has no C++ compiler", _HINT)


def _compile(compiler: tuple[str, ...], output: Path) -> None:
    command = [*compiler, *FLAGS, str(NATIVE / SOURCE), "-o", str(output), *LIBRARIES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        first = next((line for line in said if "error" in line), said[0])
        raise MissingCapability(
            f"{compiler[0]} cannot compile the plugin library: {first[:300]}", _HINT
        )


def _cached(arch: str) -> Path:
    """Where the library for `arch` is kept, by a hash of what it is made from."""
    digest = hashlib.sha256(f"{arch} {FLAGS[:-1]} {LIBRARIES}".encode())
    for path in sorted(file for file in NATIVE.iterdir() if file.name != LIBRARY):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return user_cache() / "plugin" / digest.hexdigest()[:16] / LIBRARY
