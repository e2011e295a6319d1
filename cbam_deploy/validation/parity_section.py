"""A parity check, as a section of a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cbam_deploy.report.content import KeyFigure, Section, Table
from cbam_deploy.report.units import MISSING, percent, scientific

_SHOWN_LAYERS = 40


def parity_section(parity: Mapping[str, Any]) -> Section:
    """The worst figures, then every output at every batch size, and the layers if compared.

    Args:
        parity: as `ParityReport.to_json` gives it; a figure that is None was infinite.
    """
    tables = [_outputs_table(parity)]
    notes = list(parity["failures"])
    layers = parity["layers"]
    if layers is not None:
        tables.append(_layers_table(layers))
        hidden = len(layers["compared"]) - _SHOWN_LAYERS
        if hidden > 0:
            notes.append(f"{hidden} more layers were compared; the JSON report lists them all.")
    return Section(
        title="Parity with PyTorch",
        intro=(
            f"{parity['artefact']} ({parity['precision']}, {parity['runtime']}) against "
            f"{parity['reference']} in PyTorch, on {parity['inputs']}."
        ),
        passed=parity["passed"],
        key_figures=_key_figures(parity),
        tables=tuple(tables),
        notes=tuple(notes),
    )


def _outputs(parity: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    return ((batch, output) for batch in parity["batches"] for output in batch["outputs"])


def _key_figures(parity: Mapping[str, Any]) -> tuple[KeyFigure, ...]:
    outputs = [output for _, output in _outputs(parity)]
    errors = [output["max_relative"] for output in outputs]
    allowed = parity["tolerance"].get("max_relative")
    figures = [
        KeyFigure(
            "Largest error",
            scientific(None if None in errors else max(errors)),
            "of the largest reference value"
            + ("" if allowed is None else f"; {scientific(allowed)} allowed"),
        )
    ]
    agreements = [o["top1_agreement"] for o in outputs if o["top1_agreement"] is not None]
    if agreements:
        samples = sum(batch["samples"] for batch in parity["batches"])
        note = f"same class first, over {samples:,} inputs"
        figures.append(KeyFigure("Lowest top-1 agreement", percent(min(agreements)), note))
    ratios = [output["snr_db"] for output in outputs if output["snr_db"] is not None]
    if ratios:
        figures.append(KeyFigure("Lowest signal-to-noise ratio", f"{min(ratios):.1f} dB"))
    return tuple(figures)


_ERROR_COLUMNS = ("max abs", "max rel", "cosine", "SNR in dB")


def _errors(error: Mapping[str, Any]) -> tuple[str, ...]:
    snr = error["snr_db"]
    return (
        scientific(error["max_abs"]),
        scientific(error["max_relative"]),
        f"{error['cosine']:.7f}",
        MISSING if snr is None else f"{snr:.1f}",
    )


def _outputs_table(parity: Mapping[str, Any]) -> Table:
    rows = list(_outputs(parity))
    return Table(
        columns=("output", "batch", "samples", *_ERROR_COLUMNS, "top-1", "NaN or infinite"),
        rows=tuple(
            (
                output["name"],
                str(batch["batch"]),
                str(batch["samples"]),
                *_errors(output),
                percent(output["top1_agreement"]),
                str(output["nonfinite"]),
            )
            for batch, output in rows
        ),
        caption="Outputs by batch size. Max rel: largest error over the largest reference value.",
        emphasized=tuple(i for i, (_, output) in enumerate(rows) if output["failures"]),
    )


def _layers_table(layers: Mapping[str, Any]) -> Table:
    shown = layers["compared"][:_SHOWN_LAYERS]
    return Table(
        columns=("value", "operator", *_ERROR_COLUMNS),
        rows=tuple((entry["value"], entry["op"], *_errors(entry)) for entry in shown),
        caption="Values inside the network, in the graph's order.",
        text_columns=2,
        emphasized=tuple(i for i, entry in enumerate(shown) if entry["failures"]),
    )
