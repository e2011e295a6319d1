"""The host as a device: builds the kernels with g++ and carries out launch plans on threads."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import cbam_deploy.plugins
from cbam_deploy.gates.reference import Weights
from cbam_deploy.plugins.entries import Kernel
from cbam_deploy.plugins.gate import Gate
from cbam_deploy.plugins.geometry import DeviceLimits, grid
from cbam_deploy.plugins.launches import BATCH, Launch, LaunchPlan

KERNELS = Path(cbam_deploy.plugins.__file__).parent / "kernels"
HOST = Path(__file__).parent / "host"
WARP = 8
LIMITS = DeviceLimits(90, 2, 48 * 1024, 96 * 1024, warp=WARP, small_block=16, large_block=32)
DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.int8),
}


@dataclass(frozen=True)
class HostDevice:
    """A built program: the names of the kernels it knows, in order."""

    program: Path
    kernels: tuple[str, ...]

    def run(
        self,
        plan: LaunchPlan,
        weights: Weights,
        x: NDArray,
        r: NDArray | None,
        folder: Path,
        *,
        clusters: int = 1,
        omitted_barrier: int = -1,
    ) -> NDArray:
        """Y [N, C, H, W] of x and r [N, C, H, W], by carrying out `plan`.

        Where r is x itself, the kernels get one address for both. Of a persistent launch so many
        `clusters` run at the same time. Of kernels whose barriers have numbers, `omitted_barrier`
        is left out.
        """
        gate, batch = plan.gate, x.shape[0]
        inputs = {"x": to_storage(gate, x), **vars(weights)}
        if r is not None and r is not x:
            inputs["r"] = to_storage(gate, r)
        outputs = {name: 4 * size * batch for name, size in plan.workspace}
        outputs["y"] = inputs["x"].nbytes
        used = {name for launch in plan.launches for name in launch.inputs}
        lines = []
        for name in used & inputs.keys():
            inputs[name].tofile(folder / name)
            lines.append(f"buffer {name} {inputs[name].nbytes} {folder / name}")
        lines += [f"buffer {name} {size} -" for name, size in outputs.items()]
        for launch in plan.launches:
            known = {name: f"buffer {name}" for name in (*launch.inputs, *launch.outputs)}
            known |= {BATCH: f"integer {batch}"} | ({"r": "buffer x"} if r is x else {})
            arguments = [known.get(one, f"integer {one}") for one in launch.arguments]
            blocks = grid(launch, batch, LIMITS, clusters * launch.cluster)
            lines.append(
                f"launch {self.kernels.index(launch.kernel.name)} {blocks} "
                f"{launch.cluster} {launch.threads} {launch.shared_bytes} "
                f"{int(launch.programmatic)} {len(arguments)}"
            )
            lines += arguments
        lines.append(f"save y {folder / 'y'}")
        done = subprocess.run(
            [self.program],
            input="\n".join(lines),
            env={
                **os.environ,
                "CBAM_HOST_OMIT": str(omitted_barrier),
                "TSAN_OPTIONS": "halt_on_error=1",
            },
            text=True,
            capture_output=True,
            check=False,
        )
        if done.returncode or done.stderr:
            raise RuntimeError(f"exit {done.returncode}\n{done.stderr}")
        y = np.fromfile(folder / "y", dtype=DTYPES[gate.dtype])
        return from_storage(gate, y, batch)


def build(
    folder: Path,
    kernels: Iterable[Kernel],
    *flags: str,
    warp: int = WARP,
    sources: Path = KERNELS,
) -> HostDevice:
    """Compile `kernels` for the host with extra compiler `flags`."""
    texts = {kernel.name: kernel.text for kernel in kernels}
    names = tuple(sorted(texts))
    definitions = "".join(texts[name] for name in names)
    return HostDevice(
        _compile(folder, "run_plan", "KERNEL", names, flags, warp, sources, definitions), names
    )


def visits(folder: Path, launches: Iterable[tuple[Gate, Launch]]) -> list[tuple[int, int, int]]:
    """How often the threads of each launch come to the elements of an image.

    Returns, for each: the fewest and the most visits of an element, and the visits outside.
    """
    launches = list(launches)
    tilings = [launch.tiling.expression for _, launch in launches]
    names = tuple(sorted(set(tilings)))
    lines = []
    for (gate, launch), tiling in zip(launches, tilings, strict=True):
        cut = dict(launch.integers)
        sizes = (gate.channels, gate.stored, gate.height, gate.width)
        per_block = cut["positions_per_block"], cut.get("channels_per_block", gate.stored)
        lines.append(" ".join(map(str, (names.index(tiling), *sizes, *per_block))))
    program = _compile(folder, "walk", "TILING", names, ["-O1"], 32, KERNELS)
    done = subprocess.run(
        [program], input="\n".join(lines), text=True, capture_output=True, check=True
    )
    counts = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    return [(fewest, most, outside) for fewest, most, outside in counts]


def _compile(
    folder: Path,
    source: str,
    macro: str,
    names: Iterable[str],
    flags: Iterable[str],
    warp: int,
    sources: Path,
    definitions: str = "",
) -> Path:
    """The program of a source in ``host/`` with a list of C++ names; built if it is not there.

    `definitions` are C++ text that the list is about.
    """
    listing = "".join(f"{macro}({name})\n" for name in names)
    command = ["g++", "-std=c++20", "-g1", "-fno-strict-aliasing", "-Wall", "-Werror"]
    command += ["-Wno-unknown-pragmas", "-pthread", f"-DCBAM_HOST_WARP={warp}", *flags]
    texts = [path.read_text() for path in sorted([*sources.glob("*.cuh"), *HOST.iterdir()])]
    key = hashlib.sha256(
        "\0".join([source, listing, definitions, *command, *texts]).encode()
    ).hexdigest()[:16]
    program = folder / f"{source}-{key}"
    with (folder / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Of two workers, one builds it.
        if program.exists():
            return program
        (folder / f"{key}.inc").write_text(listing)
        (folder / f"{key}.defs").write_text(definitions)
        command += [
            f'-D{macro}S="{folder / key}.inc"',
            f'-DDEFINITIONS="{folder / key}.defs"',
            f"-I{sources}",
            f"-I{HOST}",
        ]
        command += ["-o", f"{program}.part", str(HOST / f"{source}.cpp")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:4000]
        Path(f"{program}.part").rename(program)
    return program


def to_storage(gate: Gate, x: NDArray) -> NDArray:
    """x [N, C, H, W] as the layout stores it, flat; what lies beyond C is all bits set."""
    x = x.astype(DTYPES[gate.dtype])
    if gate.layout == "nchw":
        return np.ascontiguousarray(x).ravel()
    batch = x.shape[0]
    bits = np.full((batch, gate.height, gate.width, gate.stored * x.itemsize), 255, np.uint8)
    padded = bits.view(x.dtype)
    padded[..., : gate.channels] = x.transpose(0, 2, 3, 1)
    if gate.layout == "nhwc":
        return padded.ravel()
    blocks = padded.reshape(batch, gate.positions, gate.stored // 32, 32)
    return np.ascontiguousarray(blocks.transpose(0, 2, 1, 3)).ravel()


def from_storage(gate: Gate, y: NDArray, batch: int) -> NDArray:
    """The inverse of `to_storage`; checks that what lies beyond C is zero."""
    if gate.layout == "nchw":
        return y.reshape(batch, gate.channels, gate.height, gate.width)
    if gate.layout == "nhwc":
        rows = y.reshape(batch, gate.positions, gate.stored)
    else:
        blocks = y.reshape(batch, gate.stored // 32, gate.positions, 32)
        rows = blocks.transpose(0, 2, 1, 3).reshape(batch, gate.positions, gate.stored)
    assert not rows[..., gate.channels :].astype(np.float64).any(), "padding is not zero"
    maps = rows[..., : gate.channels].reshape(batch, gate.height, gate.width, gate.channels)
    return maps.transpose(0, 3, 1, 2)
