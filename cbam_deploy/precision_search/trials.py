"""Trials: what a choice of precisions came to, kept on disk so that no search measures it twice."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.mixed_precision import Choice, MixedPrecision
from cbam_deploy.json_data import parse, read
from cbam_deploy.outputs import write_text
from cbam_deploy.precision_search.evaluation import Evaluation
from cbam_deploy.precision_search.latency import LatencyMeter
from cbam_deploy.provenance import package_versions
from cbam_deploy.report.units import Estimate

_FORMAT = 1  # Goes up when a trial means something else.
_PACKAGES = ("cbam-deploy", "numpy", "onnx", "onnx-ir", "onnxruntime")


@dataclass(frozen=True)
class Trial:
    """What one choice came to.

    Attributes:
        value: of the metric.
        noise: of the outputs against the original's (`evaluation`), 0 to 1.
        seconds: median of a run; None where it was not timed.
        relative: its duration over the original's, in the same rounds.
    """

    value: float
    noise: float
    seconds: float | None = None
    relative: Estimate | None = None


class OutOfTime(Exception):
    """The time limit of a search is over."""


class Laboratory:
    """Tries out choices for one network, each once.

    Attributes:
        found: the trials of whole choices, in order.
        measured: number of judgements and timings that were made.
        remembered: number of those that an earlier search had made.
    """

    def __init__(
        self,
        network: MixedPrecision,
        evaluation: Evaluation,
        meter: LatencyMeter | None,
        folder: Path,
        out_of_time: Callable[[], bool],
    ) -> None:
        self._network, self._evaluation, self._meter = network, evaluation, meter
        self._out_of_time = out_of_time
        self._folder = folder / self._key()[:32]
        self.found: dict[str, tuple[Choice, Trial]] = {}
        self._known: dict[str, Trial] = {}
        self.measured = self.remembered = 0

    def _key(self) -> str:
        """Hash of all that trials depend on but the choice itself."""
        everything = self._network.make(Choice())
        digest = hashlib.sha256(ir.to_proto(everything).SerializeToString(deterministic=True))
        facts = [_FORMAT, self._evaluation.fingerprint(), package_versions(*_PACKAGES)]
        digest.update(json.dumps(facts).encode())
        return digest.hexdigest()

    def probe(self, choice: Choice) -> Trial:
        """Judge a choice on few pictures; raises `OutOfTime`."""
        return self._tried(choice, "probe", lambda: self._judged(choice, few=True))

    def trial(self, choice: Choice) -> Trial:
        """Judge a choice, and time it where that was asked for; raises `OutOfTime`."""
        found = self._tried(choice, "judged", lambda: self._judged(choice, few=False))
        if self._meter is not None:
            meter = self._meter

            def timed() -> Trial:
                seconds, relative = meter.measure(self._network.make(choice))
                return replace(found, seconds=seconds, relative=relative)

            found = self._tried(choice, meter.key, timed)
        self.found[_text(choice)] = choice, found
        return found

    def _judged(self, choice: Choice, *, few: bool) -> Trial:
        outcome = self._evaluation.judge(self._network.make(choice), few=few)
        return Trial(outcome.value, outcome.noise)

    def _tried(self, choice: Choice, how: str, measure: Callable[[], Trial]) -> Trial:
        name = hashlib.sha256(f"{how} {_text(choice)}".encode()).hexdigest()[:32]
        file = self._folder / f"{name}.json"
        if name in self._known:
            return self._known[name]
        earlier = _read(file)
        if earlier is not None:
            self.remembered += 1
            self._known[name] = earlier
            return earlier
        if self._out_of_time():
            raise OutOfTime
        trial = measure()
        self.measured += 1
        self._known[name] = trial
        # A cache that cannot be written costs time, nothing else.
        with contextlib.suppress(BadInput, OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(_to_json(trial)))
        return trial


def _text(choice: Choice) -> str:
    return json.dumps({step: nodes for step, nodes in choice.to_json().items() if nodes})


def _to_json(trial: Trial) -> dict[str, object]:
    return {**vars(trial), "relative": trial.relative and vars(trial.relative)}


def _read(file: Path) -> Trial | None:
    """What an earlier search found; None where there is nothing, or something damaged."""
    try:
        found = read(Trial, parse(file.read_bytes()))
    except (OSError, ValueError):
        return None
    return found if 0 <= found.noise <= 1 else None
