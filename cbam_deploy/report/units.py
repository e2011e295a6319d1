"""Numbers as people read them: with a unit, and no more digits than they carry."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cbam_deploy.errors import BadInput

MISSING = "–"


@dataclass(frozen=True)
class Estimate:
    """A figure and the ends of its confidence interval, all in one unit."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class MetricUnit:
    """How the values of a metric are written; larger values are better.

    Attributes:
        label: what the metric is called, such as ``top-1``.
        share: whether values lie between 0 and 1: they are written in percent, and differences in
            points of that.
    """

    label: str
    share: bool = True

    def check_drop(self, drop: float) -> None:
        """Raise `BadInput` for a fall of the metric that cannot be meant."""
        if self.share and not 0 <= drop <= 1:
            raise BadInput(
                f"a drop in {self.label} of {drop:.2%} is not between 0% and 100%",
                "give a share such as 0.5%",
            )
        if not 0 <= drop < math.inf:
            raise BadInput(f"a drop in {self.label} of {drop}", "give a positive number")

    def text(self, value: float | None) -> str:
        """A value: 98.33%, or 31.42."""
        if value is None or self.share:
            return percent(value)
        return digits(value, 4)

    def points(self, difference: float) -> str:
        """A difference without its sign: 0.52 points, or 0.0123."""
        return f"{100 * difference:.2f} points" if self.share else digits(difference)

    def signed(self, difference: float) -> str:
        """A difference with its sign and no unit: +0.52."""
        if self.share:
            return f"{0 + 100 * difference:+.2f}"
        return ("+" if difference >= 0 else "") + digits(difference)


TOP1 = MetricUnit("top-1")


def digits(value: float, significant: int = 3) -> str:
    """`value` with `significant` digits, never in powers of ten: 0.0123, 1.23, 123, 12,345."""
    if not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    decimals = significant - 1 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, decimals)}f}"


def milliseconds(seconds: float) -> str:
    """A duration in ms without the unit, to three or four digits: 0.512, 31.25, 250.1."""
    return digits(seconds * 1e3, 4)


def duration(seconds: float) -> str:
    """A duration with the unit that suits it: 3.2 ms, 41 s, 2 min 5 s."""
    if seconds < 1:
        return f"{digits(seconds * 1e3)} ms"
    if seconds < 60:
        return f"{digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def size(size_bytes: int | None) -> str:
    """Bytes in MB of 10^6 bytes, or kB and GB where these suit: 66.1 MB."""
    if size_bytes is None:
        return MISSING
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size_bytes >= factor:
            return f"{digits(size_bytes / factor)} {unit}"
    return f"{size_bytes} B"


def half_width(estimate: Estimate) -> str:
    """The larger side of the interval in percent of the value: ±1.2%."""
    side = max(estimate.high - estimate.value, estimate.value - estimate.low)
    return f"±{100 * side / estimate.value:.1f}%"


def interval(estimate: Estimate) -> str:
    """The interval of a ratio: 1.021 to 1.066."""
    return f"{estimate.low:.3f} to {estimate.high:.3f}"


def scientific(value: float | None) -> str:
    """An error figure: 3.1e-06, or 0."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:.1e}" if value else "0"


def percent(fraction: float | None) -> str:
    """A share: 98.33%."""
    return MISSING if fraction is None else f"{100 * fraction:.2f}%"
