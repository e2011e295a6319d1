"""What the fused gate is to reach, and what was found: the worst case of each target."""

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
        found = [row for row in rows if self.column in row and self.applies(row)]
        if not found:
            return {"target": self.name, "worst": None, "of": 0, "met": "not measured"}
        figures = [row[self.column] for row in found]
        worst = max(figures) if self.at_most else min(figures)
        holds = [one <= self.bound if self.at_most else one >= self.bound for one in figures]
        return {
            "target": self.name,
            "worst": worst,
            "of": len(found),
            "met": "yes" if all(holds) else f"no, in {holds.count(True)} of {len(holds)}",
        }


def _is_judged_type(row: Row) -> bool:
    """Whether a row is of a type and layout that bandwidth is asked of."""
    return row["dtype"] in ("float16", "int8") and row["layout"] == "nhwc"


TARGETS = (
    Target(
        "FP16 and INT8, channels last, batch 32 and more, the three larger maps: at least 92% of"
        " the speed of torch.add(x, r, out=y)",
        *("gates", "percent_of_add", 92.0, False),
        lambda row: _is_judged_type(row) and row["batch"] >= 32 and row["map"] in _LARGE_MAPS,
    ),
    Target(
        "these at batch 1, on all maps: at most 2.0 times as long as that addition, each less an"
        " empty launch",
        *("gates", "over_add_less_empty", 2.0, True),
        lambda row: _is_judged_type(row) and row["batch"] == 1,
    ),
    Target(
        "at least as fast as torch.compile",
        *("compiled", "compiled_over_gate", 1.0, False),
        lambda row: "map" in row,
    ),
    Target(
        "at least 1.6 times as fast as torch.compile on maps that do not fit in L2",
        *("compiled", "compiled_over_gate", 1.6, False),
        lambda row: row["fits_l2"] == "no",
    ),
    Target(
        "CBAM-ResNet-50 in FP16: at most 1.05 times as long as plain ResNet-50 whose addition and"
        " ReLU are fused alike",
        *("networks", "over_plain", 1.05, True),
        lambda row: row["network"] == "fused",
    ),
)


def judged(report: dict[str, Any]) -> list[Row]:
    """Every target with what was found; empty where no figure was."""
    rows = {part["name"]: part["rows"] for part in report["parts"]}
    found = [target.judge(rows.get(target.part, [])) for target in TARGETS]
    return found if any(row["worst"] is not None for row in found) else []
