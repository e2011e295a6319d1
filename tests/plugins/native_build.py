"""The plugin library, the host that drives it and the driver it finds, built by g++ for tests."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import platform
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from host_device import HOST, KERNELS, WARP

from benchmarks.gpu_check import plugin_host
from cbam_deploy.plugins.entries import Kernel
from cbam_deploy.plugins.native_library import FLAGS, SOURCE, build_plugin
from cbam_deploy.plugins.native_library import NATIVE as LIBRARY

NATIVE = Path(__file__).parent / "native"
SANITIZERS = {
    "memory": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "threads": ("-fsanitize=thread",),
}
WARNINGS = ("-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror")


def once(
    folder: Path, name: str, made_from: Iterable[str | Path], make: Callable[[Path], None]
) -> Path:
    """The file `name` that ``make(path)`` writes, whoever asks for it at the same time.

    It is made anew when one of the texts or files that it is `made_from` changes.
    """
    key = hashlib.sha256()
    for one in made_from:
        key.update(one.encode() if isinstance(one, str) else one.read_bytes())
        key.update(b"\0")
    output = folder / f"native-{key.hexdigest()[:16]}" / name
    output.parent.mkdir(exist_ok=True)
    with (output.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not output.exists():
            part = output.with_name(f"part.{name}")
            make(part)
            part.rename(output)
    return output


def compiled(
    folder: Path,
    name: str,
    sources: Iterable[Path],
    *flags: str,
    compiler: str = "g++",
    depends: Iterable[Path] = (),
) -> Path:
    """The file `name` that `sources` compile to; `depends` are files that they include."""
    sources = list(sources)
    command = [compiler, *flags]

    def make(output: Path) -> None:
        options = ["-o", str(output), *map(str, sources), "-ldl"]
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:4000]

    return once(folder, name, [*command, *sources, *sorted(depends)], make)


def packaged_library(folder: Path, arch: str = platform.machine()) -> Path:
    """The plugin library as users get it."""

    def make(output: Path) -> None:
        build_plugin(output.parent, arch=arch).path.rename(output)

    made_from = [arch, *FLAGS, *sorted(path for path in LIBRARY.iterdir() if path.is_file())]
    return once(folder, f"{arch}.so", made_from, make)


def build_library(folder: Path, *flags: str) -> Path:
    """The plugin library, with `flags` that `native_library.build_plugin` does not give it."""
    options = ("-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread", *WARNINGS)
    return compiled(
        folder,
        "libcbam_deploy_plugin.so",
        [LIBRARY / SOURCE],
        *options,
        *flags,
        depends=[*LIBRARY.glob("*.cpp"), *LIBRARY.glob("*.h")],
    )


def build_host(
    folder: Path, *flags: str, linked: Iterable[str] = (), compiler: str = "g++"
) -> Path:
    """The program that plays TensorRT's part, compiled with `flags`, once for all that is `linked`.

    Linked with a sanitizer, it has that one's allocator and its eyes on threads.
    """
    options = ("-O0", *plugin_host.COMPILE, *WARNINGS, *flags)
    headers = [LIBRARY / "tensorrt.h", *plugin_host.SOURCES.glob("*.h")]
    object_ = compiled(
        folder, "host.o", [plugin_host.SOURCE], "-c", *options, compiler=compiler, depends=headers
    )
    return compiled(folder, "host", [object_], "-pthread", *linked, compiler=compiler)


def build_driver(
    folder: Path, kernels: Iterable[tuple[Kernel, int, int]], warp: int = WARP
) -> Path:
    """Folder of a ``libcuda.so.1`` with kernels, each with its cluster's and block's size."""
    listed = sorted(set(kernels), key=lambda one: one[0].name)
    listing = "".join(
        f"KERNEL({kernel.name}, {cluster}, {threads})\n" for kernel, cluster, threads in listed
    )
    texts = {"KERNELS": listing, "DEFINITIONS": "".join(kernel.text for kernel, _, _ in listed)}
    files = {
        macro: once(folder, f"{macro.lower()}.inc", [text], functools.partial(_write, text))
        for macro, text in texts.items()
    }
    options = ["-std=c++20", "-O0", "-fno-strict-aliasing", "-Wall", "-Werror", "-pthread"]
    options += ["-Wno-unknown-pragmas", "-shared", "-fPIC", f"-DCBAM_HOST_WARP={warp}"]
    options += [f'-D{macro}="{file}"' for macro, file in files.items()]
    options += [f"-I{KERNELS}", f"-I{HOST}"]
    headers = [*KERNELS.glob("*.cuh"), HOST / "cuda_on_threads.hpp"]
    sources = [HOST / "driver.cpp"]
    return compiled(folder, "libcuda.so.1", sources, *options, depends=headers).parent


def _write(text: str, path: Path) -> None:
    path.write_text(text)


@dataclass(frozen=True)
class Programs:
    """A library and the host to drive it.

    Attributes:
        library, host: files.
        driver: folder of the driver that both find, if any.
        environment: of the host.
        registry: the library whose plugin registry loads ours; None: the host does.
        emulator: command that runs a host of another architecture.
    """

    library: Path
    host: Path
    driver: Path | None
    environment: dict[str, str] = field(default_factory=dict)
    registry: Path | None = None
    emulator: tuple[str, ...] = ()

    def on(self, capability: int) -> Programs:
        """The same with a GPU of another compute capability."""
        return replace(self, environment={"STAND_IN_CAPABILITY": str(capability)})

    def run(self, lines: Iterable[str], **environment: str) -> list[str]:
        """What the host, given its commands, and the library say, in order."""
        variables = {**os.environ, **self.environment, **environment}
        variables["LD_LIBRARY_PATH"] = str(self.driver or "")
        first = f"library {self.library}"
        if self.registry is not None:
            first = f"registry {self.registry} {self.library}"
        done = subprocess.run(
            [*self.emulator, self.host],
            input="".join(f"{line}\n" for line in [first, *lines]),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=variables,
            check=False,
        )
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-6000:]}"
        return done.stdout.splitlines()


def sanitized(folder: Path, sanitizer: str, driver: Path | None) -> Programs:
    """Library and host, both compiled with one of `SANITIZERS`."""
    flags = SANITIZERS[sanitizer]
    library = build_library(folder, "-O0", "-g1", *flags)
    return Programs(library, build_host(folder, linked=flags), driver)
