"""What the machine code of a kernel consists of, by NVIDIA's disassembler.

`nvdisasm` is part of the CUDA toolkit, and of PyPI's ``nvidia-cuda-nvdisasm``.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

_LABEL = re.compile(r"^(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;")
_BRANCH = re.compile(r"BRA.*`\((\.L_x_\d+)\)")
_BATCH = 4  # Tiling::batch


@dataclass(frozen=True)
class MachineCode:
    """Of one kernel.

    Attributes:
        instructions: all of them.
        per_64_elements: those of its loops over the map, for every 64 elements of x; None where the
            map is not read in 16-byte vectors.
        fences: for all of the GPU's memory.
        conversions: from integers, each as long as eight other instructions.
    """

    instructions: int
    per_64_elements: int | None
    fences: int
    conversions: int


def disassembler() -> str | None:
    """The program, if this machine has it."""
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations or () if spec else ()
    installed = (Path(folder) / "cu13" / "bin" / "nvdisasm" for folder in folders)
    return shutil.which("nvdisasm") or next((str(one) for one in installed if one.is_file()), None)


def disassemble(program: str, image: bytes) -> dict[str, str]:
    """The listing of every kernel in `image`, a cubin, by name."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(image)
        file.flush()
        command = [program, "--print-code", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    sections = re.split(r"^\s*\.section\s+\.text\.([^,\s]+).*$", text, flags=re.MULTILINE)
    return dict(zip(sections[1::2], sections[2::2], strict=True))


def read(listing: str, vector: int | None) -> MachineCode:
    """Count in a kernel's listing.

    A loop over the map is an innermost one with at least four 16-byte accesses, together with what
    sums up over a warp around it; one that does nothing but multiply and add is over weights. Its
    body is counted as it stands, both sides of branches.

    Args:
        listing: as `disassemble` gives it.
        vector: elements in 16 bytes of the kernel's map; None where that is read otherwise.
    """
    instructions, labels = _parse(listing)
    loops = _loops(instructions, labels)
    reading = [loop for loop in loops if _accesses(instructions, loop)]
    innermost = [loop for loop in reading if not any(_inside(one, loop) for one in reading)]
    inner = [loop for loop in innermost if _is_over_the_map(instructions, loop)]
    per_turn = sum(_turn(instructions, loop, loops, inner) for loop in inner)
    return MachineCode(
        instructions=len(instructions),
        per_64_elements=round(per_turn * 64 / (_BATCH * vector)) if vector else None,
        fences=_count(instructions, r"MEMBAR\.\w+\.GPU"),
        conversions=_count(instructions, r"\bI2F\b"),
    )


Loop = tuple[int, int]
"""First and last instruction."""


def _parse(listing: str) -> tuple[list[str], dict[str, int]]:
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif instruction := _INSTRUCTION.match(line):
            instructions.append(instruction[1])
    return instructions, labels


def _loops(instructions: list[str], labels: dict[str, int]) -> list[Loop]:
    """What branches back, but for waiting in one place; small ones first."""
    branches = ((at, _BRANCH.search(text)) for at, text in enumerate(instructions))
    targets = ((labels.get(branch[1], at + 1), at) for at, branch in branches if branch)
    return sorted((loop for loop in targets if loop[0] < loop[1]), key=lambda one: one[1] - one[0])


def _turn(instructions: list[str], loop: Loop, loops: list[Loop], inner: list[Loop]) -> int:
    """Instructions of a loop over the map in one turn."""
    for around in loops:
        body = instructions[around[0] : around[1] + 1]
        alone = sum(_inside(one, around) for one in inner) == 1
        if _inside(loop, around) and alone and _count(body, "SHFL") and not _count(body, "BAR"):
            return len(body)
    return loop[1] - loop[0] + 1


def _inside(loop: Loop, around: Loop) -> bool:
    return around != loop and around[0] <= loop[0] and loop[1] <= around[1]


def _is_over_the_map(instructions: list[str], loop: Loop) -> bool:
    body = instructions[loop[0] : loop[1] + 1]
    over_weights = _count(body, "FFMA") and not _count(body, "FMNMX|HADD2|PRMT|STG")
    return _accesses(instructions, loop) >= _BATCH and not over_weights


def _accesses(instructions: list[str], loop: Loop) -> int:
    """Those of 16 bytes."""
    return _count(instructions[loop[0] : loop[1] + 1], r"(LDS|LDG|STG)\.[\w.]*\b128")


def _count(instructions: list[str], pattern: str) -> int:
    return sum(re.search(pattern, text) is not None for text in instructions)
