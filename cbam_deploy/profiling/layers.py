"""From the kernels that a runtime runs to layers as a person knows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cbam_deploy.profiling.kernels import Conversion, Kernel
from cbam_deploy.profiling.origins import Origin, Origins

Kind = Literal["product", "gate", "other", "quantize", "reorder"]

_PRODUCTS = ("Conv", "Gemm", "MatMul", "Linear", "FullyConnected")
_KIND_OF: dict[Conversion, Kind] = {
    "quantize": "quantize", "dequantize": "quantize", "cast": "reorder", "reorder": "reorder",
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """A row of a profile: a node of the file with all that is fused into it, or a conversion.

    An attention gate is one layer, whatever its body became. Every kernel is in one layer, so that
    their times add up to that of the network.

    Attributes:
        name: of the node in the file, or the path of a PyTorch module; where the file does not
            know it, the runtime's own name.
        operator: as the runtime runs it; of a gate, the operator in the file.
        module: path of the PyTorch module it comes from; empty where nothing says.
        kind: ``product`` for convolutions and matrix products, ``gate``, ``other``, or what only
            changes how numbers lie in memory: ``quantize`` (also from integers back to floats)
            and ``reorder`` (also casts).
        precision: of what most of its time goes to, such as ``fp32``; empty where not told.
        asked: the precision that the file asks for; empty where it does not say.
        seconds: of one run.
        conversion_seconds: of that, spent on conversions.
        kernels: number of kernels.
        fused: names of the other nodes of the file that it carries out.
        of_weights: whether it converts a weight, over and over.
    """

    name: str
    operator: str
    module: str
    kind: Kind
    precision: str
    asked: str
    seconds: float
    conversion_seconds: float = 0.0
    kernels: int = 1
    fused: tuple[str, ...] = ()
    of_weights: bool = False

    @property
    def place(self) -> str:
        """What layers of two artefacts are matched by: the module, else the name."""
        return self.module or self.name


def layers_of(kernels: Sequence[Kernel], origins: Origins | None) -> tuple[Layer, ...]:
    """The layers that `kernels` come to, in the order of the first kernel of each.

    Args:
        kernels: in the order in which they run.
        origins: the nodes of their file; None for PyTorch, whose kernels are modules by name.
    """
    groups: dict[tuple[str, str], list[Kernel]] = {}
    anchors: dict[tuple[str, str], Origin] = {}
    for kernel in kernels:
        anchor = origins.anchor(kernel.nodes) if origins else _module(kernel)
        gate = anchor is not None and anchor.gate
        name = anchor.name if anchor else kernel.name
        key = (name, kernel.operator if kernel.conversion and not gate else "")
        groups.setdefault(key, []).append(kernel)
        if anchor is not None:
            anchors[key] = anchor
    return tuple(_layer(key[0], group, anchors.get(key)) for key, group in groups.items())


def _module(kernel: Kernel) -> Origin:
    gate = kernel.operator == "AttentionGate"
    return Origin(kernel.name, kernel.operator, kernel.name, gate)


def _layer(name: str, kernels: Sequence[Kernel], anchor: Origin | None) -> Layer:
    longest = max(kernels, key=lambda kernel: kernel.seconds)
    gate = anchor is not None and anchor.gate
    by_precision: Counter[str] = Counter()
    for kernel in kernels:
        if kernel.precision:
            by_precision[kernel.precision] += round(kernel.seconds * 1e9)
    names = dict.fromkeys(node for kernel in kernels for node in kernel.nodes)
    return Layer(
        name=name,
        operator=anchor.operator if anchor is not None and gate else longest.operator,
        module=anchor.module if anchor else "",
        kind="gate" if gate else _kind(longest),
        precision=next(iter(by_precision.most_common(1)), ("",))[0],
        asked=anchor.precision if anchor else "",
        seconds=sum(kernel.seconds for kernel in kernels),
        conversion_seconds=sum(kernel.seconds for kernel in kernels if kernel.conversion),
        kernels=len(kernels),
        fused=tuple(node for node in names if node != name),
        of_weights=anchor is not None and anchor.of_weights and bool(longest.conversion),
    )


def _kind(kernel: Kernel) -> Kind:
    if kernel.conversion:
        return _KIND_OF[kernel.conversion]
    return "product" if any(part in kernel.operator for part in _PRODUCTS) else "other"
