"""The operators that compute gates: the names and inputs that ONNX files, PyTorch and kernels use.

op              inputs                                                      output
CbamGate        X [N,C,H,W], W0 [C/r,C], B0 [C/r], W1 [C,C/r], B1 [C],      Y like X
WS [1,2,k,k] (channel 0: maximum, 1: mean), BS [1]
CbamGateAddRelu X, R like X, then as CbamGate                               Y like X
SeGate          X, W0, B0, W1, B1                                           Y like X
SeGateAddRelu   X, R, W0, B0, W1, B1                                        Y like X
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from cbam_deploy.gates.description import CBAM, SE, GateSpec

DOMAIN = "cbam_deploy"
"""Of the operators in ONNX, of the plugins in TensorRT, of the operators in ``torch.ops``."""
VERSION = 1
PLUGIN_ATTRIBUTES = {"plugin_namespace": DOMAIN, "plugin_version": "1"}
"""What every gate node carries, by which TensorRT finds a plugin."""

KINDS: dict[GateSpec, str] = {CBAM: "Cbam", SE: "Se"}
"""The gates that have operators, and how these call them; their sizes are those of the weights."""

T = TypeVar("T")


@dataclass(frozen=True)
class GateOperator:
    """One operator.

    Attributes:
        gate: what it computes, one of `KINDS`.
        residual: whether a residual is added to the gated map, and the sum rectified.
    """

    gate: GateSpec
    residual: bool = False

    @property
    def kind(self) -> str:
        """What names call the gate, such as ``Cbam``."""
        return KINDS[self.gate]

    @property
    def behind(self) -> str:
        """What names say of that which follows the gate: ``AddRelu``, or nothing."""
        return "AddRelu" if self.residual else ""

    @property
    def name(self) -> str:
        """In ONNX files, such as ``CbamGateAddRelu``."""
        return f"{self.kind}Gate{self.behind}"

    @property
    def function(self) -> str:
        """In PyTorch and of the fused kernel, such as ``cbam_gate_add_relu``."""
        return snake_case(self.name)

    @property
    def spatial(self) -> bool:
        """Whether there is a spatial gate behind the channel gate."""
        return self.gate.spatial != "none"

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of its feature maps."""
        return ("X", "R") if self.residual else ("X",)

    @property
    def channel_weights(self) -> tuple[str, ...]:
        """Names of the channel gate's weights."""
        return ("W0", "B0", "W1", "B1")

    @property
    def spatial_weights(self) -> tuple[str, ...]:
        """Names of the spatial gate's weights."""
        return ("WS", "BS") if self.spatial else ()

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of its weights."""
        return (*self.channel_weights, *self.spatial_weights)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of its inputs, in order."""
        return (*self.maps, *self.weights)

    def by_name(self, values: Sequence[T]) -> dict[str, T]:
        """The inputs of a node, ``node.inputs`` or ``node.input``, as far as it has them."""
        return dict(zip(self.inputs, values, strict=False))

    def weight_shapes(
        self, channels: int, hidden: int, kernel_size: int
    ) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights, by name."""
        shapes = {
            "W0": (hidden, channels),
            "B0": (hidden,),
            "W1": (channels, hidden),
            "B1": (channels,),
            "WS": (1, 2, kernel_size, kernel_size),
            "BS": (1,),
        }
        return {name: shapes[name] for name in self.weights}


GATE_OPERATORS: dict[str, GateOperator] = {
    operator.name: operator
    for operator in (GateOperator(gate, residual) for gate in KINDS for residual in (False, True))
}
"""Every operator by its name in ONNX files."""


class Node(Protocol):
    """A node of an ONNX graph, as `onnx` or `onnx_ir` has it."""

    @property
    def domain(self) -> str: ...  # noqa: D102

    @property
    def op_type(self) -> str: ...  # noqa: D102


def operator_of(node: Node) -> GateOperator | None:
    """The operator of a gate's node; None of any other node."""
    return GATE_OPERATORS.get(node.op_type) if node.domain == DOMAIN else None


def operator_for(gate: GateSpec, *, residual: bool = False) -> GateOperator | None:
    """The operator that computes `gate`, whatever its sizes; None where there is none."""
    kind = replace(gate, reduction=CBAM.reduction, kernel_size=CBAM.kernel_size)
    return GateOperator(kind, residual) if kind in KINDS else None


def in_lower_case(names: Iterable[str]) -> tuple[str, ...]:
    """Names of inputs as PyTorch and the kernels write them."""
    return tuple(name.lower() for name in names)


def snake_case(name: str) -> str:
    """``cbam_gate`` for ``CbamGate``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
