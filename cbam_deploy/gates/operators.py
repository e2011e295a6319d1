"""The operators that compute gates: the names and inputs that ONNX files, PyTorch and kernels use.

A name is what the gate is called, then what sets it apart, then what follows it:

    CbamGate  SeGate  EcaGate  ScseGate  SpatialGate         what `_BASES` says
    CbamGateMeanLinear                                       one layer C -> C, that sees the mean
    SeGateSilu  SeGateLinearHardSigmoid                      other functions than ReLU and sigmoid
    CbamGateSpatialFirst  CbamGateMeanMap                    words that end in Map are of Ms
    CbamGateAdd  CbamGateAddRelu  CbamGateThenSilu           y + R, relu(y + R), silu(y)

Inputs, in this order and as far as a gate has them; outputs are Y like X:

    X        the map [N, C, H, W]                R        what is added to the gated map, like X
    W0, B0   first layer [h, C], [h]             W1, B1   second, or only, layer [C, h or C], [C]
    WC, BC   convolution along the channels [1, 1, k], [1]
    WD       1x1 convolution [1, C, 1, 1] to the spatial part's descriptor
    WS, BS   spatial convolution [1, d, k, k], [1]; of two channels, 0 is the maximum and 1 the mean
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar, get_args

from cbam_deploy.gates.description import (
    CBAM,
    GATES,
    SE,
    Activation,
    Arrangement,
    GateFunction,
    GateSpec,
    Join,
    Spatial,
)

DOMAIN = "cbam_deploy"
"""Of the operators in ONNX, of the plugin in TensorRT, of the operators in ``torch.ops``."""
VERSION = 1
PLUGIN = "FusedGate"
"""The plugin that computes gates in TensorRT, and the operator of nodes that were lowered to it."""
PLUGIN_DOMAIN = "trt.plugins"
"""Of these nodes: ONNX Runtime's TensorRT provider knows plugins by it."""
PLUGIN_ATTRIBUTES = {"plugin_namespace": DOMAIN, "plugin_version": "1"}
"""What every gate node carries, by which TensorRT finds a plugin."""

T = TypeVar("T")
Last = Activation | Literal["none"]


@dataclass(frozen=True)
class GateOperator:
    """One operator.

    Attributes:
        gate: what it computes, a `GateSpec.kind`.
        residual: whether a map R is added to the gated one.
        activation: of the gated map, or of the sum.
    """

    gate: GateSpec
    residual: bool = False
    activation: Last = "none"

    @property
    def kind(self) -> str:
        """What names call the gate, such as ``CbamGate``."""
        base = _base(self.gate)
        words = (words[getattr(self.gate, field)] for field, words in _WORDS.items())
        same = (getattr(self.gate, field) == getattr(_BASES[base], field) for field in _WORDS)
        return f"{base}Gate" + "".join(
            "" if alike else word for word, alike in zip(words, same, strict=True)
        )

    @property
    def behind(self) -> str:
        """What names say of that which follows the gate: ``AddRelu``, ``ThenSilu``, or nothing."""
        last = "" if self.activation == "none" else _ACTIVATION_WORDS[self.activation]
        if self.residual:
            return f"Add{last}"
        return last and f"Then{last}"

    @property
    def name(self) -> str:
        """In ONNX files, such as ``CbamGateAddRelu``."""
        return self.kind + self.behind

    @property
    def function(self) -> str:
        """In PyTorch and of the fused kernel, such as ``cbam_gate_add_relu``."""
        return snake_case(self.name)

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of its feature maps."""
        return ("X", "R") if self.residual else ("X",)

    @property
    def channel_weights(self) -> tuple[str, ...]:
        """Names of the channel part's weights."""
        if not self.gate.has_channel:
            return ()
        of_mixer = {"mlp": ("W0", "B0", "W1", "B1"), "linear": ("W1", "B1"), "conv": ("WC", "BC")}
        return of_mixer[self.gate.mixer]

    @property
    def spatial_weights(self) -> tuple[str, ...]:
        """Names of the spatial part's weights."""
        if not self.gate.has_spatial:
            return ()
        return ("WD", "WS", "BS") if self.gate.spatial == "conv1x1" else ("WS", "BS")

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
        self, channels: int, hidden: int, kernel_size: int, channel_kernel_size: int = 3
    ) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights, by name."""
        described = 2 if self.gate.spatial == "pool" else 1
        shapes = {
            "W0": (hidden, channels),
            "B0": (hidden,),
            "W1": (channels, channels if self.gate.mixer == "linear" else hidden),
            "B1": (channels,),
            "WC": (1, 1, channel_kernel_size),
            "BC": (1,),
            "WD": (1, channels, 1, 1),
            "WS": (1, described, kernel_size, kernel_size),
            "BS": (1,),
        }
        return {name: shapes[name] for name in self.weights}


# What names call a gate, and what they then need not say.
_BASES: dict[str, GateSpec] = {
    "Cbam": CBAM,
    "Se": SE,
    "Eca": replace(SE, mixer="conv"),
    "Scse": GATES["scse"].kind,
    "Spatial": GateSpec(arrangement="spatial"),
}
_ACTIVATION_WORDS: dict[Activation, str] = {
    "relu": "Relu",
    "leaky_relu": "LeakyRelu",
    "silu": "Silu",
    "gelu": "Gelu",
    "hard_swish": "HardSwish",
}
# Of each field, in the order of names, the word for each value.
_WORDS: dict[str, dict[Any, str]] = {
    "arrangement": dict.fromkeys(get_args(Arrangement), "")
    | {"spatial-channel": "SpatialFirst", "parallel": "Parallel"},
    "channel_pool": {"avg": "Mean", "max": "Max", "avg+max": "MeanMax"},
    "join": dict.fromkeys(get_args(Join), "") | {"gates": "SumOfGates", "pools": "MeanOfPools"},
    "mixer": {"mlp": "", "linear": "Linear", "conv": "Conv"},
    "activation": _ACTIVATION_WORDS,
    "channel_gate": dict.fromkeys(get_args(GateFunction), "") | {"hard_sigmoid": "HardSigmoid"},
    "spatial": dict.fromkeys(get_args(Spatial), "")
    | {"pool": "PoolMap", "avg": "MeanMap", "max": "MaxMap", "conv1x1": "ConvMap"},
    "spatial_gate": dict.fromkeys(get_args(GateFunction), "") | {"hard_sigmoid": "HardSigmoidMap"},
}


def _base(gate: GateSpec) -> str:
    if gate.arrangement == "channel":
        return "Eca" if gate.mixer == "conv" else "Se"
    return {"spatial": "Spatial", "sum": "Scse"}.get(gate.arrangement, "Cbam")


def _one_of(words: Iterable[str]) -> str:
    return f"({'|'.join(word for word in words if word)})?"


_LAST_WORDS = _ACTIVATION_WORDS.values()
_NAME = re.compile(
    _one_of(_BASES)
    + "Gate"
    + "".join(_one_of(words.values()) for words in _WORDS.values())
    + f"(?:(Add){_one_of(_LAST_WORDS)}|Then({'|'.join(_LAST_WORDS)}))?"
)


@functools.lru_cache(maxsize=1024)
def operator_named(name: str) -> GateOperator | None:
    """The operator of a name in ONNX files; None where it is no name of one."""
    match = _NAME.fullmatch(name)
    if match is None or match[1] is None:
        return None
    base, *words = match.groups()
    residual, added, then = words[len(_WORDS) :]
    fields = {
        field: next(value for value, known in _WORDS[field].items() if known == word)
        for field, word in zip(_WORDS, words, strict=False)
        if word is not None
    }
    last = added or then
    activation: Last = next(
        (one for one, word in _ACTIVATION_WORDS.items() if word == last), "none"
    )
    operator = GateOperator(replace(_BASES[base], **fields).kind, residual is not None, activation)
    return operator if operator.name == name else None


GATE_OPERATORS: dict[str, GateOperator] = {
    operator.name: operator
    for gate in GATES.values()
    for operator in (GateOperator(gate.kind), GateOperator(gate.kind, True, "relu"))
}
"""Operators of the gates that have names, alone and with a residual and ReLU behind them."""


class Node(Protocol):
    """A node of an ONNX graph, as `onnx` or `onnx_ir` has it."""

    @property
    def domain(self) -> str: ...  # noqa: D102

    @property
    def op_type(self) -> str: ...  # noqa: D102


def operator_of(node: Node) -> GateOperator | None:
    """The operator of a gate's node; None of any other node."""
    return operator_named(node.op_type) if node.domain == DOMAIN else None


def is_lowered(node: Node) -> bool:
    """Whether a node is a gate that was lowered to TensorRT's plugin."""
    return (node.domain, node.op_type) == (PLUGIN_DOMAIN, PLUGIN)


def operator_for(
    gate: GateSpec, *, residual: bool = False, activation: Last = "none"
) -> GateOperator:
    """The operator that computes `gate`, whatever its sizes."""
    return GateOperator(gate.kind, residual, activation)


def in_lower_case(names: Iterable[str]) -> tuple[str, ...]:
    """Names of inputs as PyTorch and the kernels write them."""
    return tuple(name.lower() for name in names)


def snake_case(name: str) -> str:
    """``cbam_gate`` for ``CbamGate``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
