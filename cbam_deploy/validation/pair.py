"""The outputs of an artefact beside its reference's, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.comparison.file_reference import FileReference
from cbam_deploy.data.feeds import InputStream
from cbam_deploy.errors import BadInput
from cbam_deploy.numerics.metrics import ErrorAccumulator
from cbam_deploy.numerics.tensors import Feeds
from cbam_deploy.numerics.tolerances import (
    FEW_SAMPLES,
    Tolerance,
    check,
    check_rounded_alike,
    fp32_bound,
    relaxed_to,
)
from cbam_deploy.progress import progress
from cbam_deploy.runtimes.base import Runner
from cbam_deploy.validation.parity_report import BatchParity, OutputParity

if TYPE_CHECKING:
    from cbam_deploy.comparison.reference import Reference
    from cbam_deploy.validation.rounded_reference import RoundedReference


@dataclass(frozen=True)
class Pair:
    """An artefact in its runtime and its reference beside it.

    Attributes:
        path: of the artefact.
        runner: of the artefact.
        reference: the PyTorch model, or the ONNX file.
        tolerance: of each output.
        relax: whether an output may be further off than `tolerance` says where PyTorch itself is
            far from FP64.
        rounded: the PyTorch model rounded like the artefact.
    """

    path: Path
    runner: Runner
    reference: Reference | FileReference
    tolerance: Tolerance
    relax: bool
    rounded: RoundedReference | None

    def compare_all(self, sizes: Sequence[int], inputs: InputStream) -> tuple[BatchParity, ...]:
        """Compare at each batch size."""
        done = []
        with progress() as bar:
            for size in bar.track(sizes, description=f"comparing {self.path.name}"):
                done.append(self.compare(size, inputs))
        if self.rounded is None:
            return tuple(done)
        return held_to_rounding(done, beyond=bool(self.rounded.beyond))

    def compare(self, batch: int, inputs: InputStream) -> BatchParity:
        """Feed both sides the batches of size `batch`."""
        begin = time.perf_counter()
        errors = [ErrorAccumulator(s.name, self.tolerance.channels) for s in self.runner.outputs]
        sides = [[ErrorAccumulator(error.name) for error in errors] for _ in range(3)]
        samples = 0
        for feeds in inputs.batches(batch):
            actual = self.runner.infer(feeds)
            expected = self.reference.run(list(feeds.values()))
            self._check_shapes([actual[error.name] for error in errors], expected)
            for error, array in zip(errors, expected, strict=True):
                error.add(array, actual[error.name])
            if self.rounded is not None:
                rounded = self.rounded.run(list(feeds.values()))
                wide = self.rounded.run(list(feeds.values()), wide=True)
                for alike, own, spread, *arrays in zip(
                    *sides, expected, rounded, wide, strict=True
                ):
                    alike.add(arrays[1], actual[alike.name])
                    own.add(arrays[0], arrays[1])
                    spread.add(arrays[2], arrays[1])
            samples += batch
        outputs = [OutputParity(e, check(e, self.tolerance)) for e in (e.result() for e in errors)]
        if self.rounded is not None:
            results = (
                [one.result() for one in of_output] for of_output in zip(*sides, strict=True)
            )
            outputs = [
                replace(output, alike=alike, own=own, spread=spread)
                for output, (alike, own, spread) in zip(outputs, results, strict=True)
            ]
        if self.relax and any(output.failures for output in outputs):
            outputs = self._relaxed(outputs, inputs.batches(batch))
        return BatchParity(
            batch=batch,
            samples=samples,
            seconds=time.perf_counter() - begin,
            outputs=tuple(outputs),
        )

    def _relaxed(self, outputs: list[OutputParity], batches: Iterable[Feeds]) -> list[OutputParity]:
        """`outputs` held to what follows from PyTorch's own error in FP32, where that is more."""
        from cbam_deploy.comparison.rounding import rounding_errors

        assert not isinstance(self.reference, FileReference)
        worst = [0.0] * len(outputs)
        dtypes: list[np.dtype[Any]] = []
        for feeds in batches:
            arrays = list(feeds.values())
            expected = self.reference.run(arrays)
            dtypes = [array.dtype for array in expected]
            own = rounding_errors(self.reference.module, arrays, expected)
            worst = [max(pair) for pair in zip(worst, own or worst, strict=True)]
        relaxed = []
        for output, rounding, dtype in zip(outputs, worst, dtypes, strict=True):
            bound = fp32_bound(rounding, dtype)
            if output.failures and bound > fp32_bound(None, np.dtype(np.float32)):
                failures = check(output.error, relaxed_to(bound, self.tolerance))
                output = replace(output, failures=failures, allowed=bound)
            relaxed.append(output)
        return relaxed

    def _check_shapes(self, actual: list[NDArray[Any]], expected: list[NDArray[Any]]) -> None:
        have = [list(array.shape) for array in actual]
        want = [list(array.shape) for array in expected]
        if have != want:
            raise BadInput(
                f"{self.path}: gives outputs of shape {have}, "
                f"the reference {self.reference.label} of {want}",
                "give the model that the artefact was made from with --reference",
            )


def held_to_rounding(batches: Sequence[BatchParity], *, beyond: bool) -> tuple[BatchParity, ...]:
    """Hold each batch to the largest spread of all: that of a few samples is left to chance."""
    spreads = [
        min((output.spread for output in same if output.spread), key=lambda one: one.snr_db)
        for same in zip(*(batch.outputs for batch in batches), strict=True)
    ]
    few = sum(batch.samples for batch in batches) < FEW_SAMPLES
    held = []
    for batch in batches:
        outputs = []
        for output, spread in zip(batch.outputs, spreads, strict=True):
            assert output.alike is not None
            assert output.own is not None
            found = check_rounded_alike(output.alike, output.own, spread, beyond=beyond or few)
            outputs.append(replace(output, failures=output.failures + found))
        held.append(replace(batch, outputs=tuple(outputs)))
    return tuple(held)
