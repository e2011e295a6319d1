"""The gates' nodes in a TensorRT network, and the kernel launch that carries out each.

An embedded plugin is one kernel, so a gate is one node where the fused kernel runs, and two to four
where it does not: as many as `stages.stages` has. Names are ONNX operators of domain
``cbam_deploy``, names of tensors those of `stages.buffers`:

    node                          inputs -> outputs
    those of `gates.operators`    x, (r,) and the weights -> y
    QLinear...                    the same on int8 maps; scales are attributes

    CbamGateChannelStatistics     x -> partials [N, splits, C, 2]
    CbamGateSpatialStatistics     x, partials, w0, b0, w1, b1 -> channel_gates [N, C],
                                  pooled [N, H, W, 2]
    SeGateChannelExcitation       partials, w0, b0, w1, b1 -> channel_gates
    CbamGateAddReluApply          x, r, channel_gates, pooled, ws, bs -> y

TensorRT chooses layouts node by node. x, r and y of one node have one layout. The statistics that
travel between staged nodes hold one entry per stored channel; so that their strides agree, these
nodes take only layouts that store no more channels than there are.

Embedded kernels keep to `DEFAULT_SHARED_BYTES`, as nothing says that TensorRT would ask the driver
for more; and addresses are taken to be multiples of 16 bytes, as TensorRT's own kernels need too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cbam_deploy.errors import BadInput
from cbam_deploy.gates.operators import GATE_OPERATORS, GateOperator, in_lower_case
from cbam_deploy.plugins.entries import before_the_last
from cbam_deploy.plugins.gate import Gate, round_up, weight_sizes
from cbam_deploy.plugins.geometry import (
    DEFAULT_SHARED_BYTES,
    KNOWN_DEVICES,
    DeviceLimits,
    fused_candidates,
    kept_part,
    plan,
)
from cbam_deploy.plugins.launches import Launch
from cbam_deploy.plugins.layouts import FLOATS, Dtype, LayoutName
from cbam_deploy.plugins.stages import Stage, buffers, stages

Names = tuple[str, ...]
CAPABILITY = "capability"
"""Attribute of every node: of the GPU that its kernel is for, ten times major plus minor."""

_FEW = 4  # tactics that TensorRT times per type and layout

SCALES = ("x_scale", "r_scale", "y_scale")
_MAP_SIZES, _WEIGHT_SIZES = (
    ("channels", "height", "width"),
    ("hidden", "kernel_size", "channel_kernel_size"),
)
SIZES = (*_MAP_SIZES, *_WEIGHT_SIZES, "splits")


@dataclass(frozen=True)
class Format:
    """A layout by TensorRT's name (`TensorFormat`); it stores a multiple of `multiple` channels."""

    name: str
    layout: LayoutName
    multiple: int = 1


LINEAR = Format("LINEAR", "nchw")
FORMATS: dict[Dtype, tuple[Format, ...]] = {
    "float32": (LINEAR, Format("HWC", "nhwc")),
    "float16": (Format("HWC8", "nhwc", 8), LINEAR),
    "bfloat16": (Format("HWC8", "nhwc", 8), LINEAR),
    "int8": (Format("CHW32", "chw32", 32), Format("HWC16", "nhwc", 16), LINEAR),
}
"""Layouts of maps by type; the first is the one that convolutions of that type prefer."""


@dataclass(frozen=True)
class PluginNode:
    """One node of the table above.

    Attributes:
        name: its ONNX operator.
        operator: what it computes, alone or with others; what only statistics lead to stands
            without what follows the gate.
        stage: the launch that it is, of a fused or a staged plan.
        dtypes: that x, r and y may have.
        sizes, scales: names of its attributes, integers and floats.
    """

    name: str
    operator: GateOperator
    stage: Stage
    dtypes: tuple[Dtype, ...]
    sizes: tuple[str, ...] = ()
    scales: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors it reads, in order."""
        return buffers(self.operator, self.stage)[0]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the tensors it writes, in order."""
        return buffers(self.operator, self.stage)[1]

    @property
    def maps(self) -> tuple[str, ...]:
        """Those tensors that are feature maps; all others are float32."""
        return tuple(name for name in (*self.inputs, *self.outputs) if name in ("x", "r", "y"))

    def gate(
        self,
        shapes: Mapping[str, Sequence[int]],
        attributes: Mapping[str, float],
        dtype: Dtype,
        format_: Format,
    ) -> Gate:
        """The gate that this node, alone or with others, computes.

        Args:
            shapes: of the inputs, by name; of a staged node's none matters.
            attributes: by name.
            dtype: of the maps.
            format_: their layout.

        Raises:
            BadInput: there is no kernel for it.
        """
        if self.stage == "fused":
            maps = dict(zip(_MAP_SIZES, shapes["x"][1:], strict=True))
            sizes = maps | weight_sizes(shapes)
        else:
            sizes = {name: int(attributes[name]) for name in SIZES[:-1]}
        channels = sizes["channels"]
        stored = round_up(channels, format_.multiple)
        if self.stage != "fused" and stored != channels:
            raise BadInput(
                f"{self.name}: {format_.name} would pad {channels} channels",
                "use the layout LINEAR",
            )
        of_maps = {name: float(attributes[name]) for name in self.scales}
        return Gate(
            self.operator,
            **sizes,
            dtype=dtype,
            layout=format_.layout,
            stored=stored,
            x_scale=of_maps.get("x_scale", 1.0),
            r_scale=of_maps.get("r_scale", 1.0),
            y_scale=of_maps.get("y_scale", 1.0),
        )

    def tactics(
        self, gate: Gate, limits: DeviceLimits, batches: Iterable[int], splits: int | None = None
    ) -> dict[int, Launch]:
        """The few launches worth timing, by TensorRT's number for each, a positive integer.

        `launch` finds a launch by its number again, whatever `batches` were.
        """
        best: dict[int, Launch] = {}
        for number in self._numbers(gate, limits, batches):
            launch = self.launch(gate, limits, number, splits)
            if launch not in best.values():
                best[number] = launch
        return dict(list(best.items())[:_FEW])

    def launch(
        self, gate: Gate, limits: DeviceLimits, tactic: int, splits: int | None = None
    ) -> Launch:
        """Launch number `tactic` of this node.

        Of the fused kernel that is its place among the candidates of the geometry, from 1; of a
        staged one, the batch that its geometry is to be fast for.

        Raises:
            BadInput: no launch of this node computes `gate` within `limits`.
        """
        if self.stage == "fused":
            return fused_candidates(gate, limits)[tactic - 1].launches[0]
        chosen = plan(gate, limits, batch=tactic, strategy="staged", splits=splits)
        return next(launch for launch in chosen.launches if launch.stage == self.stage)

    def _numbers(self, gate: Gate, limits: DeviceLimits, batches: Iterable[int]) -> list[int]:
        if self.stage != "fused":
            return list(batches)
        candidates = fused_candidates(gate, limits)
        if not candidates:
            return []
        preferred = (plan(gate, limits, batch=batch, strategy="fused") for batch in batches)
        by_kept_part = sorted(candidates, key=kept_part, reverse=True)
        return [candidates.index(one) + 1 for one in (*preferred, *by_kept_part)]


def fused_node(operator: GateOperator, *, integers: bool) -> PluginNode:
    """The one node that computes `operator`, of float maps or of int8 ones."""
    if not integers:
        return PluginNode(operator.name, operator, "fused", FLOATS)
    maps = (*in_lower_case(operator.maps), "y")
    scales = tuple(name for name in SCALES if name[0] in maps)
    return PluginNode(f"QLinear{operator.name}", operator, "fused", ("int8",), scales=scales)


def staged_nodes(operator: GateOperator) -> tuple[PluginNode, ...]:
    """The nodes that compute `operator` where the fused kernel does not run, in order."""

    def node(stage: Stage) -> PluginNode:
        computes = operator if stage == "apply" else before_the_last(operator)
        name = computes.name + stage.title().replace("_", "")
        return PluginNode(name, computes, stage, (*FLOATS, "int8"), SIZES, SCALES)

    return tuple(map(node, stages(operator)))


def nodes_of(operator: GateOperator) -> tuple[PluginNode, ...]:
    """Every node that `operator` may become."""
    fused = (fused_node(operator, integers=integers) for integers in (False, True))
    return (*fused, *staged_nodes(operator))


NODES: dict[str, PluginNode] = {
    node.name: node for operator in GATE_OPERATORS.values() for node in nodes_of(operator)
}
"""The nodes of the gates that have names, by their own."""


def embedding_limits(capability: tuple[int, int]) -> DeviceLimits:
    """What a kernel embedded in an engine may use on a GPU of compute capability `capability`.

    A GPU that is not among `KNOWN_DEVICES` counts as the closest earlier one, whose PTX it runs.

    Raises:
        BadInput: the GPU is older than all of them.
    """
    number = 10 * capability[0] + capability[1]
    earlier = [known for known in KNOWN_DEVICES if known <= number]
    if not earlier:
        raise BadInput(
            f"compute capability {capability[0]}.{capability[1]} is older than the gate kernels",
            "use --gate native",
        )
    return replace(KNOWN_DEVICES[max(earlier)], block_shared_bytes=DEFAULT_SHARED_BYTES)
