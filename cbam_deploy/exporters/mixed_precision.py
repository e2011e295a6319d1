"""Networks in several precisions: which nodes compute in which, and the file of any such choice.

Who chooses is a function that is given a `MixedPrecision`: `precision_search`, which tries choices
out, or the accuracy budget. The range check of FP16 and BF16 holds in every one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import onnx_ir as ir

from cbam_deploy.artefacts import OnnxFile
from cbam_deploy.exporters.conversion_result import Precision
from cbam_deploy.exporters.half.formats import BF16, FP16, HalfFormat
from cbam_deploy.exporters.half.rules import (
    REDUCTIONS,
    TYPE_FOLLOWING,
    halves,
    is_standard,
    node_name,
)
from cbam_deploy.exporters.int8.placement import quantized_nodes
from cbam_deploy.exporters.int8.quantized_types import FP8, INT8, QuantizedType
from cbam_deploy.preprocessing import Preprocessing

# The steps down from FP32 to what a file is asked to be, the more exact before the faster.
STEPS: Mapping[Precision, tuple[str, ...]] = {
    "fp16": ("fp16",),
    "bf16": ("bf16",),
    "int8": ("fp16", "int8"),
    "int8+fp32": ("int8",),
    "fp8": ("fp16", "fp8"),
}
QUANTIZED = frozenset({"int8", "fp8"})  # Those of Q and DQ; the others are types of floats.


@dataclass(frozen=True)
class Choice:
    """Which nodes do not take which step; all others do.

    Attributes:
        kept: names of nodes that stay in what is before a step, by step.
    """

    kept: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def above(self, step: str) -> frozenset[str]:
        """Names of the nodes that do not take `step`."""
        return self.kept.get(step, frozenset())

    @property
    def unquantized(self) -> frozenset[str]:
        """Names of the nodes that read no Q and DQ."""
        return frozenset().union(*(self.above(step) for step in self.kept if step in QUANTIZED))

    @property
    def fp32(self) -> frozenset[str]:
        """Names of the nodes whose floats stay FP32."""
        return frozenset().union(*(self.above(step) for step in self.kept if step not in QUANTIZED))

    def keeping(self, step: str, nodes: frozenset[str]) -> Choice:
        """The same with just `nodes` above `step`."""
        return replace(self, kept={**self.kept, step: nodes})

    def to_json(self) -> dict[str, list[str]]:
        """As JSON-ready data, the same for equal choices."""
        return {step: sorted(self.kept[step]) for step in sorted(self.kept)}

    @property
    def operations(self) -> int:
        """How many nodes do not take a step, summed over the steps."""
        return sum(map(len, self.kept.values()))


@dataclass(frozen=True)
class MixedPrecision:
    """A network, calibrated once, of which files of any choice can be made.

    Attributes:
        model: in FP32, with what a choice may name.
        steps: as `STEPS` has them for the precision asked for.
        make: gives the network of a choice, with its history, ready to be written.
    """

    model: ir.Model = field(repr=False)
    steps: tuple[str, ...]
    make: Callable[[Choice], ir.Model]

    def candidates(self, step: str) -> tuple[str, ...]:
        """Names of the nodes that can take `step`, in the graph's order."""
        return _CANDIDATES[step](self.model)


Choose = Callable[[MixedPrecision], Choice]
# Given the file, and how its pictures are prepared: None where nothing says that.
Chooser = Callable[[OnnxFile, Preprocessing | None], Choose]


def _may_be_half(half: HalfFormat, model: ir.Model) -> tuple[str, ...]:
    opset = model.opset_imports.get("", 1)
    return tuple(
        node_name(node)
        for node in model.graph
        if not is_standard(node, *REDUCTIONS, *TYPE_FOLLOWING, *half.lacking)
        and any(map(any, halves(node, opset, half)))
    )


def _may_be_quantized(kind: QuantizedType, model: ir.Model) -> tuple[str, ...]:
    return tuple(operation.node for operation in quantized_nodes(model, kind=kind))


_CANDIDATES: Mapping[str, Callable[[ir.Model], tuple[str, ...]]] = {
    "fp16": partial(_may_be_half, FP16),
    "bf16": partial(_may_be_half, BF16),
    "int8": partial(_may_be_quantized, INT8),
    "fp8": partial(_may_be_quantized, FP8),
}
