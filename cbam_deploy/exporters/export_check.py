"""Does a freshly exported file compute in ONNX Runtime what its module computes in PyTorch?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from cbam_deploy.comparison.reference import Reference
from cbam_deploy.comparison.rounding import rounding_errors
from cbam_deploy.data.feeds import noise
from cbam_deploy.errors import BadInput, CheckFailed, MissingCapability, in_one_line
from cbam_deploy.exporters.export_cause import (
    Cause,
    fixed_when_traced,
    not_finite,
    random_operators,
    random_result,
    wrong_operator,
)
from cbam_deploy.graphs.session import open_session
from cbam_deploy.numerics.metrics import tensor_error
from cbam_deploy.numerics.tensors import Feeds
from cbam_deploy.numerics.tolerances import OUTPUTS, check, fp32_bound, relaxed_to
from cbam_deploy.tracing.network_inputs import NetworkInputs
from cbam_deploy.tracing.torch_graph import EXAMPLE_BATCH

Array = NDArray[Any]

BATCHES = (1, 3)
# Two runs of one program on the same input differ by less, however its threads divide the work.
_REPEATABLE = 1e-5
_RUNS = 5  # A network that tosses a coin gives the same in all of them once in 32 times.


@dataclass
class ExportError:
    """The largest error over all outputs and batches.

    Attributes:
        max_abs: in the outputs' unit.
        max_relative: over the largest reference value.
        allowed: the bound on `max_relative`, of the output where it is largest.
        rounding: largest error of PyTorch itself in FP32 against FP64, over the largest value; None
            where no output needed a bound that follows from it.
    """

    max_abs: float = 0.0
    max_relative: float = 0.0
    allowed: float = 0.0
    rounding: float | None = None


def check_export(
    path: Path,
    module: nn.Module,
    inputs: NetworkInputs,
    label: str,
    tolerance: float | None = None,
) -> ExportError:
    """Compare the file at `path` with `module` on seeded noise, at several batches and sizes.

    Args:
        path: an FP32 file.
        module: on the CPU, in evaluation mode.
        inputs: what it takes.
        label: what to call it in messages.
        tolerance: largest error allowed over the largest reference value; None for what FP32
            explains, the module's own error against FP64 included (`numerics.tolerances`).

    Raises:
        BadInput: the module does not take every batch or size.
        CheckFailed: an output is further off, or NaN where the reference is not, or ONNX Runtime
            cannot run the file. The message names the cause as far as it can be found.
    """
    try:
        session = open_session(path, label)
    except (BadInput, MissingCapability) as error:
        raise CheckFailed(
            f"{label}: ONNX Runtime cannot load the file ({in_one_line(error.__cause__ or error)})",
            "replace the operation that it names; nothing was written",
        ) from error
    for output in session.get_outputs():
        if output.type == "tensor(bfloat16)":
            raise CheckFailed(
                f"{label}: output {output.name} is bfloat16, which ONNX Runtime gives to no Python "
                "program, so it cannot be compared",
                "return it as float32 (.float()); nothing was written",
            )
    return _Check(path, session, Reference(module, label), inputs, tolerance).run()


@dataclass(frozen=True)
class _Trial:
    """A batch and the sizes of free axes."""

    batch: int
    sizes: dict[str, int]

    def __str__(self) -> str:
        return ", ".join([f"batch {self.batch}", *(f"{k} {v}" for k, v in self.sizes.items())])


@dataclass
class _Check:
    path: Path
    session: Any
    reference: Reference
    inputs: NetworkInputs
    tolerance: float | None
    worst: ExportError = field(default_factory=ExportError)

    def run(self) -> ExportError:
        for trial in self._trials():
            fault = self._fault(trial)
            if fault is not None:
                cause = self._cause(trial)
                raise CheckFailed(
                    f"{self.reference.label}: at {trial} {fault}{cause.reason}",
                    f"{cause.remedy}; nothing was written",
                )
        return self.worst

    def _trials(self) -> Iterator[_Trial]:
        """Several batches, then other heights and widths, as far as these are free."""
        inputs = self.inputs
        batches = BATCHES if inputs.batch is None else (inputs.batch,)
        yield from (_Trial(batch, inputs.sizes) for batch in batches)
        if inputs.sizes:
            yield _Trial(batches[-1], inputs.other_sizes)

    def _feeds(self, trial: _Trial) -> Feeds:
        specs, sizes = self.inputs.specs, trial.sizes
        return noise(specs, trial.batch, seed=1, image_size=None, sizes=sizes)

    def _fixed(self, trial: _Trial, batch: int = 1) -> str:
        """Options without `trial`: its height and width are fixed if not typical, else `batch`."""
        if trial.sizes != self.inputs.sizes:
            return self.inputs.as_options(sizes_free=False)
        return self.inputs.as_options(batch=batch)

    def _expected(self, trial: _Trial) -> list[Array]:
        """PyTorch's outputs; raises as `check_export` does for `BadInput`."""
        try:
            return self.reference.run(list(self._feeds(trial).values()))
        except BadInput as error:
            raise BadInput(
                f"{self.reference.label}: PyTorch cannot run it at {trial} "
                f"({in_one_line(error.__cause__ or error)})",
                "make the model independent of these sizes, or fix them: "
                + self._fixed(trial, EXAMPLE_BATCH if trial.batch == 1 else 1),
            ) from error

    def _fault(self, trial: _Trial) -> str | None:
        """What is wrong with the file at `trial`, in a sentence; None if nothing is."""
        expected, feeds = self._expected(trial), self._feeds(trial)
        try:
            outputs = self.session.run(None, feeds)
        except Exception as error:
            return f"ONNX Runtime cannot run the file ({in_one_line(error)})"
        names = [output.name for output in self.session.get_outputs()]
        if len(expected) != len(outputs):
            return f"the file has {len(outputs)} outputs, PyTorch gives {len(expected)}"
        pairs = list(zip(names, expected, outputs, strict=True))
        faults = [self._difference(*pair, None) for pair in pairs]
        if any(faults) and self.tolerance is None and self._is_steady(trial, expected):
            own = rounding_errors(self.reference.module, list(feeds.values()), expected)
            if own is not None:
                self.worst.rounding = max(self.worst.rounding or 0.0, *own)
                faults = [
                    self._difference(*pair, error) for pair, error in zip(pairs, own, strict=True)
                ]
        return next((fault for fault in faults if fault), None)

    def _is_steady(self, trial: _Trial, expected: list[Array]) -> bool:
        """Whether PyTorch gives `expected` again for the same input."""
        runs = (self._expected(trial) for _ in range(_RUNS))
        return all(all(map(_repeats, expected, again)) for again in runs)

    def _difference(
        self, name: str, reference: Array, output: Array, own: float | None
    ) -> str | None:
        """What is wrong with one output, given PyTorch's own error; None if nothing is."""
        if reference.shape != output.shape:
            shapes = f"{list(output.shape)}, in PyTorch {list(reference.shape)}"
            return f"output {name} is of shape {shapes}"
        bound = self.tolerance if self.tolerance is not None else fp32_bound(own, reference.dtype)
        tolerance = relaxed_to(bound, OUTPUTS["fp32"])
        error = tensor_error(name, *_comparable(reference, output), tolerance.channels)
        violations = check(error, tolerance)
        if violations:
            relaxed = own is not None and bound > fp32_bound(None, reference.dtype)
            itself = f"; PyTorch itself is {own:.1e} from FP64" if relaxed else ""
            return f"ONNX Runtime differs from PyTorch: output {name}: {violations[0]}{itself}"
        if error.max_relative >= self.worst.max_relative:
            self.worst.max_relative, self.worst.allowed = error.max_relative, bound
        self.worst.max_abs = max(self.worst.max_abs, error.max_abs)
        return None

    def _cause(self, trial: _Trial) -> Cause:
        """Why the file is wrong at `trial`: the network's fault first, then the file's."""
        expected = self._expected(trial)
        if not self._is_steady(trial, expected):
            return random_result(random_operators(self.reference.module, self._feeds(trial)))
        for other in self._other_trials(trial):
            if self._fault(other) is None:
                if not all(map(_has_finite, expected)):
                    return not_finite(str(other), self.inputs.as_options(batch=other.batch))
                varied = "a height or width" if trial.sizes != self.inputs.sizes else "the batch"
                return fixed_when_traced(varied, self._fixed(trial), str(other))
        if not all(map(_has_finite, expected)):
            return not_finite()
        operators = random_operators(self.reference.module, self._feeds(trial))
        if operators:
            return random_result(operators)
        return wrong_operator(self.path, self.reference, self._feeds(trial), self.inputs.specs)

    def _other_trials(self, trial: _Trial) -> Iterator[_Trial]:
        """The batch and sizes of tracing, and other batches, where PyTorch runs."""
        if self.inputs.batch is not None:
            batches = [self.inputs.batch]
        else:
            batches = [EXAMPLE_BATCH, *BATCHES]
        for batch in batches:
            other = _Trial(batch, self.inputs.sizes)
            if other != trial:
                yield other


def _has_finite(array: Array) -> bool:
    return bool(array.size == 0 or np.isfinite(array).any())


def _comparable(reference: Array, output: Array) -> tuple[Array, Array]:
    """Both, with zeros where they have the same infinity, or NaN: masks, logarithms of noise."""
    if not np.issubdtype(reference.dtype, np.floating):
        return reference, output
    same = ~np.isfinite(reference) & (
        (reference == output) | (np.isnan(reference) & np.isnan(output))
    )
    if not same.any() or same.all():
        return reference, output
    return np.where(same, 0, reference), np.where(same, 0, output)


def _repeats(first: Array, again: Array) -> bool:
    if first.shape != again.shape:
        return False
    error = tensor_error("", *_comparable(first, again))
    return error.max_relative <= _REPEATABLE and error.nonfinite == error.reference_nonfinite
