"""The gates of a lowered network through the plugin library, one after the other.

The network is what `lower` writes, its launch programs as they are. Only the bytes of kernel images
are others: those that the stand-in driver takes. So blocks have the GPU's 256 or 512 threads in
warps of 32, shared memory is that of the named target, and of gates that share kernels only the
first carries them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
from host_device import DTYPES, from_storage, to_storage
from native_build import Programs
from native_cases import stand_in_image
from numpy.typing import NDArray
from onnx import numpy_helper

from benchmarks.gpu_check.plugin_host import Node
from cbam_deploy.gates.operators import GATE_OPERATORS, PLUGIN, GateOperator
from cbam_deploy.gates.reference import Bounded, Weights, apply_gate
from cbam_deploy.plugins.compile import compile_kernels
from cbam_deploy.plugins.entries import Kernel
from cbam_deploy.plugins.gate import Gate, round_up, weight_sizes
from cbam_deploy.plugins.launch_program import (
    Image,
    LaunchProgram,
    MapFormat,
    Tactic,
    read_program,
)
from cbam_deploy.plugins.layouts import FORMATS, Format

WARP = 32


@contextmanager
def recorded_kernels() -> Iterator[list[Kernel]]:
    """The kernels that are compiled within."""
    kernels: list[Kernel] = []

    def recording(wanted: Iterable[Kernel], architecture: str) -> object:
        kernels.extend(wanted := list(wanted))
        return compile_kernels(wanted, architecture)

    with patch("cbam_deploy.plugins.images.compile_kernels", recording):
        yield kernels


@dataclass(frozen=True)
class LoweredGate:
    """A node of a lowered network.

    Attributes:
        name: of the node.
        node: what it carries, with the stand-in's images.
        operator: what it computes.
        weights: float32, by name.
        scales: of x, r and y where they are int8.
    """

    name: str
    node: Node
    operator: GateOperator
    weights: dict[str, NDArray[np.float32]]
    scales: dict[str, float]

    @property
    def program(self) -> LaunchProgram:
        """Its launch program."""
        return self.node.program

    @property
    def formats(self) -> tuple[MapFormat, ...]:
        """Of its maps, for the one target."""
        (target,) = self.program.targets
        return target.formats

    def gate(self, form: MapFormat) -> Gate:
        """What it computes, with its maps in a format."""
        stored = _format(form)
        channels, height, width = self.program.sizes
        shapes = {name: array.shape for name, array in self.weights.items()}
        return Gate(
            self.operator,
            channels,
            height,
            width,
            **weight_sizes(shapes),
            dtype=form.dtype,
            layout=stored.layout,
            stored=round_up(channels, stored.multiple),
            **self.scales,
        )

    def maps(self, batch: int) -> dict[str, NDArray[np.generic]]:
        """Random maps [batch, C, H, W]; int8 over all of its range, floats of one size."""
        rng = np.random.default_rng(len(self.name))
        shape, dtype = (batch, *self.program.sizes), self.formats[0].dtype
        if dtype == "int8":
            return {
                name: rng.integers(-128, 128, shape).astype(np.int8) for name in self.program.maps
            }
        return {
            name: rng.standard_normal(shape).astype(DTYPES[dtype]) for name in self.program.maps
        }

    def expected(self, maps: dict[str, NDArray[np.generic]]) -> Bounded:
        """In float64."""
        gate = self.gate(self.formats[0])
        return apply_gate(gate, Weights(**self.weights), maps["x"], maps.get("r"))


@dataclass(frozen=True)
class Run:
    """A gate with one tactic of one format."""

    gate: LoweredGate
    form: MapFormat
    tactic: Tactic


def lowered_gates(lowered: Path, source: Path) -> list[LoweredGate]:
    """The gates of the file `lowered`, made from `source`, in the order of the graph."""
    after, before = onnx.load(lowered), onnx.load(source)
    constants = {one.name: numpy_helper.to_array(one) for one in before.graph.initializer}
    for node in before.graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    gates = {node.name: node for node in before.graph.node if node.op_type in GATE_OPERATORS}
    found = []
    for node in after.graph.node:
        if node.op_type != PLUGIN:
            continue
        attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        program = read_program(attributes["program"].decode())
        carried = numpy_helper.to_array(attributes["images"]).tobytes()
        of_source = gates[node.name]
        weights = {
            name: constants[value]
            for name, value in zip(program.inputs, of_source.input, strict=True)
            if name not in program.maps
        }
        scales = {}
        if program.targets[0].formats[0].dtype == "int8":
            scales = _scales(before, of_source, constants, program)
        made = with_stand_in_images(Node(program, carried))
        operator = GATE_OPERATORS[of_source.op_type]
        found.append(LoweredGate(node.name, made, operator, weights, scales))
    return found


def with_stand_in_images(node: Node) -> Node:
    """The node with images that the stand-in driver takes, carried where its own were."""
    content, made = b"", []
    for image in node.program.images:
        data = stand_in_image(image.entry, image.architecture)
        offset = None if image.offset is None else len(content)
        if offset is not None:
            content += data
        key = hashlib.sha256(data).hexdigest()[:16]
        made.append(Image(image.entry, image.architecture, key, offset, len(data)))
    return Node(replace(node.program, images=tuple(made)), content or b"\0")


def runs_of(gates: Iterable[LoweredGate]) -> list[Run]:
    """All that TensorRT may choose from."""
    return [
        Run(gate, form, tactic)
        for gate in gates
        for form in gate.formats
        for tactic in form.tactics
    ]


def driver_kernels(runs: Iterable[Run], kernels: Iterable[Kernel]) -> set[tuple[Kernel, int, int]]:
    """Of `kernels` those that are launched, with sizes of clusters and blocks."""
    by_name = {kernel.name: kernel for kernel in kernels}
    return {
        (by_name[launch.entry], launch.cluster, launch.threads)
        for run in runs
        for launch in run.tactic.launches
    }


def results(
    gates: Iterable[LoweredGate],
    runs: Iterable[Run],
    maps: dict[str, dict[str, NDArray[np.generic]]],
    programs: Programs,
    folder: Path,
) -> list[NDArray[np.generic]]:
    """What each run gives [batch, C, H, W], all in one process.

    Args:
        gates: of the network, in the order of the graph.
        runs: those of a format side by side.
        maps: inputs by name, by name of the gate.
        programs: host, library and driver.
        folder: for files.
    """
    runs, lines, last = list(runs), [], None
    for gate in gates:  # As TensorRT's parser comes to them: the first ones bring the kernels.
        lines += [*gate.node.field_lines(folder), "parse"]
    for number, run in enumerate(runs):
        gate, form = run.gate, run.form
        batch = len(maps[gate.name]["x"])
        if last != (gate.name, form.layout):
            last = gate.name, form.layout
            given = {n: to_storage(gate.gate(form), value) for n, value in maps[gate.name].items()}
            place = folder / f"{gate.name}.{form.layout}"
            place.mkdir()
            lines += gate.node.field_lines(folder)
            lines += gate.node.input_lines(place, batch, gate.weights | given)
            lines.append(f"build {form.dtype} {form.layout} 1 1 {batch}")
        lines.append(f"run {run.tactic.number} {folder}/{number} {batch}@0")
    said = programs.run(lines)
    assert not [line for line in said if line.startswith("refused")], said
    found = []
    for number, run in enumerate(runs):
        stored = np.fromfile(folder / f"{number}.0.0", DTYPES[run.form.dtype])
        batch = len(maps[run.gate.name]["x"])
        found.append(from_storage(run.gate.gate(run.form), stored, batch))
    return found


def _format(form: MapFormat) -> Format:
    return next(one for one in FORMATS[form.dtype] if one.name == form.layout)


def _scales(
    model: onnx.ModelProto,
    node: onnx.NodeProto,
    constants: dict[str, NDArray[np.generic]],
    program: LaunchProgram,
) -> dict[str, float]:
    """Scales of the DQ before a gate and of the Q behind it."""
    by_output = {output: one for one in model.graph.node for output in one.output}
    scales = {
        f"{name}_scale": float(constants[by_output[value].input[1]])
        for name, value in zip(program.maps, node.input, strict=False)
    }
    (behind,) = (one for one in model.graph.node if node.output[0] in one.input)
    assert behind.op_type == "QuantizeLinear"
    return {**scales, "y_scale": float(constants[behind.input[1]])}
