"""The plugin library, the host that drives it and the driver it finds, built by g++ for tests."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from host_device import HOST, KERNELS, WARP

import cbam_deploy.plugins
from cbam_deploy.plugins.entries import Kernel

LIBRARY = Path(cbam_deploy.plugins.__file__).parent / "native"
NATIVE = Path(__file__).parent / "native"
SANITIZERS = {
    "memory": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "threads": ("-fsanitize=thread",),
}
WARNINGS = ("-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror")


def build(
    folder: Path,
    name: str,
    sources: Iterable[Path],
    *flags: str,
    compiler: str = "g++",
    depends: Iterable[Path] = (),
    text: str = "",
) -> Path:
    """Compile `sources` to a file called `name`, once, whoever asks for it at the same time.

    `depends` are files and `text` is text that it is built anew for.
    """
    sources = list(sources)
    command = [compiler, *flags]
    key = hashlib.sha256("\0".join([*command, text]).encode())
    for path in sorted([*sources, *depends]):
        key.update(path.read_bytes())
    output = folder / f"native-{key.hexdigest()[:16]}" / name
    output.parent.mkdir(exist_ok=True)
    with (output.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not output.exists():
            part = output.with_name("part")
            command += ["-o", str(part), *map(str, sources), "-ldl"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[:4000]
            part.rename(output)
    return output


def build_library(folder: Path, *flags: str, compiler: str = "g++") -> Path:
    """The plugin library."""
    sources = sorted(LIBRARY.glob("*.cpp"))
    options = ("-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread", *WARNINGS)
    headers = LIBRARY.glob("*.h")
    return build(
        folder,
        "libcbam_deploy_plugin.so",
        sources,
        *options,
        *flags,
        compiler=compiler,
        depends=headers,
    )


def build_host(folder: Path, *flags: str, linked: Iterable[str] = ()) -> Path:
    """The program that plays TensorRT's part, compiled with `flags`, once for all that is `linked`.

    Linked with a sanitizer, it has that one's allocator and its eyes on threads.
    """
    options = ("-std=c++17", "-O0", *WARNINGS, f"-I{LIBRARY}", *flags)
    header = LIBRARY / "tensorrt.h"
    compiled = build(folder, "host.o", [NATIVE / "host.cpp"], "-c", *options, depends=[header])
    return build(folder, "host", [compiled], "-pthread", *linked)


def build_driver(
    folder: Path, kernels: Iterable[tuple[Kernel, int, int]], warp: int = WARP
) -> Path:
    """Folder of a ``libcuda.so.1`` with kernels, each with its cluster's and block's size."""
    listed = sorted(set(kernels), key=lambda one: one[0].name)
    listing = "".join(
        f"KERNEL({kernel.name}, {cluster}, {threads})\n" for kernel, cluster, threads in listed
    )
    definitions = "".join(kernel.text for kernel, _, _ in listed)
    key = hashlib.sha256((listing + definitions).encode()).hexdigest()[:16]
    (folder / f"{key}.inc").write_text(listing)
    (folder / f"{key}.defs").write_text(definitions)
    options = ["-std=c++20", "-O0", "-fno-strict-aliasing", "-Wall", "-Werror", "-pthread"]
    options += ["-Wno-unknown-pragmas", "-shared", "-fPIC", f"-DCBAM_HOST_WARP={warp}"]
    options += [f'-DKERNELS="{folder}/{key}.inc"', f'-DDEFINITIONS="{folder}/{key}.defs"']
    options += [f"-I{KERNELS}", f"-I{HOST}"]
    headers = [*KERNELS.glob("*.cuh"), HOST / "cuda_on_threads.hpp"]
    sources = [HOST / "driver.cpp"]
    return build(folder, "libcuda.so.1", sources, *options, depends=headers).parent


@dataclass(frozen=True)
class Programs:
    """A library and the host to drive it.

    Attributes:
        library, host: files.
        driver: folder of the driver that both find, if any.
        environment: of the host.
        registry: the library whose plugin registry loads ours; None: the host does.
    """

    library: Path
    host: Path
    driver: Path | None
    environment: dict[str, str] = field(default_factory=dict)
    registry: Path | None = None

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
            [self.host],
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


def compiler(name: str) -> str | None:
    """A compiler, if the machine has it."""
    return shutil.which(name)
