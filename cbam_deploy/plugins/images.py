"""Kernel images for the plugin: machine code for the GPUs that are named, and PTX for later ones.

One image holds one entry point, so that the gates of a network, which share most of theirs, share
the images. Machine code of an entry point is made for every target that uses it, PTX for the
earliest of these: the driver of any later GPU translates it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from cbam_deploy.errors import BadInput
from cbam_deploy.plugins.compile import compile_kernels
from cbam_deploy.plugins.entries import Kernel
from cbam_deploy.plugins.launch_program import Image
from cbam_deploy.progress import progress

TENSORRT = "10.3"
"""The version that files are for unless another is named: that of JetPack 6.1 and later."""
NEWEST_MAJOR = 11
"""The newest major version whose interface the library knows: ``native/tensorrt.h``."""

PtxVersion = tuple[int, int]

# By first version of TensorRT: the newest PTX that the driver takes which its CUDA came with.
# TensorRT Support Matrix: 10.0 is built with CUDA 12.4, 10.2 with 12.5, 10.8 with 12.8. PTX ISA,
# "PTX ISA Version and CUDA Version": these have 8.4, 8.5 and 8.7.
_TENSORRT_PTX: dict[tuple[int, int], PtxVersion] = {
    (10, 0): (8, 4),
    (10, 2): (8, 5),
    (10, 8): (8, 7),
}

# PTX ISA, "Release Notes": the first version that has a target, of those that are not in 8.4.
_TARGET_PTX: dict[int, PtxVersion] = {100: (8, 6), 110: (9, 0), 120: (8, 7), 121: (8, 8)}


def ptx_version(tensorrt: str) -> PtxVersion:
    """The newest PTX that the driver below a TensorRT, such as ``10.3``, is sure to take.

    Raises:
        BadInput: `tensorrt` is no version, or older or newer than the plugin's interface.
    """
    match = re.fullmatch(r"(\d{1,3})(?:\.(\d{1,3})(?:\.\d{1,9})*)?", tensorrt)
    if match is None:
        raise BadInput(f"{tensorrt!r} is no version of TensorRT", "write it as 10.3")
    number = int(match[1]), int(match[2] or 0)
    if number[0] > NEWEST_MAJOR:
        raise BadInput(
            f"TensorRT {tensorrt} is newer than what the plugin library knows",
            f"name 10.x or {NEWEST_MAJOR}.x; or use the file as it is, whose gates run as layers",
        )
    known = [first for first in _TENSORRT_PTX if first <= number]
    if not known:
        raise BadInput(
            f"TensorRT {tensorrt} has no plugins of the kind that gates are lowered to",
            "use TensorRT 10.0 or later, or the file as it is: gates then run as native layers",
        )
    return _TENSORRT_PTX[max(known)]


def headed(ptx: bytes, newest: PtxVersion, capability: int) -> bytes:
    """PTX whose header asks for no later version than `newest`, but for one that has the target.

    The kernels use nothing of later versions than 8.4, so the text below the header stays.
    """
    match = re.search(rb"^\.version (\d+)\.(\d+)$", ptx, re.M)
    if match is None:
        raise ValueError("PTX without a version")
    made = int(match[1]), int(match[2])
    version = max(min(made, newest), _TARGET_PTX.get(capability, (0, 0)))
    header = b".version %d.%d" % version
    return ptx[: match.start()] + header + ptx[match.end() :].rstrip(b"\0") + b"\0"


@dataclass
class KernelImages:
    """The images of one network.

    Attributes:
        newest_ptx: see `headed`.
        wanted: capabilities by kernel, as far as `want` was told.
        content: bytes of each image, by entry point and architecture; `make` fills it.
    """

    newest_ptx: PtxVersion
    wanted: dict[Kernel, set[int]] = field(default_factory=dict)
    content: dict[tuple[str, str], bytes] = field(default_factory=dict)
    _carried: set[tuple[str, str]] = field(default_factory=set)

    def want(self, kernel: Kernel, capability: int) -> None:
        """Note that launches for `capability` use `kernel`."""
        self.wanted.setdefault(kernel, set()).add(capability)

    def make(self) -> None:
        """Compile what is wanted, two at a time, or take it from the cache.

        Raises:
            BadInput: NVRTC knows a target not.
            MissingCapability: NVRTC or the CUDA headers are not installed.
        """
        jobs = [(kernel, one) for kernel, all_ in self.wanted.items() for one in sorted(all_)]
        with progress() as bar, ThreadPoolExecutor(max_workers=2) as pool:
            task = bar.add_task("compile kernels", total=len(jobs))
            compiled = pool.map(lambda job: compile_kernels([job[0]], f"sm_{job[1]}"), jobs)
            for (kernel, capability), made in zip(jobs, compiled, strict=True):
                self.content[kernel.name, made.architecture] = made.image
                if capability == min(self.wanted[kernel]):
                    ptx = headed(made.ptx, self.newest_ptx, capability)
                    self.content[kernel.name, f"compute_{capability}"] = ptx
                bar.advance(task)

    def of_node(self, kernels: Iterable[Kernel]) -> tuple[tuple[Image, ...], bytes]:
        """The images of a node that uses `kernels`, and the bytes that it carries.

        A node carries those that no node carried before.
        """
        images, carried = [], b""
        names = {kernel.name for kernel in kernels}
        for place, content in self.content.items():
            entry, architecture = place
            if entry not in names:
                continue
            offset = None if place in self._carried else len(carried)
            if offset is not None:
                carried += content
            self._carried.add(place)
            key = hashlib.sha256(content).hexdigest()[:16]
            images.append(Image(entry, architecture, key, offset, len(content)))
        return tuple(images), carried
