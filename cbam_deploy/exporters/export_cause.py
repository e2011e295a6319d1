"""Why a freshly exported file computes something else than its module, and what helps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.module_tracker import ModuleTracker

from cbam_deploy.comparison.reference import Reference
from cbam_deploy.graphs.onnx_file import read_model
from cbam_deploy.numerics.tensors import Feeds, TensorSpec
from cbam_deploy.numerics.tolerances import LAYERS
from cbam_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
from cbam_deploy.runtimes.pytorch import own_tensor


@dataclass(frozen=True)
class Cause:
    """A clause that continues what is wrong, and what to do about it."""

    reason: str
    remedy: str


def fixed_when_traced(what: str, options: str, right: str) -> Cause:
    """The file is right at some sizes, and wrong at others.

    Args:
        what: the sizes that make the difference.
        options: with which they would be fixed.
        right: the batch and sizes at which the file is right.
    """
    return Cause(
        f", while at {right} both agree: the network's Python code decides by {what} once, when "
        "traced (int(), a loop or an if over a size, squeeze())",
        f"fix it ({options}), or take sizes from x.shape in tensor operations alone",
    )


def not_finite(right: str | None = None, options: str = "") -> Cause:
    """PyTorch has no numbers to compare with, except at the batch `right`, which `options` fix."""
    if right is not None:
        return Cause(
            f", as PyTorch gives nothing but NaN and infinity there; at {right} both agree",
            f"fix the batch ({options}), or make the network independent of the other samples",
        )
    return Cause(
        "; PyTorch gives nothing but NaN and infinity for noise",
        "check the network's weights, and which inputs it takes",
    )


def random_result(operators: Sequence[str]) -> Cause:
    """PyTorch draws random numbers, or gives another result each time for another reason."""
    if operators:
        return Cause(
            f", and PyTorch draws random numbers in evaluation mode ({', '.join(operators)})",
            "make forward deterministic there: F.dropout(x, p, self.training), nothing drawn",
        )
    return Cause(
        ", and PyTorch gives another result each time for the same input",
        "make forward depend on its inputs alone: no state that a call changes, nothing drawn",
    )


def wrong_operator(
    path: Path, reference: Reference, feeds: Feeds, specs: Sequence[TensorSpec]
) -> Cause:
    """An operation became another one in the file: the first node where values differ."""
    from cbam_deploy.comparison.layers import ReferenceProgram, compare_layers

    relax = "or allow as much with --tolerance"
    try:
        program = ReferenceProgram(reference, feeds, specs)
        report = compare_layers(
            read_model(path),
            program,
            title=str(path),
            layers="all",
            tolerance=LAYERS["fp32"],
            open_runner=lambda values: OnnxRuntimeRunner(path, extra_outputs=values),
        )
        fault = report.first_fault
    except Exception:  # What is wrong with the file may keep it from being looked into as well.
        fault = None
    if fault is None:
        return Cause("", f"write the network's last operations in another way, {relax}")
    if fault.place.is_gate:
        return Cause(
            f"; it begins at the fused gate {fault.place}", f"export with --no-fuse, {relax}"
        )
    return Cause(
        f"; it begins at {fault.place}",
        f"write that operation of the network in another way, {relax}",
    )


def random_operators(module: nn.Module, feeds: Feeds) -> list[str]:
    """What draws random numbers in one run, such as ``aten.bernoulli in head.drop``."""
    recorder = _RandomOperators()
    with torch.no_grad(), torch.random.fork_rng(devices=[]), recorder.tracker, recorder:
        module(*map(own_tensor, feeds.values()))
    return list(dict.fromkeys(recorder.found))


class _RandomOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tracker = ModuleTracker()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            _, _, where = max(self.tracker.parents, key=len).partition(".")
            self.found.append(
                f"{func.overloadpacket} in {where}" if where else f"{func.overloadpacket}"
            )
        return func(*args, **(kwargs or {}))
