"""How the gates of a network become nodes that TensorRT's ONNX parser gives to our plugin.

A gate node of an ONNX file has a function of standard operators as its body. Lowered, it is one
``FusedGate`` node with the same inputs, whose attributes are all that the plugin knows: a launch
program (`launch_program`) and kernel images (`images`)::

    x, r, w0, ... ─ CbamGateAddRelu ─ y    ──▶    x, r, w0, ... ─ FusedGate <program, images> ─ y

In a quantized network DQ stands before a gate and Q behind it. The plugin takes the integers::

    a ─ Q ─ DQ ─┐                                      a ─ Q ─┐
    b ─ Q ─ DQ ─ CbamGateAddRelu ─ Q ─ DQ ─ c    ──▶   b ─ Q ─ FusedGate ─ DQ ─ c

with the scales in its program, if all three are int8 with one scale per tensor and nobody reads the
gate's result but Q. A Q or DQ that has other readers stays for them.

A gate that cannot be lowered stays native: it keeps its node and its body. The result is for
TensorRT's parser: nothing else runs it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from cbam_deploy.errors import BadInput
from cbam_deploy.gates.operators import (
    PLUGIN,
    PLUGIN_ATTRIBUTES,
    PLUGIN_DOMAIN,
    VERSION,
    GateOperator,
    in_lower_case,
    is_lowered,
    operator_of,
)
from cbam_deploy.graphs.gate_functions import foreign_operators, gate_nodes, operator_of_function
from cbam_deploy.graphs.names import name_apart
from cbam_deploy.plugins.entries import Kernel
from cbam_deploy.plugins.gate import Gate, round_up, weight_sizes
from cbam_deploy.plugins.geometry import DeviceLimits
from cbam_deploy.plugins.images import TENSORRT, KernelImages, ptx_version
from cbam_deploy.plugins.int8_maps import Int8Maps, reads_fp8
from cbam_deploy.plugins.launch_program import (
    LaunchProgram,
    MapFormat,
    Tactic,
    Target,
    read_program,
    text,
)
from cbam_deploy.plugins.launches import LaunchPlan
from cbam_deploy.plugins.layouts import FORMATS, Dtype, Format
from cbam_deploy.plugins.tactics import tactics
from cbam_deploy.terminal import visible

NATIVE, AS_PLUGIN = "native", "plugin"

_DTYPES: dict[ir.DataType | None, Dtype] = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
}


@dataclass(frozen=True)
class Lowered:
    """One gate as TensorRT's parser gets it.

    Attributes:
        operator: name of the gate's operator.
        program: what its plugin launches; None where it stays native.
        reason: why it stays native; empty where it does not.
        carried_bytes: size of the kernel images in its node.
    """

    operator: str
    program: LaunchProgram | None
    reason: str = ""
    carried_bytes: int = 0

    @property
    def way(self) -> str:
        """``plugin``, or ``native``."""
        return AS_PLUGIN if self.program else NATIVE


def lower_gates(
    model: ir.Model,
    targets: Sequence[DeviceLimits],
    *,
    tensorrt: str = TENSORRT,
    batch: int = 8,
) -> dict[str, Lowered]:
    """Lower every gate of `model`, in place.

    Args:
        model: a network with gate nodes and their function bodies.
        targets: of the GPUs that there are to be kernels for, each of `geometry.KNOWN_DEVICES`.
        tensorrt: version of TensorRT that is to build it, such as ``10.3``.
        batch: that the kernels are to be fast for.

    Returns:
        by name of the gate's node, or else of its output.

    Raises:
        BadInput: NVRTC has no such target, or `tensorrt` is none that has such plugins.
        MissingCapability: NVRTC or the CUDA headers are not installed.
    """
    nodes = gate_nodes(model)
    name_apart(nodes)
    if any(value.shape is None for node in nodes for value in node.inputs[:1] if value):
        common.ShapeInferencePass()(model)
    images = KernelImages(ptx_version(tensorrt))
    lowered: dict[str, Lowered] = {}
    planned: dict[str, _Planned] = {}
    foreign = foreign_operators(model)
    for node in nodes:
        name = node.name or node.outputs[0].name or ""
        try:
            if node.op_type in foreign:
                raise BadInput(foreign[node.op_type], "")
            planned[name] = _planned(node, name, targets, batch)
        except BadInput as error:
            lowered[name] = Lowered(node.op_type, None, error.message)
    for one in planned.values():
        for kernel, capability in one.kernels:
            images.want(kernel, capability)
    images.make()
    for name, one in planned.items():
        of_node, carried = images.of_node(kernel for kernel, _ in one.kernels)
        program = replace(one.program, images=of_node)
        one.replace_node(program, carried)
        lowered[name] = Lowered(program.operator, program, carried_bytes=len(carried))
    if planned:
        model.opset_imports[PLUGIN_DOMAIN] = VERSION
        _tidy(model)
    return {(name := node.name or node.outputs[0].name or ""): lowered[name] for node in nodes}


def programs(model: ir.Model) -> dict[str, LaunchProgram]:
    """The launch programs of the lowered gates in a file, by name of their nodes.

    Raises:
        BadInput: one cannot be read.
    """
    found = {}
    for node in model.graph:
        if is_lowered(node):
            name = node.name or node.outputs[0].name or ""
            try:
                found[name] = read_program(node.attributes.get_string("program", ""))
            except (TypeError, ValueError) as error:
                raise BadInput(f"gate {name}: {error}", "lower the network again") from error
    return found


@dataclass(frozen=True)
class _Planned:
    """A gate that is going to be lowered."""

    node: ir.Node
    program: LaunchProgram
    integers: Int8Maps | None
    kernels: tuple[tuple[Kernel, int], ...]  # with the capability that they are planned for

    def replace_node(self, program: LaunchProgram, carried: bytes) -> None:
        """Put the plugin's node where the gate's, and the Q behind it, stood."""
        node, graph = self.node, self.node.graph
        if graph is None:
            raise RuntimeError(f"{node.name} belongs to no graph")
        images = np.frombuffer(carried or b"\0", np.int8)
        made = ir.node(
            PLUGIN,
            self._inputs(),
            {**PLUGIN_ATTRIBUTES, "program": text(program), "images": ir.tensor(images)},
            domain=PLUGIN_DOMAIN,
            name=node.name,
        )
        result = made.outputs[0]
        quantizers = self.integers.quantizers if self.integers else ()
        old = tuple(quantizer.outputs[0] for quantizer in quantizers) or (node.outputs[0],)
        result.type = ir.TensorType(ir.DataType.INT8) if self.integers else old[0].type
        result.shape = node.outputs[0].shape
        graph.insert_before(node, made)
        for value in old:
            value.replace_all_uses_with(result, replace_graph_outputs=True)
        graph.remove([*quantizers, node], safe=True)
        result.name = old[0].name

    def _inputs(self) -> list[ir.Value | None]:
        """What the plugin's node reads; gates before it may have been replaced already."""
        inputs = list(self.node.inputs)
        if self.integers:
            count = len(self.program.maps)
            inputs[:count] = self.integers.read(inputs[:count])
        return inputs


def _planned(node: ir.Node, name: str, targets: Sequence[DeviceLimits], batch: int) -> _Planned:
    """What `node` becomes; BadInput where there is no kernel for it."""
    operator = operator_of(node)
    assert operator is not None
    names = in_lower_case(operator.inputs)
    values = dict(zip(names, (_known(value, node) for value in node.inputs), strict=True))
    if reads_fp8(node, operator):
        raise BadInput(f"{operator.name}: its maps are FP8, which its kernels do not know", "")
    integers = Int8Maps.around(node, operator)
    gate = _gate(operator, values, integers)
    of_targets, kernels = [], []
    for limits in targets:
        formats = []
        for format_, plans in _formats(gate, limits, batch):
            offered = tuple(Tactic.of(number, plan) for number, plan in plans.items())
            formats.append(MapFormat(gate.dtype, format_.name, offered))
            kernels += [
                (launch.kernel, limits.capability)
                for plan in plans.values()
                for launch in plan.launches
            ]
        of_targets.append(Target(limits.capability, tuple(formats)))
    place = visible(" ".join(name.split()))
    sizes = (gate.channels, gate.height, gate.width)
    return _Planned(
        node=node,
        program=LaunchProgram(
            gate=f"{operator.name} on {'x'.join(map(str, sizes))} at {place}",
            inputs=names,
            maps=in_lower_case(operator.maps),
            sizes=sizes,
            targets=tuple(of_targets),
        ),
        integers=integers,
        kernels=tuple(kernels),
    )


def _formats(
    gate: Gate, limits: DeviceLimits, batch: int
) -> Iterator[tuple[Format, dict[int, LaunchPlan]]]:
    """TensorRT's formats of the gate's type that there are kernels for, and the plans for each."""
    found, fault = False, None
    for format_ in FORMATS[gate.dtype]:
        stored = round_up(gate.channels, format_.multiple)
        try:
            stored_so = replace(gate, layout=format_.layout, stored=stored)
            plans = tactics(stored_so, limits, batch)
        except BadInput as error:
            fault = error
            continue
        found = True
        yield format_, plans
    if fault is not None and not found:
        raise fault


def _known(value: ir.Value | None, node: ir.Node) -> ir.Value:
    """`value`, if all of its shape but the batch is known before the network runs."""
    if value is None or value.shape is None:
        raise BadInput(f"{node.op_type}: the shape of an input is not known", "")
    if not all(_sizes(value)[1:]):
        free = [size for size in value.shape[1:] if not isinstance(size, int)]
        axes = " and ".join(dict.fromkeys(str(size.value or "?") for size in free))
        verb = "are" if " and " in axes else "is"
        raise BadInput(f"{node.op_type}: its kernels are for fixed sizes, {axes} {verb} free", "")
    return value


def _sizes(value: ir.Value) -> tuple[int, ...]:
    """Shape of a value, with 0 for what is not known."""
    return tuple(size if isinstance(size, int) else 0 for size in value.shape or ())


def _gate(operator: GateOperator, inputs: dict[str, ir.Value], integers: Int8Maps | None) -> Gate:
    """What is computed of `inputs`, the float ones, in the layout that suits it best."""
    maps = in_lower_case(operator.maps)
    for name, value in inputs.items():
        if name not in maps and value.dtype != ir.DataType.FLOAT:
            raise BadInput(f"{operator.name}: {name} is not float32", "")
    dtype: Dtype | None = "int8" if integers else _DTYPES.get(inputs["x"].dtype)
    shapes = {name: _sizes(value) for name, value in inputs.items()}
    if dtype is None or len(shapes["x"]) != 4:
        raise BadInput(f"{operator.name}: its input is no feature map of floats", "")
    _, channels, height, width = shapes["x"]
    preferred = FORMATS[dtype][0]
    scales: dict[str, float] = {}
    if integers:
        named = (f"{name}_scale" for name in (*maps, "y"))
        scales = dict(zip(named, integers.scales, strict=True))
    return Gate(
        operator,
        channels,
        height,
        width,
        **weight_sizes(shapes),
        dtype=dtype,
        layout=preferred.layout,
        stored=round_up(channels, preferred.multiple),
        x_scale=scales.get("x_scale", 1.0),
        r_scale=scales.get("r_scale", 1.0),
        y_scale=scales.get("y_scale", 1.0),
    )


def _tidy(model: ir.Model) -> None:
    """Remove what only lowered gates needed: DQ nodes, bodies."""
    common.RemoveUnusedNodesPass()(model)
    everywhere = itertools.chain(model.graph.all_nodes(), *model.functions.values())
    called = {node.op_identifier() for node in everywhere}
    for identifier, function in list(model.functions.items()):
        if operator_of_function(function) and identifier not in called:
            del model.functions[identifier]
