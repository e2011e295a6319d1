"""What `profile` found, as content."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

from cbam_deploy.profiling.layers import Kind, Layer
from cbam_deploy.profiling.result import NetworkProfile, ProfileReport
from cbam_deploy.report.content import Figure, KeyFigure, Section, Table
from cbam_deploy.report.environment_section import environment_section
from cbam_deploy.report.plots import Bar, stacked_bars_plot
from cbam_deploy.report.units import MISSING, interval, milliseconds

KINDS: dict[Kind, str] = {
    "product": "convolutions and products",
    "gate": "attention gates",
    "other": "other layers",
    "quantize": "quantize, dequantize",
    "reorder": "reorders and casts",
}
OUTSIDE = "outside the layers"
APART = 0.05  # Of a run, that layers may add up to more or less before it is remarked.
_PLOTTED = 15
_INTERVAL = "95% interval"
_FEW = 2  # Networks, whose numbers of layers a table has room for.


def profile_sections(report: ProfileReport) -> tuple[Section, ...]:
    """The sums, each network, the networks side by side, and the machine."""
    sections = [_overview(report)]
    sections += [_of_network(report, network) for network in report.networks]
    if len(report.networks) > 1:
        sections.append(_side_by_side(report))
    machine = environment_section(report.environment, report.clocks_before, report.clocks_after)
    return (*sections, machine)


def _label(report: ProfileReport, network: NetworkProfile) -> str:
    """What tells the network from the others, in short."""
    ways = (
        lambda one: one.artefact,
        lambda one: f"{one.precision} {one.runtime}",
        lambda one: f"{one.artefact} {one.runtime}",
    )
    for way in ways:
        labels = [way(one) for one in report.networks]
        if len(set(labels)) == len(labels):
            break
    return str(way(network))


def _overview(report: ProfileReport) -> Section:
    how = (
        f"At batch {report.settings.get('batch')}, on {report.settings.get('input')}. Runs with "
        "the profiler on and runs as bench makes them took turns, in shuffled order."
    )
    return Section(
        title="Where the time goes",
        intro=" ".join((*report.findings, how)),
        key_figures=_key_figures(report),
        figures=(_sums_figure(report),),
        tables=(_runs_table(report), _kinds_table(report)),
        notes=tuple(_notes(report)),
    )


def _key_figures(report: ProfileReport) -> tuple[KeyFigure, ...]:
    figures = [
        KeyFigure("A run", f"{milliseconds(network.run_seconds)} ms", _label(report, network))
        for network in report.networks[:2]
    ]
    for network in report.networks[1:2]:
        if network.relative is not None:
            first = _label(report, report.networks[0])
            figures.append(
                KeyFigure(
                    f"Time relative to {first}",
                    f"{network.relative.value:.3f}",
                    interval(network.relative),
                )
            )
    return tuple(figures)


def _sums_figure(report: ProfileReport) -> Figure:
    bars = []
    for network in report.networks:
        parts = {KINDS[kind]: 1e3 * _seconds(_of_kind(network, kind)) for kind in KINDS}
        parts[OUTSIDE] = 1e3 * network.outside_seconds
        value = f"{milliseconds(network.run_seconds)} ms"
        bars.append(Bar(_label(report, network), value, parts))
    slowest = max(report.networks, key=lambda network: network.run_seconds)
    return Figure(
        partial(stacked_bars_plot, bars, (*KINDS.values(), OUTSIDE), "ms"),
        "What a run goes to, in ms. The number is the run without a profiler.",
        f"Time by kind of layer of {len(bars)} networks; slowest is {_label(report, slowest)}.",
    )


def _runs_table(report: ProfileReport) -> Table:
    return Table(
        columns=(
            "artefact",
            "runtime",
            "run",
            "layers",
            OUTSIDE,
            "profiled run",
            "relative",
            _INTERVAL,
        ),
        rows=tuple(
            (
                network.artefact,
                network.runtime,
                milliseconds(network.run_seconds),
                milliseconds(network.layers_seconds),
                _signed(network.outside_seconds),
                milliseconds(network.profiled_seconds),
                f"{network.relative.value:.3f}" if network.relative else "",
                interval(network.relative) if network.relative else "",
            )
            for network in report.networks
        ),
        caption="In ms: the median of a run as bench makes it, what the layers add up to, the "
        "difference, and the median of a run with the profiler on.",
        text_columns=2,
        spare=(_INTERVAL, "profiled run", OUTSIDE),
    )


def _kinds_table(report: ProfileReport) -> Table:
    columns: list[str] = ["what", "precision"]
    keys: dict[tuple[Kind, str], None] = {}
    few = len(report.networks) <= _FEW
    for network in report.networks:
        columns += ["number"] * few + [f"ms in {_label(report, network)}", "share"]
        keys.update(dict.fromkeys(map(_key, network.layers)))
    order = list(KINDS)
    rows = []
    for key in sorted(keys, key=lambda key: (order.index(key[0]), key[1])):
        cells = [KINDS[key[0]], key[1]]
        for network in report.networks:
            layers = [layer for layer in network.layers if _key(layer) == key]
            seconds = _seconds(layers)
            cells += [str(len(layers))] * few + [milliseconds(seconds), _share(seconds, network)]
        rows.append(tuple(cells))
    return Table(
        tuple(columns),
        tuple(rows),
        caption="Layers by kind, and by the precision that they run in; shares are of all layers.",
        text_columns=2,
    )


def _key(layer: Layer) -> tuple[Kind, str]:
    converts = layer.kind in ("quantize", "reorder")
    return layer.kind, "" if converts else layer.precision


def _notes(report: ProfileReport) -> list[str]:
    notes = []
    for network in report.networks:
        label = _label(report, network)
        if abs(network.outside_seconds) > APART * network.run_seconds:
            part = network.layers_seconds / network.run_seconds
            why = (
                "the rest goes to what lies between them"
                if network.outside_seconds > 0
                else "runs with the profiler on took longer; their shares hold all the same"
            )
            notes.append(f"{label}: its layers add up to {part:.0%} of a run, {why}.")
        gates = [layer for layer in network.layers if layer.kind == "gate"]
        inner = sum(layer.conversion_seconds for layer in gates)
        if inner:
            notes.append(
                f"{label}: {milliseconds(inner)} ms of its gates are reorders and casts in them."
            )
    return notes


def _of_network(report: ProfileReport, network: NetworkProfile) -> Section:
    conversions = [layer for layer in network.layers if layer.kind in ("quantize", "reorder")]
    tables = [_layers_table(report, network)]
    if conversions:
        tables.append(_conversions_table(network, conversions))
    return Section(
        title=f"{network.artefact} in {network.runtime}",
        figures=(_layers_figure(report, network),),
        tables=tuple(tables),
    )


def _longest(network: NetworkProfile) -> list[Layer]:
    return sorted(network.layers, key=lambda layer: -layer.seconds)


def _layers_figure(report: ProfileReport, network: NetworkProfile) -> Figure:
    layers = _longest(network)[: min(report.top, _PLOTTED)]
    bars = [
        Bar(
            " · ".join(dict.fromkeys((layer.name, layer.module or layer.operator))),
            f"{milliseconds(layer.seconds)} ms",
            {KINDS[layer.kind]: layer.seconds * 1e3},
        )
        for layer in layers
    ]
    return Figure(
        partial(stacked_bars_plot, bars, tuple(KINDS.values()), "ms"),
        f"The {len(bars)} layers that take longest, in ms.",
        f"{len(bars)} layers by time; the longest is {layers[0].name}.",
    )


def _layers_table(report: ProfileReport, network: NetworkProfile) -> Table:
    layers, rows, sum_so_far = _longest(network), [], 0.0
    for layer in layers[: report.top]:
        sum_so_far += layer.seconds
        rows.append(
            (
                layer.name,
                layer.operator,
                layer.module,
                layer.precision,
                milliseconds(layer.seconds),
                _share(layer.seconds, network),
                _share(sum_so_far, network),
            )
        )
    more = layers[report.top :]
    if more:
        rest = _seconds(more)
        cells = ("", "", "", milliseconds(rest), _share(rest, network), "100.0%")
        rows.append((f"({len(more)} more)", *cells))
    return Table(
        ("layer", "operator", "module", "precision", "ms", "share", "cumulative"),
        tuple(rows),
        caption="Layers by time. A gate is one of them, whatever its body became.",
        text_columns=4,
        spare=("precision", "cumulative", "module"),
    )


def _conversions_table(network: NetworkProfile, conversions: Sequence[Layer]) -> Table:
    """What only changes how numbers lie in memory, by operator."""
    groups: defaultdict[tuple[str, str], list[Layer]] = defaultdict(list)
    for layer in conversions:
        groups[layer.operator, "weights" if layer.of_weights else "maps"].append(layer)
    rows = [
        (
            operator,
            of_what,
            max(layers, key=lambda layer: layer.seconds).name,
            str(len(layers)),
            milliseconds(_seconds(layers)),
            _share(_seconds(layers), network),
        )
        for (operator, of_what), layers in groups.items()
    ]
    rows.sort(key=lambda row: -float(row[4].replace(",", "")))
    return Table(
        ("conversion", "of", "the longest", "number", "ms", "share"),
        tuple(rows),
        caption="Conversions that the runtime did not absorb into layers.",
        text_columns=3,
    )


def _side_by_side(report: ProfileReport) -> Section:
    """The time of each module in all networks, conversions beside it included."""
    sums: list[defaultdict[str, float]] = []
    for network in report.networks:
        by_place: defaultdict[str, float] = defaultdict(float)
        for layer in network.layers:
            by_place[layer.place] += layer.seconds
        sums.append(by_place)
    places = dict.fromkeys(layer.place for network in report.networks for layer in network.layers)
    ranked = sorted(places, key=lambda place: -_difference([one.get(place) for one in sums]))
    rows = [(place, *_cells([one.get(place) for one in sums])) for place in ranked[: report.top]]
    more = ranked[report.top :]
    if more:
        rest = [sum(one.get(place, 0.0) for place in more) for one in sums]
        rows.append((f"({len(more)} more)", *_cells(rest)))
    return Section(
        title="Side by side",
        tables=(
            Table(
                ("module", *(_label(report, n) for n in report.networks), "difference"),
                tuple(rows),
                caption="Time of each module (of a node, where the file names none), its "
                "conversions included, in ms; by the difference from the first to the last.",
            ),
        ),
    )


def _difference(seconds: Sequence[float | None]) -> float:
    return abs((seconds[-1] or 0.0) - (seconds[0] or 0.0))


def _cells(seconds: Sequence[float | None]) -> tuple[str, ...]:
    shown = (MISSING if one is None else milliseconds(one) for one in seconds)
    return (*shown, _signed((seconds[-1] or 0.0) - (seconds[0] or 0.0)))


def _of_kind(network: NetworkProfile, kind: Kind) -> list[Layer]:
    return [layer for layer in network.layers if layer.kind == kind]


def _seconds(layers: Sequence[Layer]) -> float:
    return sum(layer.seconds for layer in layers)


def _share(seconds: float, network: NetworkProfile) -> str:
    return f"{seconds / (network.layers_seconds or 1.0):.1%}"


def _signed(seconds: float) -> str:
    """A difference in ms, with its sign."""
    return f"{'−' if seconds < 0 else '+'}{milliseconds(abs(seconds))}"
