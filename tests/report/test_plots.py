import math
import re
import sys
from xml.etree import ElementTree

import pytest

from cbam_deploy.errors import MissingCapability
from cbam_deploy.report.plots import (
    Bar,
    Spread,
    bars_plot,
    curves_plot,
    spread_plot,
    stacked_bars_plot,
)
from cbam_deploy.report.units import Estimate

SVG = "{http://www.w3.org/2000/svg}"


def spread(label, median=10.0, series=0):
    samples = [median, 1.05 * median]
    return Spread(label, f"{median} ms", series, median, 1.1 * median, 1.3 * median, samples)


def spreads():
    return spread_plot(
        {"batch 1": [spread("a"), spread("b", 12.0, 1)], "batch 8": [spread("a")]}, "ms"
    )


def bars(**changes):
    series = {"a": [Estimate(30, 29, 31), Estimate(40, 38, 41)], "b": [Estimate(20, 19, 21), None]}
    return bars_plot(["1", "8"], series | changes, xlabel="batch", unit="images/s")


def curves():
    return curves_plot(
        [1, 2, 3], {"train": [3, 2, 1], "val": [math.nan, 2, 2]}, xlabel="epoch", unit="loss"
    )


def stacked():
    first = Bar("a", "3 ms", {"product": 2.0, "gate": 1.0, "cast": -0.5})
    return stacked_bars_plot([first, Bar("b", "4 ms", {"product": 4.0})], KINDS, "ms")


KINDS = ("product", "gate", "cast")
PLOTS = {"spreads": spreads, "bars": bars, "curves": curves, "stacked": stacked}


@pytest.fixture(params=[*PLOTS.values()], ids=[*PLOTS])
def svg(request):
    return request.param()


def texts(svg):
    return [
        "".join(element.itertext()) for element in ElementTree.fromstring(svg).iter(f"{SVG}text")
    ]


def test_a_plot_is_one_svg_element_of_no_fixed_size(svg):
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert "viewBox" in root.attrib
    assert not {"width", "height"} & root.attrib.keys()


def test_a_plot_takes_its_colours_from_the_page(svg):
    painted = set(re.findall(r"(?:fill|stroke): ?([^;\"]+)", svg)) - {"none"}
    assert painted
    assert all(colour.startswith("var(--") for colour in painted), painted


def test_a_plot_says_when_and_by_what_it_was_made_nowhere(svg):
    assert "metadata" not in svg
    assert "matplotlib.org" not in svg


def test_the_same_plot_is_the_same_text():
    assert spreads() == spreads()


def test_text_is_text():
    found = texts(spreads())
    for word in ("a", "b", "batch 1", "batch 8", "10.0 ms", "12.0 ms", "ms"):
        assert word in found
    assert {"a", "b", "1", "8", "batch", "images/s"} <= set(texts(bars()))
    assert {"train", "val", "epoch", "loss"} <= set(texts(curves()))


def test_names_with_dollars_are_no_formulas():
    assert "$x_1$" in texts(spread_plot({"p": [spread("$x_1$")]}, "ms"))


def test_long_names_lose_their_middle():
    name = "models/" + "x" * 100 + "/final.onnx"
    (shown,) = [text for text in texts(bars(**{name: [None, Estimate(1, 1, 1)]})) if "…" in text]
    assert len(shown) <= 44
    assert shown.startswith("models/")
    assert shown.endswith("final.onnx")


def bar_heights(svg, series):
    """Heights of the bars of one series in the plot's units."""
    heights = []
    for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        if f"fill: var(--series-{series})" in path.attrib.get("style", ""):
            ys = [float(y) for _, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path.attrib["d"])]
            heights.append(max(ys) - min(ys))
    return heights


def test_bars_begin_at_zero():
    first, second = bar_heights(bars(), 1)[:2]
    assert second / first == pytest.approx(40 / 30, rel=1e-3)


def test_parts_of_a_bar_follow_each_other_and_its_legend_has_those_that_are_there():
    def extents(series):
        found = []
        for path in ElementTree.fromstring(stacked()).iter(f"{SVG}path"):
            if f"fill: var(--series-{series})" in path.attrib.get("style", ""):
                xs = [float(x) for x, _ in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path.attrib["d"])]
                found.append((min(xs), max(xs)))
        return found

    (start, end), (_, longest) = extents(1)[:2]
    (gate_start, gate_end) = extents(2)[0]
    assert gate_start == pytest.approx(end)
    assert (gate_end - gate_start) / (end - start) == pytest.approx(0.5, rel=1e-3)
    assert (longest - start) / (end - start) == pytest.approx(2, rel=1e-3)
    assert {"product", "gate"} <= set(texts(stacked()))
    assert "cast" not in texts(stacked())


def test_a_missing_figure_leaves_a_gap():
    # Each series has one more patch, its mark in the legend.
    assert len(bar_heights(bars(), 1)) == 3
    assert len(bar_heights(bars(), 2)) == 2


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS.keys())
def test_without_matplotlib_the_extra_is_named(plot, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingCapability) as raised:
        plot()
    assert ".[demo]" in raised.value.hint


def test_a_curve_of_one_epoch_has_one_number_at_its_axis():
    svg = curves_plot([1], {"loss": [0.5]}, xlabel="epoch", unit="loss")
    ticks = re.findall(r'<g id="xtick_\d+">', svg)
    assert len(ticks) == 1
