"""What every kernel variant takes of the machine, from the compiler's own report.

`make kernel-report` compiles the kernels that `geometry.plan` chooses for every architecture: in
every type and layout CBAM and Squeeze-and-Excitation for the largest gate of ResNet-50 and a small
odd map, and the commonest operator for its other gates; and in the layouts that networks have the
other gates (`OTHERS`). It writes a table, and where there is a disassembler another one, of what
the machine code for Hopper consists of. It fails if any kernel spills registers, uses local memory,
or exceeds a block's shared memory or a multiprocessor's registers.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.machine_code import MachineCode, disassemble, disassembler
from benchmarks.machine_code import read as read_code
from cbam_deploy.errors import CheckFailed, DeployError
from cbam_deploy.gates.description import CBAM, GATES, SE, GateSpec
from cbam_deploy.gates.operators import GateOperator, operator_for
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
_COMMON = operator_for(CBAM, residual=True, activation="relu")
_OPERATORS: tuple[tuple[GateOperator, int], ...] = (
    (_COMMON, 7),
    (operator_for(CBAM), 7),
    (_COMMON, 3),
    (operator_for(CBAM), 3),
    (operator_for(SE, residual=True, activation="relu"), 0),
    (operator_for(SE), 0),
)
OTHERS: tuple[tuple[GateOperator, GateSpec], ...] = (
    *((operator_for(spec), spec) for spec in GATES.values() if spec not in (CBAM, SE)),
    *(
        (operator_for(spec, residual=residual, activation=activation), spec)
        for spec, residual, activation in (
            (replace(CBAM, arrangement="spatial-channel"), False, "none"),
            (GateSpec(arrangement="spatial", spatial="conv1x1", kernel_size=1), False, "none"),
            (replace(CBAM, join="gates", activation="gelu", spatial="avg"), False, "none"),
            (replace(CBAM, join="pools", activation="leaky_relu", kernel_size=15), False, "none"),
            (GATES["cbam-linear"], True, "none"),
            (GATES["eca"], True, "gelu"),
            (GATES["se-silu"], False, "silu"),
        )
    ),
)
"""Other gates, by operator and with sizes: those that have names, and what these do not show."""
_OTHER_MAP = (512, 28)
_OTHER_FORMATS: tuple[tuple[Dtype, LayoutName], ...] = (
    ("float16", "nhwc"),
    ("int8", "chw32"),
    ("float32", "nchw"),
)
_STRATEGIES: tuple[Strategy, ...] = ("auto", "staged")
_REGISTERS = 65536  # of a multiprocessor, on every architecture
_PER_PROGRAM = 16  # kernels compiled together
_DISASSEMBLED = 90


@dataclass(frozen=True)
class Usage:
    """What one kernel takes: registers and bytes per thread, dynamic shared bytes per block.

    Attributes:
        kernel: its name, but for the hash.
        maps: element type and layout, and the vector; empty where it reads none.
        code: of `_DISASSEMBLED`, where there is a disassembler.
    """

    kernel: str
    maps: tuple[str, str]
    architecture: int
    threads: int
    registers: int
    spill_bytes: int
    stack_bytes: int
    static_shared_bytes: int
    shared_bytes: int
    code: MachineCode | None = None

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


def gate_of(
    operator: GateOperator, spec: GateSpec, channels: int, height: int, width: int, **storage: Any
) -> Gate:
    """`operator` on a map, with weights as large as `spec` says."""
    weights = operator.weights
    return Gate(
        operator,
        *(channels, height, width),
        hidden=max(1, channels // spec.reduction) if "W0" in weights else 0,
        kernel_size=spec.kernel_size if "WS" in weights else 0,
        channel_kernel_size=spec.channel_kernel_size if "WC" in weights else 0,
        **storage,
    )


def gates(formats: Iterable[tuple[Dtype, LayoutName]] = FORMATS) -> Iterator[Gate]:
    """Every gate that the report plans for."""
    formats = tuple(formats)
    for channels, size in MAPS:
        for dtype, layout in formats:
            every = (channels, size) in (MAPS[0], MAPS[-1])
            for operator, kernel_size in _OPERATORS if every else _OPERATORS[:1]:
                spec = replace(CBAM, kernel_size=kernel_size or 7)
                shape = (channels, size, size)
                yield gate_of(operator, spec, *shape, dtype=dtype, layout=layout)
    channels, size = _OTHER_MAP
    for dtype, layout in _OTHER_FORMATS:
        if (dtype, layout) in formats:
            for operator, spec in OTHERS:
                yield gate_of(operator, spec, channels, size, size, dtype=dtype, layout=layout)


def planned_launches(limits: DeviceLimits) -> dict[str, Launch]:
    """By kernel, the launch with the most shared memory that is planned on a device."""
    launches: dict[str, Launch] = {}
    for gate in gates():
        for strategy in _STRATEGIES:
            for launch in plan(gate, limits, strategy=strategy).launches:
                known = launches.setdefault(launch.kernel.name, launch)
                if launch.shared_bytes > known.shared_bytes:
                    launches[launch.kernel.name] = launch
    return launches


def measure(architecture: int, launches: list[Launch]) -> list[Usage]:
    """Compile the kernels of `launches` for one architecture and read the compiler's report."""
    compiled = compile_kernels((launch.kernel for launch in launches), f"sm_{architecture}")
    usages = [read_usage(compiled, launch, architecture) for launch in launches]
    program = disassembler()
    if architecture != _DISASSEMBLED or program is None:
        return usages
    listings = disassemble(program, compiled.image)
    return [
        replace(usage, code=read_code(listings[launch.kernel.name], _vector(launch)))
        for usage, launch in zip(usages, launches, strict=True)
    ]


def read_usage(compiled: CompiledKernels, launch: Launch, architecture: int) -> Usage:
    """What ptxas said of one kernel.

    Raises:
        RuntimeError: it said nothing, or in other words than CUDA 13.0's.
    """
    name = launch.kernel.name
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
        kernel=name.rpartition("_")[0],
        maps=_maps(launch),
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
        "and a small odd map, and other gates on one map, fused and staged. None spills, none uses",
        "local memory.",
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
    codes = {row: [u.code for u in rows[row] if u.code] for row in sorted(rows)}
    if any(codes.values()):
        lines += _machine_code({row: code for row, code in codes.items() if code})
    return "\n".join(lines) + "\n"


def _machine_code(codes: dict[tuple[str, ...], list[MachineCode]]) -> list[str]:
    """A table of the most that any of a row's tilings has."""
    lines = [
        "",
        f"## Machine code for sm_{_DISASSEMBLED}",
        "",
        "Instructions in all, and those of the loops over the map for every 64 elements of x, both",
        "sides of branches counted; fences for all of the GPU's memory; conversions from integers,",
        "which take as long as eight other instructions.",
        "",
        "| kernel | elements | vector | threads | instructions | per 64 elements | fences | I2F |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row, all_codes in codes.items():
        figures = (
            max(code.instructions for code in all_codes),
            max(code.per_64_elements or 0 for code in all_codes) or "",
            max(code.fences for code in all_codes),
            max(code.conversions for code in all_codes),
        )
        lines.append("| " + " | ".join((*row, *map(str, figures))) + " |")
    return lines


def _row(usage: Usage) -> tuple[str, str, str, str]:
    """What tells a row of the table from the others."""
    return (f"`{usage.kernel}`", *usage.maps, str(usage.threads))


def _maps(launch: Launch) -> tuple[str, str]:
    if launch.tiling is None:
        return "", ""
    gate = launch.tiling.gate
    kernel_size = f" k={gate.kernel_size}" if "ws" in launch.inputs else ""
    return f"{gate.dtype} {gate.layout}{kernel_size}", str(gate.vector)


def _vector(launch: Launch) -> int | None:
    """Elements of a vector of the map, where it has 16 bytes."""
    gate = launch.tiling.gate if launch.tiling else None
    return gate.vector if gate and gate.vector * gate.element_bytes == 16 else None


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
