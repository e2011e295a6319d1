"""What the fused gate is to reach on an H200, and what was found: the worst case of each target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
_LARGE_MAPS = ("256x56x56", "512x28x28", "1024x14x14")


@dataclass(frozen=True)
class Target:
    """A bound on one column of a part's rows.

    Attributes:
        name: what is to be reached, in words.
        part: the part whose rows it is about.
        column: the figure.
        bound: the least, or with `at_most` the most, that it may be.
        applies: which rows count.
    """

    name: str
    part: str
    column: str
    bound: float
    at_most: bool
    applies: Callable[[Row], bool]

    def judge(self, rows: list[Row]) -> Row:
        """The worst figure, and whether it reaches the bound; neither where there is none."""
        found = [row[self.column] for row in rows if self.applies(row) and self.column in row]
        if not found:
            return {"target": self.name, "worst": None, "met": "not measured"}
        worst = max(found) if self.at_most else min(found)
        met = worst <= self.bound if self.at_most else worst >= self.bound
        return {"target": self.name, "worst": worst, "met": "yes" if met else "no"}


TARGETS = (
    Target(
        "at least 90% of copy bandwidth: FP16 and INT8, batch 32 and more, the three larger maps",
        "gates",
        "percent_of_copy",
        90.0,
        False,
        lambda row: (
            row.get("dtype") in ("float16", "int8")
            and row["batch"] >= 32
            and row["map"] in _LARGE_MAPS
        ),
    ),
    Target(
        "at least 3 times as fast as torch.compile",
        "gates",
        "compiled_over_fused",
        3.0,
        False,
        lambda row: "dtype" in row,
    ),
    Target(
        "at most 5 us per gate at batch 1, under a CUDA graph, FP16",
        "gates",
        "fused_us",
        5.0,
        True,
        lambda row: row.get("batch") == 1 and row["dtype"] == "float16",
    ),
    Target(
        "CBAM-ResNet-50 in FP16 at batch 128 at most 1.15 times as slow as plain ResNet-50",
        "networks",
        "over_plain",
        1.15,
        True,
        lambda row: row["network"] == "fused" and row["batch"] == 128,
    ),
)


def judged(report: dict[str, Any]) -> list[Row]:
    """Every target with what was found; empty where no figure was."""
    rows = {part["name"]: part["rows"] for part in report["parts"]}
    found = [target.judge(rows.get(target.part, [])) for target in TARGETS]
    return found if any(row["worst"] is not None for row in found) else []
