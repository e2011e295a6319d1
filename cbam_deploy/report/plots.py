"""Small plots as SVG text, to stand inside a page and take its colours and font.

Colours are drawn as placeholders and replaced by CSS variables of the page (its ``style.css``),
so that one plot is legible on light and dark pages and in print. Text stays text: it takes the
page's font, can be selected, and needs no glyph outlines. A plot is `WIDTH` units wide, which a
phone shows at nearly full size.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from cbam_deploy.errors import imports_for
from cbam_deploy.report.units import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 380.0
_POINTS_PER_INCH = 72
_INK, _QUIET, _LINE = "#010203", "#010204", "#010205"
_SERIES = ("#010301", "#010302", "#010303", "#010304", "#010305", "#010306")
_VARIABLES = {
    _INK: "var(--ink)",
    _QUIET: "var(--quiet)",
    _LINE: "var(--line)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES, 1)},
}
_FONT = "DejaVu Sans"  # It comes with matplotlib.
_OTHER_SCRIPTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans JP",
    "Noto Sans SC",
    "Noto Sans KR",
    "Source Han Sans",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "IPAexGothic",
    "IPAGothic",
    "NanumGothic",
    "Arial Unicode MS",
    "Unifont",
)
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cbam-deploy",
    "figure.constrained_layout.h_pad": 0.07,
    "font.size": 10.5,
    "text.color": _INK,
    "text.parse_math": False,
    "axes.prop_cycle": f"cycler(color=['{_INK}'])",
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _QUIET,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": _LINE,
    "grid.linewidth": 0.8,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _QUIET,
    "ytick.labelcolor": _QUIET,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
}


@dataclass(frozen=True)
class Spread:
    """One line of `spread_plot`: a distribution by some of its quantiles.

    Attributes:
        label: what it is of.
        value: `median` in words, with unit.
        series: number of its colour, from 0.
        median: in the plot's unit; `p90` and `p99` likewise.
        samples: single figures to show as ticks.
    """

    label: str
    value: str
    series: int
    median: float
    p90: float
    p99: float
    samples: Sequence[float]


def spread_plot(panels: Mapping[str, Sequence[Spread]], unit: str) -> str:
    """Distributions one below the other, in one panel with its own axis per item of `panels`.

    Per line: a dot at the median, a thick bar from there to p90, a thin one to p99, ticks for the
    samples.
    """
    with plot_style():
        heights = [len(lines) + 0.6 for lines in panels.values()]
        figure = _figure(40 * sum(heights) + 24 * len(panels) + 16)
        axes = figure.subplots(len(panels), squeeze=False, gridspec_kw={"height_ratios": heights})[
            :, 0
        ]
        for ax, (title, lines) in zip(axes, panels.items(), strict=True):
            _draw_spreads(ax, lines)
            ax.set_title(title)
        axes[-1].set_xlabel(unit)
        return to_svg(figure)


def _draw_spreads(ax: Axes, lines: Sequence[Spread]) -> None:
    for row, line in enumerate(lines):
        colour = _colour(line.series)
        ax.plot(line.samples, [row + 0.22] * len(line.samples), "|", color=colour, alpha=0.45, ms=5)
        ax.plot([line.median, line.p99], [row, row], color=colour, lw=1.5)
        ax.plot([line.median, line.p90], [row, row], color=colour, lw=5, solid_capstyle="butt")
        ax.plot([line.p99], [row], "|", color=colour, ms=8, mew=1.5)
        ax.plot([line.median], [row], "o", color=colour, ms=8)
        beside = ax.get_yaxis_transform()  # x in widths of the axes, y in rows
        ax.text(0, row - 0.33, shortened(line.label), transform=beside, va="center")
        ax.text(1, row - 0.33, line.value, transform=beside, va="center", ha="right")
    low = min(min(line.median, *line.samples) for line in lines)
    high = max(max(line.p99, *line.samples) for line in lines)
    # At least a tenth of the value to each side, so that noise does not look like a difference.
    ax.set_xlim(min(low, 0.9 * high) * 0.97, max(high, 1.1 * low) * 1.03)
    ax.set_ylim(len(lines) - 0.55, -0.6)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.locator_params(axis="x", nbins=6)
    ax.grid(axis="x")


def bars_plot(
    groups: Sequence[str],
    series: Mapping[str, Sequence[Estimate | None]],
    *,
    xlabel: str,
    unit: str,
) -> str:
    """Bars from zero with their intervals, side by side in each group.

    Args:
        groups: names of the groups, left to right.
        series: for each legend entry one estimate per group; None leaves a gap.
        xlabel: what the groups are.
        unit: of the values.
    """
    with plot_style():
        figure = _figure(260 + 17 * len(series))
        ax = figure.subplots()
        width = 0.8 / len(series)
        for number, (label, estimates) in enumerate(series.items()):
            known = [(place, e) for place, e in enumerate(estimates) if e is not None]
            lower = [e.value - e.low for _, e in known]
            upper = [e.high - e.value for _, e in known]
            ax.bar(
                [place + (number - (len(series) - 1) / 2) * width for place, _ in known],
                [e.value for _, e in known],
                width * 0.86,
                yerr=[lower, upper],
                color=_colour(number),
                ecolor=_INK,
                error_kw={"lw": 1.2, "capsize": 2.5, "capthick": 1.2},
                label=shortened(label),
            )
        ax.set_xticks(range(len(groups)), groups)
        ax.set_xlim(-0.5, max(len(groups) - 0.5, 1.0))
        return _with_legend(figure, xlabel, unit)


@dataclass(frozen=True)
class Bar:
    """One bar of `stacked_bars_plot`, from zero.

    Attributes:
        label: above it, at its left.
        value: its length in words, above it at the right.
        parts: length of each part, by legend entry; those below zero are left out.
    """

    label: str
    value: str
    parts: Mapping[str, float]


def stacked_bars_plot(bars: Sequence[Bar], series: Sequence[str], unit: str) -> str:
    """Bars one below the other, of parts in the colours of `series`; the legend has those used."""
    with plot_style():
        used = sum(any(bar.parts.get(name, 0.0) > 0 for bar in bars) for name in series)
        figure = _figure(34 * len(bars) + 17 * used + 56)
        ax = figure.subplots()
        for number, name in enumerate(series):
            lengths = [max(bar.parts.get(name, 0.0), 0.0) for bar in bars]
            before = [
                sum(max(bar.parts.get(other, 0.0), 0.0) for other in series[:number])
                for bar in bars
            ]
            rows = range(len(bars))
            label = name if any(lengths) else None  # The others keep their colours.
            ax.barh(rows, lengths, 0.36, left=before, color=_colour(number), label=label)
        beside = ax.get_yaxis_transform()  # x in widths of the axes, y in rows
        for row, bar in enumerate(bars):
            ax.text(0, row - 0.4, shortened(bar.label), transform=beside, va="center")
            ax.text(1, row - 0.4, bar.value, transform=beside, va="center", ha="right")
        ax.set_ylim(len(bars) - 0.6, -0.75)
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
        ax.locator_params(axis="x", nbins=6)
        ax.grid(axis="x")
        ax.set_xlabel(unit)
        figure.legend(loc="outside upper left", borderpad=0.1, handlelength=1.2, handleheight=0.9)
        return to_svg(figure)


def curves_plot(
    x: Sequence[float], curves: Mapping[str, Sequence[float]], *, xlabel: str, unit: str
) -> str:
    """Lines over a common x axis, such as loss over epochs; NaN leaves a gap."""
    with plot_style():
        figure = _figure(220 + 17 * len(curves))
        ax = figure.subplots()
        marker = "o" if len(x) <= 30 else ""
        for number, (label, values) in enumerate(curves.items()):
            ax.plot(x, values, marker=marker, ms=3.5, lw=2, color=_colour(number), label=label)
        ax.locator_params(axis="x", integer=True, nbins=8, min_n_ticks=1)
        return _with_legend(figure, xlabel, unit)


@dataclass(frozen=True)
class Point:
    """One point of `points_plot`, in the colour of its series."""

    x: float
    y: float
    series: str


def points_plot(points: Sequence[Point], series: Sequence[str], *, xlabel: str, unit: str) -> str:
    """Points over a plane; those of `series` that come first lie on top, and are larger."""
    with plot_style():
        figure = _figure(220 + 17 * len(series))
        ax = figure.subplots()
        for number, name in enumerate(series):
            chosen = [point for point in points if point.series == name]
            ax.plot(
                [point.x for point in chosen],
                [point.y for point in chosen],
                "o",
                ms=9 - 2 * number,
                color=_colour(number),
                label=name if chosen else None,
                zorder=3 + len(series) - number,
            )
        ax.margins(0.06)
        ax.locator_params(axis="x", nbins=7)
        ax.grid(axis="x")
        return _with_legend(figure, xlabel, unit)


def _with_legend(figure: Figure, xlabel: str, unit: str) -> str:
    """One series per line above the axes, then the unit of the y axis where it begins."""
    ax = figure.axes[0]
    ax.set_xlabel(xlabel)
    ax.grid(axis="y")
    ax.spines["left"].set_visible(False)
    ax.set_title(unit, color=_QUIET, fontweight="normal", pad=8)
    figure.legend(loc="outside upper left", borderpad=0.1, handlelength=1.2, handleheight=0.9)
    return to_svg(figure)


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure as MatplotlibFigure

    size = (WIDTH / _POINTS_PER_INCH, height / _POINTS_PER_INCH)
    return MatplotlibFigure(figsize=size, layout="constrained")


def blank_figure(height: float) -> Figure:
    """A figure `WIDTH` wide and `height` high, without a layout of its own; in `plot_style`."""
    figure = _figure(height)
    figure.set_layout_engine("none")
    return figure


def plot_style() -> Any:
    """Context in which figures for a page are drawn; raises `MissingCapability`."""
    with imports_for("plots need matplotlib, which is not installed", "demo"):
        import matplotlib
    return matplotlib.rc_context({**_STYLE, "font.family": list(_families())})


@functools.cache
def _families() -> tuple[str, ...]:
    """The font, and those installed that have letters which it lacks."""
    from matplotlib.font_manager import fontManager

    return (_FONT, *(name for name in _OTHER_SCRIPTS if name in fontManager.get_font_names()))


@functools.cache
def _letters() -> frozenset[int]:
    """Code points of all letters that these fonts have, in bold too."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    def letters(weight: str) -> set[int]:
        fonts = (findfont(FontProperties(family=f, weight=weight)) for f in _families())
        return {code for font in fonts for code in get_font(font).get_charmap()}

    return frozenset(letters("normal") & letters("bold"))


def drawable(text: str) -> str:
    """`text` with an empty box for every letter that no font here has, for pictures of pixels."""
    return "".join(char if char == "\n" or ord(char) in _letters() else "□" for char in text)


def to_svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element without fixed size, background or metadata."""
    text = io.StringIO()
    with warnings.catch_warnings():
        # Text stays text: a browser has the letters that matplotlib's fonts lack.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(text, format="svg", transparent=True)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].rstrip()
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    for placeholder, variable in _VARIABLES.items():
        svg = svg.replace(placeholder, variable)
    return svg


def _colour(series: int) -> str:
    return _SERIES[series % len(_SERIES)]


def shortened(label: str, limit: int = 44) -> str:
    """`label` with its middle left out where it is wider than `limit` letters.

    Those of Chinese, Japanese and Korean are as wide as two.
    """
    if cell_len(label) <= limit:
        return label
    begin, end = "", ""
    for char, other in zip(label, reversed(label), strict=True):
        if cell_len(begin + char) > limit // 2:
            break
        begin += char
        if cell_len(other + end) < limit // 2:
            end = other + end
    return f"{begin}…{end}"
