"""What every kernel variant takes of the machine, from the compiler's own report.

`make kernel-report` compiles the kernels that `geometry.plan` chooses, in every type, layout and
operator, for the largest gate of ResNet-50 and a small odd map, and of its commonest operator for
its other gates, for every architecture; and writes a table.
It fails if any kernel spills registers, uses local memory, or exceeds a block's shared memory or a
multiprocessor's registers.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cbam_deploy.errors import CheckFailed, DeployError
from cbam_deploy.outputs import write_text
from cbam_deploy.plugins.compile import CompiledKernels, compile_kernels
from cbam_deploy.plugins.gate import ELEMENTS, Gate
from cbam_deploy.plugins.geometry import KNOWN_DEVICES, DeviceLimits, Strategy, plan
from cbam_deploy.plugins.launches import Launch
from cbam_deploy.plugins.layouts import LAYOUTS, Dtype, LayoutName

MAPS = ((256, 56), (512, 28), (1024, 14), (2048, 7), (20, 5))
"""Channels, and height and width, of the gates of CBAM-ResNet-50; and one that nothing divides."""

FORMATS: tuple[tuple[Dtype, LayoutName], ...] = tuple(
    (dtype, layout.name)
    for dtype in ELEMENTS
    for layout in LAYOUTS.values()
    if dtype in layout.dtypes
)
_COMMON = (7, True)  # kernel size, and whether there is a residual: CbamGateAddRelu
_OPERATORS = (_COMMON, (7, False), (3, True), (3, False), (0, True), (0, False))
_STRATEGIES: tuple[Strategy, ...] = ("auto", "staged")
_REGISTERS = 65536  # of a multiprocessor, on every architecture
_PER_PROGRAM = 16  # kernels compiled together


@dataclass(frozen=True)
class Usage:
    """What one kernel takes: registers and bytes per thread, dynamic shared bytes per block."""

    kernel: str
    architecture: int
    threads: int
    registers: int
    spill_bytes: int
    stack_bytes: int
    static_shared_bytes: int
    shared_bytes: int

    def problems(self, limits: DeviceLimits) -> Iterator[str]:
        """Every reason why this kernel would be slow or would not launch."""
        where = f"sm_{self.architecture} {self.kernel}"
        if self.spill_bytes:
            yield f"{where}: spills {self.spill_bytes} bytes"
        if self.stack_bytes:
            yield f"{where}: uses {self.stack_bytes} bytes of local memory"
        if self.registers * self.threads > _REGISTERS:
            yield f"{where}: {self.registers} registers in {self.threads} threads"
        if self.shared_bytes + self.static_shared_bytes > limits.block_shared_bytes:
            yield f"{where}: {self.shared_bytes} bytes of shared memory"


def gates(formats: Iterable[tuple[Dtype, LayoutName]] = FORMATS) -> Iterator[Gate]:
    """Every gate that the report plans for."""
    for channels, size in MAPS:
        for dtype, layout in formats:
            every = (channels, size) in (MAPS[0], MAPS[-1])
            for kernel_size, residual in _OPERATORS if every else (_COMMON,):
                hidden = max(1, channels // 16)
                shape = (channels, size, size, hidden)
                yield Gate(*shape, kernel_size, residual, dtype, layout)


def planned_launches(limits: DeviceLimits) -> dict[str, Launch]:
    """By kernel, the launch with the most shared memory that is planned on a device."""
    launches: dict[str, Launch] = {}
    for gate in gates():
        for strategy in _STRATEGIES:
            for launch in plan(gate, limits, strategy=strategy).launches:
                known = launches.setdefault(launch.kernel, launch)
                if launch.shared_bytes > known.shared_bytes:
                    launches[launch.kernel] = launch
    return launches


def measure(architecture: int, launches: list[Launch]) -> list[Usage]:
    """Compile the kernels of `launches` for one architecture and read the compiler's report."""
    compiled = compile_kernels((launch.kernel for launch in launches), f"sm_{architecture}")
    return [read_usage(compiled, launch, architecture) for launch in launches]


def read_usage(compiled: CompiledKernels, launch: Launch, architecture: int) -> Usage:
    """What ptxas said of one kernel.

    Raises:
        RuntimeError: it said nothing, or in other words than CUDA 13.0's.
    """
    name = compiled.names[launch.kernel]
    match = re.search(
        rf"Function properties for {re.escape(name)}\n.*?"
        r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
        r"(?P<loads>\d+) bytes spill loads\n.*?"
        r"Used (?P<registers>\d+) registers(?P<rest>.*)",
        compiled.log,
    )
    if match is None:
        raise RuntimeError(f"ptxas reports nothing of {name}:\n{compiled.log}")
    static = re.search(r"(\d+) bytes smem", match["rest"])
    return Usage(
        kernel=launch.kernel,
        architecture=architecture,
        threads=launch.threads,
        registers=int(match["registers"]),
        spill_bytes=int(match["stores"]) + int(match["loads"]),
        stack_bytes=int(match["stack"]),
        static_shared_bytes=int(static[1]) if static else 0,
        shared_bytes=launch.shared_bytes,
    )


def measure_all(architectures: Iterable[int]) -> list[Usage]:
    """Every planned kernel on every architecture, on the processors this process may use."""
    tasks = []
    for architecture in architectures:
        launches = list(planned_launches(KNOWN_DEVICES[architecture]).values())
        for start in range(0, len(launches), _PER_PROGRAM):
            tasks.append((architecture, launches[start : start + _PER_PROGRAM]))
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as processes:
        parts = processes.map(measure, *zip(*tasks, strict=True))
        return [usage for part in parts for usage in part]


def markdown(usages: list[Usage]) -> str:
    """A table with one row per kernel, type and vector: the most that any of its tilings takes."""
    architectures = sorted({usage.architecture for usage in usages})
    rows: dict[tuple[str, ...], list[Usage]] = defaultdict(list)
    for usage in usages:
        rows[_row(usage)].append(usage)
    lines = [
        "# Kernel report",
        "",
        f"{len(usages)} kernels compiled: those that the geometry plans for the gates of ResNet-50",
        "and a small odd map, fused and staged. None spills, none uses local memory.",
        "Written by `make kernel-report`, which would have failed otherwise.",
        "",
        "Registers are per thread, the most of the row's tilings; shared memory is the largest",
        "block's, in KiB.",
        "",
        "| kernel | elements | vector | threads | variants | shared | "
        + " | ".join(f"sm_{number}" for number in architectures)
        + " |",
        "|---|---|--:|--:|--:|--:|" + "--:|" * len(architectures),
    ]
    for row in sorted(rows):
        most = max(usage.shared_bytes for usage in rows[row]) / 1024
        registers = [
            max((u.registers for u in rows[row] if u.architecture == number), default=0)
            for number in architectures
        ]
        cells = [*row, str(len(rows[row])), f"{most:.1f}", *(str(r or "") for r in registers)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _row(usage: Usage) -> tuple[str, str, str, str]:
    """Kernel with its own arguments, elements, vector and threads, as a row shows them."""
    name = usage.kernel.replace("cbam::", "").replace("Layout::", "")
    tiling = re.search(r"<Tiling<([^,]+), (\w+), \w+, (\d+), \d+, \d+>(.*)>$", name)
    kernel = name.partition("<")[0]
    if tiling is None:
        return (f"`{kernel}`", "", "", str(usage.threads))
    element, layout, vector, rest = tiling.groups()
    *_, kernel_size = ["", *rest.strip(", ").split(", ")] if "cbam" in kernel else [""]
    suffix = f" k={kernel_size}" if kernel_size else ""
    return (f"`{kernel}`{suffix}", f"{element} {layout}", vector, str(usage.threads))


def main() -> int:
    """Write the report; 1 if a kernel is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, help="Markdown file to write")
    parser.add_argument("--architecture", type=int, action="append", choices=list(KNOWN_DEVICES))
    arguments = parser.parse_args()
    try:
        usages = measure_all(arguments.architecture or KNOWN_DEVICES)
        problems = [
            p for usage in usages for p in usage.problems(KNOWN_DEVICES[usage.architecture])
        ]
        if problems:
            raise CheckFailed("; ".join(problems), "change the kernel or its geometry")
        text = markdown(usages)
        if arguments.output:
            write_text(arguments.output, text)
        else:
            print(text, end="")
    except DeployError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
