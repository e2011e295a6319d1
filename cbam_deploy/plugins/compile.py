"""Compile the kernels at run time with NVRTC, without a driver, and keep the result on disk.

NVRTC 13.0 is pinned (the ``cuda`` extra), so that its PTX loads under drivers of CUDA 13.0 and
later; see https://docs.nvidia.com/cuda/nvrtc. A kernel is given as `launches.Launch.kernel`.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbam_deploy.errors import BadInput, DeployError, MissingCapability, installation_of
from cbam_deploy.json_data import parse, read
from cbam_deploy.outputs import write_text
from cbam_deploy.plugins.entries import Kernel

KERNELS = Path(__file__).parent / "kernels"
_SOURCE = '#include "fused.cuh"\n#include "staged.cuh"\n'
_HINT = installation_of("kernels")


@dataclass(frozen=True)
class CompiledKernels:
    """Machine code or PTX of some kernels.

    Attributes:
        architecture: ``sm_90`` for machine code, ``compute_90`` for PTX.
        image: what ``cuModuleLoadData`` takes: a cubin, or PTX text.
        names: of the kernels in it.
        log: what the compiler said, with registers, spills and shared memory for machine code.
        ptx: what the machine code was assembled from, or the image itself.
    """

    architecture: str
    image: bytes
    names: tuple[str, ...]
    log: str
    ptx: bytes = b""


@dataclass(frozen=True)
class _Entry:
    """What a file of the cache holds; image and PTX in base64."""

    architecture: str
    image: str
    ptx: str
    sha256: str
    names: tuple[str, ...]
    log: str


def compile_kernels(
    kernels: Iterable[Kernel], architecture: str, *, without: str = ""
) -> CompiledKernels:
    """Compile `kernels` for `architecture`, or take them from the cache.

    Args:
        kernels: entry points.
        architecture: as in `CompiledKernels`.
        without: what ``make gpu-check`` leaves out to see what it takes: a ``Phase`` of
            ``kernels/gate.cuh``.

    Raises:
        MissingCapability: NVRTC or the CUDA headers are not installed.
        BadInput: NVRTC does not know `architecture`.
        RuntimeError: the kernels do not compile, which is a defect; with the compiler's log.
    """
    texts = {kernel.name: kernel.text for kernel in kernels}
    names = tuple(sorted(texts))
    source = _SOURCE + "".join(texts[name] for name in names)
    nvrtc = _nvrtc()
    headers = _header_folders()
    options = _options(architecture, headers)
    if without:
        options += (f"-DCBAM_WITHOUT={without}".encode(),)
    file = cache_folder() / f"{_key(nvrtc, source, options, headers[0])}.json"
    compiled = _read(file)
    if compiled is None or (compiled.architecture, compiled.names) != (architecture, names):
        compiled = _compile(nvrtc, source, names, architecture, options)
        # A cache that cannot be written costs time, nothing else.
        with contextlib.suppress(DeployError, OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(_to_json(compiled)))
    return compiled


def cache_folder() -> Path:
    """Where compiled kernels are kept: ``$XDG_CACHE_HOME/cbam-deploy/kernels``."""
    return user_cache() / "kernels"


def user_cache() -> Path:
    """Where this package keeps what it can make again: ``$XDG_CACHE_HOME/cbam-deploy``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cbam-deploy"


def _compile(
    nvrtc: Any, source: str, names: tuple[str, ...], architecture: str, options: tuple[bytes, ...]
) -> CompiledKernels:
    known = _checked(nvrtc, nvrtc.nvrtcGetSupportedArchs())
    if architecture.partition("_")[2] not in {str(number) for number in known}:
        raise BadInput(
            f"{architecture}: not an architecture that NVRTC knows",
            f"choose one of {', '.join(f'sm_{number}' for number in known)}",
        )
    program = _checked(nvrtc, nvrtc.nvrtcCreateProgram(source.encode(), b"gates.cu", 0, [], []))
    try:
        (result,) = nvrtc.nvrtcCompileProgram(program, len(options), list(options))
        log = _text(nvrtc, program, "ProgramLog").decode().strip("\0 \n")
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise RuntimeError(f"the gate kernels do not compile for {architecture}:\n{log}")
        ptx = _text(nvrtc, program, "PTX")
        image = _text(nvrtc, program, "CUBIN") if architecture.startswith("sm_") else ptx
        return CompiledKernels(architecture, image, names, log, ptx)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _options(architecture: str, headers: tuple[Path, ...]) -> tuple[bytes, ...]:
    options = [
        f"--gpu-architecture={architecture}",
        "--std=c++17",
        "-default-device",
        f"--include-path={KERNELS}",
        *(f"--include-path={folder}" for folder in headers),
    ]
    if architecture.startswith("sm_"):
        options.append("--ptxas-options=-v")
    return tuple(option.encode() for option in options)


def _key(nvrtc: Any, source: str, options: tuple[bytes, ...], headers: Path) -> str:
    """Hash of all that the result depends on; paths of this machine are none of it."""
    version = _checked(nvrtc, nvrtc.nvrtcVersion())
    parts = [source, repr(version), _headers_sha256(headers)]
    parts += [o.decode() for o in options if not o.startswith(b"--include-path")]
    parts += [path.read_text() for path in sorted(KERNELS.glob("*.cuh"))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _read(file: Path) -> CompiledKernels | None:
    """What the cache holds; None if it holds nothing, or something damaged."""
    if not file.is_file():
        return None
    try:
        entry = read(_Entry, parse(file.read_bytes()))
        image = base64.b64decode(entry.image, validate=True)
        ptx = base64.b64decode(entry.ptx, validate=True)
    except (OSError, ValueError):
        return None
    if hashlib.sha256(image + ptx).hexdigest() != entry.sha256:
        return None
    return CompiledKernels(entry.architecture, image, entry.names, entry.log, ptx)


def _to_json(compiled: CompiledKernels) -> dict[str, Any]:
    return {
        **vars(compiled),
        "image": base64.b64encode(compiled.image).decode(),
        "ptx": base64.b64encode(compiled.ptx).decode(),
        "sha256": hashlib.sha256(compiled.image + compiled.ptx).hexdigest(),
    }


def _text(nvrtc: Any, program: Any, what: str) -> bytes:
    size = _checked(nvrtc, getattr(nvrtc, f"nvrtcGet{what}Size")(program))
    text = bytes(size)
    _checked(nvrtc, getattr(nvrtc, f"nvrtcGet{what}")(program, text))
    return text


def _checked(nvrtc: Any, answer: tuple[Any, ...]) -> Any:
    """The values of a call's answer, which starts with its result code."""
    result, *values = answer
    if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"NVRTC: {nvrtc.nvrtcGetErrorString(result)[1].decode()}")
    return values[0] if len(values) == 1 else values


def _nvrtc() -> Any:
    try:
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
        nvrtc.nvrtcVersion()  # loads the library
    except (ImportError, RuntimeError) as error:
        raise MissingCapability(f"NVRTC is not installed ({error})", _HINT) from error
    return nvrtc


def _header_folders() -> tuple[Path, ...]:
    """Where the CUDA headers are: those of the extra, or else those of an installed toolkit."""
    spec = importlib.util.find_spec("nvidia")
    packages = spec.submodule_search_locations or () if spec else ()
    nvcc = shutil.which("nvcc")
    toolkits = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    toolkits.append(str(Path(nvcc).resolve().parents[1]) if nvcc else None)
    includes = [Path(folder) / "cu13" / "include" for folder in packages]
    includes += [Path(folder) / "include" for folder in toolkits if folder]
    candidates = [folder for include in includes for folder in (include, include / "cccl")]
    found = []
    for header in ("cuda_fp16.h", "nv/target"):
        folder = next((each for each in candidates if (each / header).is_file()), None)
        if folder is None:
            raise MissingCapability(f"the CUDA 13 headers are not installed ({header})", _HINT)
        found.append(folder)
    return tuple(dict.fromkeys(found))


@functools.cache
def _headers_sha256(folder: Path) -> str:
    """Tells versions of the headers apart."""
    digest = hashlib.sha256()
    for header in sorted(folder.glob("cuda_[bf]*16.h*")):
        digest.update(header.read_bytes())
    return digest.hexdigest()
