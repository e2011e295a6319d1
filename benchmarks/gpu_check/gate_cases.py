"""The gates that are timed: those of ResNet-50, every type, layout and batch, by importance."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cbam_deploy.gates.description import CBAM
from cbam_deploy.gates.operators import operator_for
from cbam_deploy.plugins.gate import Gate
from cbam_deploy.plugins.layouts import Dtype, LayoutName

_OPERATOR = operator_for(CBAM, residual=True, activation="relu")
MAPS = ((256, 56), (512, 28), (1024, 14), (2048, 7))
BATCHES = (32, 128, 1, 8)
FORMATS: tuple[tuple[Dtype, LayoutName], ...] = (
    ("float16", "nhwc"),
    ("int8", "chw32"),
    ("bfloat16", "nhwc"),
    ("float16", "nchw"),
    ("float32", "nhwc"),
    ("int8", "nhwc"),
    ("float32", "nchw"),
    ("bfloat16", "nchw"),
    ("int8", "nchw"),
)


@dataclass(frozen=True)
class GateCase:
    """One gate with residual and ReLU, at one batch."""

    gate: Gate
    batch: int

    @property
    def map_bytes(self) -> int:
        """Bytes of one map of the whole batch."""
        return self.batch * self.gate.stored * self.gate.positions * self.gate.element_bytes

    @property
    def moved_bytes(self) -> int:
        """One read of x and of the residual, one write: what cannot be avoided."""
        return 3 * self.map_bytes

    def names(self) -> dict[str, object]:
        """What tells this case from others, for a row."""
        gate = self.gate
        return {
            "map": f"{gate.channels}x{gate.height}x{gate.width}",
            "dtype": gate.dtype,
            "layout": gate.layout,
            "batch": self.batch,
        }


def gate_cases() -> list[GateCase]:
    """Every case, what the targets speak of first."""
    cases = []
    for dtype, layout in FORMATS:
        for channels, size in MAPS:
            shape = (channels, size, size)
            gate = Gate(_OPERATOR, *shape, channels // 16, 7, dtype=dtype, layout=layout)
            if dtype == "int8":
                gate = replace(gate, x_scale=0.05, r_scale=0.04, y_scale=0.03)
            cases += [GateCase(gate, batch) for batch in BATCHES]
    return cases


def large_cases() -> list[GateCase]:
    """The gates of what the targets speak of first, at the first batch."""
    return gate_cases()[: len(MAPS) * len(BATCHES) : len(BATCHES)]
