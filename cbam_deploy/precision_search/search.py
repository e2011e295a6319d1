"""`search_precision`: the fewest operations above the lowest precision such that a metric holds.

Step by step down from FP32 (`mixed_precision.STEPS`), such as for INT8: first which operations
cannot be FP16, then, with these where they are, which of all cannot be INT8. At each step:

1. Everything takes the step. Where the metric holds, that is all.
2. Else each group (`precision_groups`) takes it alone: what the metric falls by, and where that is
   the same for several, how noisy the outputs become, is how sensitive the group is.
3. `fewest_kept` keeps the most sensitive groups above the step, and of these no more than needed.

The metric may fall by half of what is allowed before the last step, and by all of it there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import onnx_ir as ir

from cbam_deploy.artefacts import OnnxFile
from cbam_deploy.errors import BadInput, MissingCapability
from cbam_deploy.exporters.conversion_result import Precision
from cbam_deploy.exporters.convert import CALIBRATION_IMAGES, check_options, convert
from cbam_deploy.exporters.fewest_kept import fewest_kept
from cbam_deploy.exporters.half.conversion import IoDtype
from cbam_deploy.exporters.half.formats import FORMATS
from cbam_deploy.exporters.half.rules import node_name
from cbam_deploy.exporters.int8.budget import within
from cbam_deploy.exporters.int8.calibration import Method
from cbam_deploy.exporters.mixed_precision import Choice, Choose, MixedPrecision
from cbam_deploy.exporters.precision_groups import Group, groups_of
from cbam_deploy.library_errors import said_of_the_file
from cbam_deploy.machine import environment
from cbam_deploy.outputs import write_errors
from cbam_deploy.plugins.compile import user_cache
from cbam_deploy.precision_search.evaluation import Evaluation
from cbam_deploy.precision_search.latency import LatencyMeter
from cbam_deploy.precision_search.result import Candidate, SearchResult, Sensitivity, kept_groups
from cbam_deploy.precision_search.trials import Laboratory, OutOfTime, Trial
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.preprocessing.choice import Asked
from cbam_deploy.progress import progress

_BEFORE_THE_LAST = 0.5  # Share of the drop that the steps before the last one may use.


@said_of_the_file
def search_precision(
    source: str | Path,
    output: str | Path,
    *,
    data: str,
    precision: Precision = "int8",
    metric: str | None = None,
    max_drop: float = 0.005,
    calibration: str | None = None,
    preprocessing: Asked | None = None,
    sizes: Sequence[str] = (),
    method: Method | None = None,
    images: int = CALIBRATION_IMAGES,
    io_dtype: IoDtype = "fp32",
    limit: int | None = None,
    latency: bool = False,
    runtime: str | None = None,
    batch_size: int = 1,
    seconds: float = 1.0,
    time_limit: float | None = None,
    cache: str | Path | None = None,
    seed: int = 0,
) -> SearchResult:
    """Convert an FP32 file, with as few operations as a metric allows in a higher precision.

    Each trial is kept on disk as soon as it is made; a search that was stopped goes on from there.

    Args:
        source: an FP32 file, best with its gates fused.
        output: file to write.
        data: SOURCE that trials are judged on; of a set with splits, the test split.
        precision: the lowest: ``int8`` or ``fp8`` over FP16 over FP32, ``int8+fp32`` without FP16,
            ``fp16`` or ``bf16`` over FP32.
        metric: as for `evaluate`; ``fidelity`` for what the outputs keep of the original's
            (`evaluation`). None for top-1 where `data` has labels of the network, else that.
        max_drop: how far the metric may fall, such as 0.005 for half a point.
        calibration: SOURCE of typical pictures; None for `data`, of a set with splits the training
            split.
        preprocessing: how inputs are made from pictures; like the next six, as for `convert`.
        sizes: typical size of free axes, such as ``H=640``.
        method: how ranges are found.
        images: how many pictures to calibrate on.
        io_dtype: type of network inputs and outputs.
        limit: how many pictures a trial is judged on; None for 256 with a metric, else 32.
        latency: time each whole choice as well, beside the original; the file is then that of the
            fastest choice within `max_drop`, or of one that is not shown to be slower and keeps
            fewer operations.
        runtime: to time in (`latency.LatencyMeter`).
        batch_size: pictures of a timed run.
        seconds: of each timing.
        time_limit: seconds after which no trial begins; the file is of the best choice so far.
        cache: folder of trials; None for one in the user's cache.
        seed: of everything random.

    Raises:
        BadInput: an option is wrong, a file cannot be read, converted or written, or `data` lacks
            what the metric needs.
        CheckFailed: the file is broken (`conversion_check`).
        MissingCapability: a package or a GPU is missing.
    """
    begin = time.monotonic()
    source = Path(source)
    check_options(precision, calibration or data, io_dtype)
    if time_limit is not None and not time_limit > 0:
        raise BadInput(f"a time limit of {time_limit:g} s", "give a positive duration")
    if runtime is not None and not latency:
        raise BadInput("a runtime is for timing, which was not asked for", "add --latency")
    folder = _cache_folder(cache)
    with ExitStack() as stack:
        meter = None
        if latency:
            meter = stack.enter_context(
                LatencyMeter(
                    source,
                    runtime=runtime,
                    batch=batch_size,
                    sizes=sizes,
                    seconds=seconds,
                    seed=seed,
                )
            )
            if precision == "bf16" and meter.runtime == "onnxruntime":
                raise MissingCapability(
                    "ONNX Runtime runs no BF16 on CPUs, so nothing can be timed in it",
                    "give --runtime openvino, or leave --latency out",
                )

        def judged(file: OnnxFile, prepared: Preprocessing | None) -> Evaluation:
            return Evaluation(file, data, metric=metric, preprocessing=prepared, limit=limit)

        search = _Search(judged, meter, max_drop, folder, begin, time_limit)
        conversion = convert(
            source,
            output,
            precision=precision,
            calibration=calibration or data,
            preprocessing=preprocessing,
            sizes=sizes,
            method=method,
            images=images,
            io_dtype=io_dtype,
            seed=seed,
            chooser=search.begin,
        )
    evaluation = search.evaluation
    return SearchResult(
        conversion=conversion,
        data=data,
        metric=evaluation.metric,
        unit=evaluation.unit,
        images=evaluation.images,
        baseline=evaluation.baseline,
        max_drop=max_drop,
        value=search.chosen.trial.value,
        noise=search.chosen.trial.noise,
        choice=search.chosen.choice,
        kept=kept_groups(
            search.groups,
            search.able,
            search.types,
            search.chosen.choice,
            search.sensitivities,
            conversion,
        ),
        sensitivities=tuple(search.sensitivities),
        candidates=search.candidates(),
        runtime=meter.runtime if meter else None,
        measured=search.laboratory.measured,
        remembered=search.laboratory.remembered,
        complete=search.complete,
        seconds=time.monotonic() - begin,
        environment=environment(),
        notes=evaluation.notes,
    )


def _cache_folder(asked: str | Path | None) -> Path:
    """Where trials are kept; raises `BadInput` where none can be."""
    if asked is None:
        return user_cache() / "search"
    folder = Path(asked)
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder}: is no folder to keep trials in", "give a folder, or a new name")
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


class _Search:
    """One search; `begin` and `choose` are what `convert` asks."""

    evaluation: Evaluation
    groups: tuple[Group, ...]
    able: dict[str, tuple[str, ...]]  # Names of nodes that can take a step.
    types: dict[str, str]  # What floats nodes of the file give.
    laboratory: Laboratory
    chosen: Candidate

    def __init__(
        self,
        judged: Callable[[OnnxFile, Preprocessing | None], Evaluation],
        meter: LatencyMeter | None,
        max_drop: float,
        folder: Path,
        begin: float,
        time_limit: float | None,
    ) -> None:
        self._judged, self._meter, self._max_drop = judged, meter, max_drop
        self._folder = folder
        self._end = None if time_limit is None else begin + time_limit
        self.sensitivities: list[Sensitivity] = []
        self.complete = True

    def begin(self, file: OnnxFile, prepared: Preprocessing | None) -> Choose:
        """Run the original; raises as `Evaluation`."""
        self.evaluation = self._judged(file, prepared)
        self.evaluation.unit.check_drop(self._max_drop)
        return self.choose

    def choose(self, network: MixedPrecision) -> Choice:
        """The best choice for a network that was calibrated."""
        self.groups = groups_of(network.model)
        self.able = {step: network.candidates(step) for step in network.steps}
        self.laboratory = Laboratory(
            network, self.evaluation, self._meter, self._folder, self._is_over
        )
        choice = Choice({step: frozenset(all_) for step, all_ in self.able.items()})
        found = choice, Trial(self.evaluation.baseline, 0.0)
        with progress("trials") as self._bar:
            if self._meter is not None:
                with suppress(OutOfTime):
                    self.laboratory.trial(choice)  # FP32, to set the others beside.
            for step in network.steps:
                last = step == network.steps[-1]
                allowed = self._max_drop * (1.0 if last else _BEFORE_THE_LAST)
                try:
                    found = self._lowered(found[0], step, allowed)
                except OutOfTime:
                    self.complete = False
                    found = self._best(step, found, allowed)
        self.chosen = self._chosen(*found)
        self.types = _types(network.make(self.chosen.choice))
        return self.chosen.choice

    def _is_over(self) -> bool:
        return self._end is not None and time.monotonic() >= self._end

    def _lowered(self, choice: Choice, step: str, allowed: float) -> tuple[Choice, Trial]:
        """`choice` with as much as is allowed at `step`; raises `OutOfTime`."""
        task = self._bar.add_task(f"all in {step}", total=None, trials=0)

        def trial(kept: frozenset[str]) -> Trial:
            made = self.laboratory.trial(choice.keeping(step, kept))
            self._bar.update(task, advance=1, trials=self.laboratory.measured)
            return made

        def holds(kept: frozenset[str]) -> bool:
            return within(self.evaluation.baseline, trial(kept).value, allowed)

        try:
            kept: frozenset[str] | None = frozenset()
            if not holds(frozenset()):
                groups = self._by_sensitivity(choice, step)
                self._bar.update(task, description=f"fewest kept above {step}")
                kept = fewest_kept(groups, holds)
            if kept is None:  # Rounding elsewhere alone is too much, such as that of outputs.
                kept = frozenset(self.able[step])
            return choice.keeping(step, kept), trial(kept)
        finally:
            self._bar.remove_task(task)

    def _by_sensitivity(self, choice: Choice, step: str) -> list[tuple[str, ...]]:
        """What of each group can take `step`, the most sensitive first; raises `OutOfTime`."""
        candidates = frozenset(self.able[step])
        found = []
        parts = [
            (group, part)
            for group in self.groups
            if (part := tuple(node for node in group.nodes if node in candidates))
        ]
        task = self._bar.add_task(f"each group in {step}", total=len(parts), trials=0)
        try:
            for group, part in parts:
                alone = choice.keeping(step, candidates.difference(part))
                probe = self.laboratory.probe(alone)
                drop = self.evaluation.baseline - probe.value
                found.append(Sensitivity(step, group.name, group.gate, part, drop, probe.noise))
                self._bar.update(task, advance=1, trials=self.laboratory.measured)
        finally:
            self._bar.remove_task(task)
        found.sort(key=lambda one: (-one.drop, -one.noise))
        self.sensitivities += found
        return [one.nodes for one in found]

    def _best(
        self, step: str, before: tuple[Choice, Trial], allowed: float
    ) -> tuple[Choice, Trial]:
        """Of what was tried at `step` with the earlier steps as `before`, the best that holds."""
        trials = [
            (choice, trial)
            for choice, trial in self.laboratory.found.values()
            if choice.keeping(step, before[0].above(step)) == before[0]
            and within(self.evaluation.baseline, trial.value, allowed)
        ]
        return min(trials, key=lambda one: one[0].operations, default=before)

    def _chosen(self, choice: Choice, trial: Trial) -> Candidate:
        """The choice found; where choices were timed, the fastest that holds.

        Of those that are not shown to be slower than that one, it is that which keeps the fewest
        operations.
        """
        timed = [
            (one, one.trial.relative)
            for one in self.candidates()
            if one.holds and one.trial.relative is not None
        ]
        if not timed:
            return Candidate(choice, trial, holds=True)
        fastest = min((relative for _, relative in timed), key=lambda relative: relative.value)
        no_slower = (one for one, relative in timed if relative.low <= fastest.high)
        return min(no_slower, key=lambda one: (one.choice.operations, -one.trial.value))

    def candidates(self) -> tuple[Candidate, ...]:
        """All whole choices that were tried."""
        return tuple(
            Candidate(choice, trial, within(self.evaluation.baseline, trial.value, self._max_drop))
            for choice, trial in self.laboratory.found.values()
        )


def _types(model: ir.Model) -> dict[str, str]:
    """What each node computes in, by its name: the type of its output in short."""
    kinds = {ir.DataType.FLOAT: "fp32", **{one.dtype: one.name.lower() for one in FORMATS}}
    typed = ((node_name(node), node.outputs[0].dtype) for node in model.graph)
    return {name: kinds.get(kind, kind.name.lower()) for name, kind in typed if kind is not None}
