"""The result of a layer-by-layer comparison: what was compared and where it first went wrong."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from cbam_deploy.graphs.origins import Place
from cbam_deploy.numerics.metrics import TensorError
from cbam_deploy.numerics.tolerances import Tolerance
from cbam_deploy.report.content import Table
from cbam_deploy.report.json_file import data_of, fields_of
from cbam_deploy.report.units import MISSING, scientific

Layers = Literal["gates", "all"]
ERROR_COLUMNS = ("max abs", "max rel", "cosine", "SNR in dB")
_SHOWN_ROWS = 20


def error_cells(error: TensorError) -> tuple[str, ...]:
    """An error's figures under `ERROR_COLUMNS`."""
    return (
        scientific(error.max_abs),
        scientific(error.max_relative),
        f"{error.cosine:.7f}",
        decibels(error.snr_db),
    )


def allowed_cells(tolerance: Tolerance) -> tuple[str, ...]:
    """What a tolerance allows, under `ERROR_COLUMNS`; empty where it leaves a figure free."""
    bounds = (
        ("≤", tolerance.max_abs, scientific),
        ("≤", tolerance.max_relative, scientific),
        ("≥", tolerance.min_cosine, "{:.7f}".format),
        ("≥", tolerance.min_snr_db, decibels),
    )
    return tuple("" if bound is None else f"{sign}{text(bound)}" for sign, bound, text in bounds)


def decibels(ratio: float | None) -> str:
    """A signal-to-noise ratio in dB without its unit; infinite ones are told by their sign."""
    return MISSING if ratio is None else f"{ratio:.1f}"


@dataclass(frozen=True)
class LayerError:
    """One value of the artefact against the reference, and the sentences on what is wrong."""

    place: Place
    error: TensorError
    failures: tuple[str, ...]


@dataclass(frozen=True)
class LayerReport:
    """All values that were compared, in the graph's order.

    Attributes:
        layers: ``gates`` or ``all``.
        tolerance: what each value is held to.
        compared: every comparable value; with ``gates``, after a fault, also those that lead to it.
        not_comparable: values without a counterpart in the reference, and why.
        seconds: time the comparison took.
    """

    layers: str
    tolerance: Tolerance
    compared: tuple[LayerError, ...]
    not_comparable: tuple[tuple[Place, str], ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every compared value is within tolerance."""
        return self.first_fault is None

    @property
    def first_fault(self) -> LayerError | None:
        """The first value, in the graph's order, that leaves tolerance."""
        return next((entry for entry in self.compared if entry.failures), None)

    @property
    def first_gate(self) -> LayerError | None:
        """The first gate whose output leaves tolerance."""
        return next((e for e in self.compared if e.failures and e.place.is_gate), None)

    def worst(self, but: Collection[str]) -> LayerError | None:
        """The value with the largest error over its largest value, of those not named in `but`."""
        inner = [entry for entry in self.compared if entry.place.value not in but]
        return max(inner, key=lambda entry: entry.error.max_relative, default=None)

    @property
    def last_good(self) -> LayerError | None:
        """The last value before `first_fault` that is within tolerance."""
        good = None
        for entry in self.compared:
            if entry.failures:
                return good
            good = entry
        return good

    @property
    def failures(self) -> tuple[str, ...]:
        """Where the first fault is and how large; empty when there is none."""
        fault, gate, good = self.first_fault, self.first_gate, self.last_good
        if fault is None:
            return ()
        where = f"first fault at {fault.place}: {'; '.join(fault.failures)}"
        if good is not None:
            where += f"; the value {good.place.value} before it holds"
        if gate is not None and gate is not fault:
            where += f"; the first gate that it reaches is {gate.place.node}"
        return (where,)

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data."""
        fault, gate = self.first_fault, self.first_gate
        return {
            "layers": self.layers,
            "passed": self.passed,
            "seconds": self.seconds,
            "tolerance": data_of(self.tolerance),
            "first_fault": data_of(fault and fault.place),
            "first_gate": data_of(gate and gate.place),
            "compared": [
                {
                    **fields_of(entry.place),
                    **fields_of(entry.error),
                    "failures": list(entry.failures),
                }
                for entry in self.compared
            ],
            "not_comparable": [
                {**fields_of(place), "reason": reason} for place, reason in self.not_comparable
            ],
        }

    def table(self) -> Table:
        """What was compared; of many values, those around the first fault, or the worst."""
        what = "gates and outputs" if self.layers == "gates" else "values inside the network"
        count = f"{len(self.compared)} {what} compared"
        if self.not_comparable:
            count += f", {len(self.not_comparable)} not comparable"
        count += ", in the graph's order"
        shown = self._shown()
        if len(shown) < len(self.compared):
            which = "those around the first fault" if self.first_fault else "the worst"
            count += f"; shown are {which}, the JSON report lists them all"
        return Table(
            columns=("value", "operator", "module", *ERROR_COLUMNS),
            rows=tuple(
                (
                    entry.place.value,
                    entry.place.op.rpartition(".")[2],
                    entry.place.module,
                    *error_cells(entry.error),
                )
                for entry in shown
            ),
            caption=f"{count}.",
            text_columns=3,
            emphasized=tuple(i for i, entry in enumerate(shown) if entry.failures),
            spare=("max abs", "cosine", "module"),
        )

    def _shown(self) -> tuple[LayerError, ...]:
        """All gates; of many values, those around the first fault, or the worst."""
        if len(self.compared) <= _SHOWN_ROWS:
            return self.compared
        fault = self.first_fault
        if fault is not None:
            at = self.compared.index(fault)
            return self.compared[max(0, at - _SHOWN_ROWS // 2) : at + _SHOWN_ROWS // 2]
        worst = sorted(self.compared, key=lambda entry: -entry.error.max_relative)[:_SHOWN_ROWS]
        return tuple(entry for entry in self.compared if entry in worst)
