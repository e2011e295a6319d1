"""Part: the plugin library on this GPU, driven by a host that plays TensorRT's part.

The host makes the builder's and the executor's calls in their order (``tensorrt_host``): several
contexts in threads, batches that change, memory of exactly the sizes that the plugin asks for.
Every format and tactic is run; results are compared with float64. The first gate runs from PTX too.
"""

from __future__ import annotations

import platform
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_check.cases import draw_weights
from benchmarks.gpu_check.correctness import limits
from benchmarks.gpu_check.job import Failed, Job, Skipped
from benchmarks.gpu_check.plugin_host import COMPILE, SOURCE, Node
from benchmarks.gpu_check.storage import decode, encode, from_storage, to_storage
from cbam_deploy.errors import MissingCapability
from cbam_deploy.gates.description import CBAM, SE, GateSpec
from cbam_deploy.gates.operators import GateOperator, in_lower_case, operator_for
from cbam_deploy.gates.reference import Bounded, Weights, apply_gate, disagreement
from cbam_deploy.plugins.gate import Gate, round_up
from cbam_deploy.plugins.geometry import DeviceLimits
from cbam_deploy.plugins.images import TENSORRT, KernelImages, ptx_version
from cbam_deploy.plugins.launch_program import LaunchProgram, MapFormat, Tactic, Target
from cbam_deploy.plugins.layouts import FORMATS, Dtype, Format
from cbam_deploy.plugins.native_library import find_compiler, plugin_library
from cbam_deploy.plugins.tactics import tactics

IMAGES = 4
CONTEXTS = ("2@0,1@2,3@1", "1@3,1@0", "4@0")
"""Batches that each context runs, in a thread of its own: so many images, from which on."""

_SCALES = {"x_scale": 0.05, "r_scale": 0.04, "y_scale": 0.03}


@dataclass(frozen=True)
class LoweredGate:
    """A gate to be lowered.

    Attributes:
        operator: what is computed.
        sizes: channels, height, width.
        hidden: units of its hidden layer, if it has one.
        dtype: of its maps.
    """

    operator: GateOperator
    sizes: tuple[int, int, int]
    hidden: int
    dtype: Dtype

    def __str__(self) -> str:
        return f"{self.operator.name} on {'x'.join(map(str, self.sizes))} {self.dtype}"

    def gate(self, form: Format) -> Gate:
        """It with its maps in one of TensorRT's formats."""
        has = self.operator.weights
        gate = Gate(
            self.operator,
            *self.sizes,
            hidden=self.hidden if "W0" in has else 0,
            kernel_size=7 if "WS" in has else 0,
            channel_kernel_size=3 if "WC" in has else 0,
            dtype=self.dtype,
            layout=form.layout,
            stored=round_up(self.sizes[0], form.multiple),
        )
        return replace(gate, **_SCALES) if self.dtype == "int8" else gate

    @property
    def formats(self) -> tuple[Format, ...]:
        """Of the maps."""
        return FORMATS[self.dtype]


_CBAM_ADD_RELU = operator_for(CBAM, residual=True, activation="relu")
GATES = (
    LoweredGate(_CBAM_ADD_RELU, (20, 5, 5), 2, "float16"),
    LoweredGate(_CBAM_ADD_RELU, (256, 14, 14), 16, "float16"),
    LoweredGate(_CBAM_ADD_RELU, (64, 56, 56), 4, "int8"),
    LoweredGate(operator_for(SE), (512, 7, 7), 32, "float32"),
    LoweredGate(operator_for(GateSpec(arrangement="spatial-channel")), (96, 14, 10), 6, "bfloat16"),
    LoweredGate(operator_for(SE, residual=True, activation="relu"), (40, 9, 9), 5, "int8"),
)


@dataclass(frozen=True)
class Files:
    """A folder for what is written, which has the host in it, and the plugin library."""

    folder: Path
    library: Path

    @property
    def host(self) -> Path:
        """The program that plays TensorRT's part."""
        return self.folder / "host"


@dataclass(frozen=True)
class Drawn:
    """Weights, maps [IMAGES, C, H, W] as `storage.encode` has them, and what is expected."""

    weights: Weights
    maps: dict[str, NDArray[np.generic]]
    expected: Bounded


def run(job: Job) -> None:
    """Lower each gate, and run it in every format and tactic."""
    device = limits(job.dry)
    if job.dry:
        for lowered in job.each(GATES):
            for form in lowered.formats:
                for number in tactics(lowered.gate(form), device):
                    job.row(case=f"{lowered} {form.name}", plan=str(number))
        return
    try:
        compiler, library = find_compiler(platform.machine()), plugin_library()
    except MissingCapability as missing:
        raise Skipped(missing.message) from missing
    wrong = tried = 0
    with tempfile.TemporaryDirectory() as name:
        files = Files(Path(name), library)
        command = [*compiler, *COMPILE, "-o", str(files.host), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True)
        for lowered in job.in_time(job.each(GATES)):
            drawn, node = draw(lowered), lower(lowered, device)
            variants = {"": node}
            if lowered == GATES[0]:
                variants[" from PTX"] = without_machine_code(node)
            for variant, one in variants.items():
                for offered in one.program.targets[0].formats:
                    for tactic, problem in _results(lowered, one, offered, drawn, files).items():
                        job.row(
                            case=f"{lowered} {offered.layout}{variant}",
                            tactic=tactic,
                            agrees=not problem,
                            problem=problem,
                        )
                        tried, wrong = tried + 1, wrong + bool(problem)
    if wrong:
        raise Failed(f"{wrong} of {tried} engines are wrong")


def lower(lowered: LoweredGate, device: DeviceLimits) -> Node:
    """The gate's launch program for a device, with all images."""
    images = KernelImages(ptx_version(TENSORRT))
    forms = []
    for form in lowered.formats:
        plans = tactics(lowered.gate(form), device)
        forms.append(
            MapFormat(lowered.dtype, form.name, tuple(Tactic.of(*one) for one in plans.items()))
        )
        for plan in plans.values():
            for launch in plan.launches:
                images.want(launch.kernel, device.capability)
    images.make()
    of_node, carried = images.of_node(list(images.wanted))
    program = LaunchProgram(
        gate=str(lowered),
        inputs=in_lower_case(lowered.operator.inputs),
        maps=in_lower_case(lowered.operator.maps),
        sizes=lowered.sizes,
        images=of_node,
        targets=(Target(device.capability, tuple(forms)),),
    )
    return Node(program, carried)


def without_machine_code(node: Node) -> Node:
    """The same with its PTX alone, which the driver has to translate."""
    ptx = tuple(one for one in node.program.images if one.architecture.startswith("compute_"))
    return Node(replace(node.program, images=ptx), node.images)


def draw(lowered: LoweredGate) -> Drawn:
    """Weights and maps, and what float64 makes of them."""
    gate = lowered.gate(lowered.formats[0])
    rng = np.random.default_rng(lowered.sizes)
    weights = draw_weights(gate, rng)
    maps = {}
    for name in in_lower_case(lowered.operator.maps):
        values = rng.standard_normal((IMAGES, *lowered.sizes))
        if lowered.dtype == "int8":
            values = np.clip(np.rint(values * 40), -128, 127)
        maps[name] = encode(values, lowered.dtype)
    real = {name: decode(one, lowered.dtype) for name, one in maps.items()}
    return Drawn(weights, maps, apply_gate(gate, weights, real["x"], real.get("r")))


def _results(
    lowered: LoweredGate, node: Node, form: MapFormat, drawn: Drawn, files: Files
) -> dict[int, str]:
    """What is wrong with the engine of each tactic of a format; an empty text where nothing is."""
    folder = files.folder
    gate = lowered.gate(next(one for one in lowered.formats if one.name == form.layout))
    inputs = {name: to_storage(gate, one) for name, one in drawn.maps.items()}
    inputs |= {name: one for name, one in vars(drawn.weights).items() if one is not None}
    lines = [
        f"library {files.library}",
        *node.field_lines(folder),
        *node.input_lines(folder, IMAGES, inputs),
        f"build {form.dtype} {form.layout} 1 1 {IMAGES}",
    ]
    numbers = [one.number for one in form.tactics]
    lines += [f"run {number} {folder}/y.{number} {' '.join(CONTEXTS)}" for number in numbers]
    done = subprocess.run(
        [files.host],
        input="\n".join(lines),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    said = done.stdout.splitlines()
    found = {}
    for number in numbers:
        if f"ran {number}" in said:
            found[number] = next(_problems(gate, drawn, folder / f"y.{number}"), "")
        else:
            found[number] = " / ".join(said[-3:])
    return found


def _problems(gate: Gate, drawn: Drawn, prefix: Path) -> Iterator[str]:
    """Where a batch of any context is not what is expected."""
    for context, batches in enumerate(CONTEXTS):
        for number, batch in enumerate(batches.split(",")):
            size, first = map(int, batch.split("@"))
            stored = np.fromfile(f"{prefix}.{context}.{number}", drawn.maps["x"].dtype)
            part = slice(first, first + size)
            expected = Bounded(drawn.expected.value[part], drawn.expected.error[part])
            try:
                y = decode(from_storage(gate, stored, size), gate.dtype)
            except ValueError as error:
                yield str(error)
            else:
                problem = disagreement(gate, y, expected)
                if problem is not None:
                    yield f"context {context}, batch {number}: {problem}"
