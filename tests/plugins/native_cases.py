"""Lowered gates of small sizes for the plugin library's tests, with inputs and what is expected."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from gate_cases import random_maps, random_weights
from host_device import DTYPES, LIMITS, from_storage, to_storage
from numpy.typing import NDArray

from benchmarks.gpu_check.plugin_host import Node
from cbam_deploy.gates.operators import GATE_OPERATORS, GateOperator, in_lower_case
from cbam_deploy.gates.reference import Bounded, Weights, apply_gate
from cbam_deploy.plugins.entries import Kernel
from cbam_deploy.plugins.gate import Gate, round_up
from cbam_deploy.plugins.geometry import fused_candidates, plan
from cbam_deploy.plugins.launch_program import (
    Image,
    LaunchProgram,
    MapFormat,
    Tactic,
    Target,
)
from cbam_deploy.plugins.launches import LaunchPlan
from cbam_deploy.plugins.layouts import FORMATS, Dtype

CAPABILITY = LIMITS.capability
FUSED, STAGED = 7, 3  # numbers of tactics


@dataclass(frozen=True)
class Case:
    """A gate as a node of the plugin, on maps that are small enough for threads of a host.

    Attributes:
        operator, channels, height, width, dtype: of the gate; int8 has scales that are no powers
            of two.
        formats: names of the maps' formats, the first preferred.
        images: in the batch of the inputs.
    """

    operator: GateOperator
    channels: int
    height: int
    width: int
    dtype: Dtype
    formats: tuple[str, ...]
    images: int = 4

    def __str__(self) -> str:
        return f"{self.operator.name}-{self.dtype}"

    def gate(self, format_: str) -> Gate:
        """The gate with its maps in a format of TensorRT's."""
        form = next(one for one in FORMATS[self.dtype] if one.name == format_)
        has, quantized = self.operator.weights, self.dtype == "int8"
        return Gate(
            self.operator,
            self.channels,
            self.height,
            self.width,
            hidden=3 if "W0" in has else 0,
            kernel_size=3 if "WS" in has else 0,
            channel_kernel_size=3 if "WC" in has else 0,
            dtype=self.dtype,
            layout=form.layout,
            stored=round_up(self.channels, form.multiple),
            x_scale=0.03 if quantized else 1.0,
            r_scale=0.02 if quantized else 1.0,
            y_scale=0.025 if quantized else 1.0,
        )

    @cached_property
    def plans(self) -> dict[str, dict[int, LaunchPlan]]:
        """By format and number: the fused kernel on clusters of two blocks, the staged kernels."""
        found = {}
        for format_ in self.formats:
            gate = self.gate(format_)
            fused = next(one for one in fused_candidates(gate, LIMITS) if _is_pair(one))
            found[format_] = {FUSED: fused, STAGED: plan(gate, LIMITS, strategy="staged")}
        return found

    @property
    def kernels(self) -> set[tuple[Kernel, int, int]]:
        """Those of all plans, with the sizes of their clusters and blocks."""
        return {
            (launch.kernel, launch.cluster, launch.threads)
            for of_format in self.plans.values()
            for one in of_format.values()
            for launch in one.launches
        }

    @cached_property
    def node(self) -> Node:
        """What the lowered node carries."""
        content, images = b"", []
        for name in sorted({kernel.name for kernel, _, _ in self.kernels}):
            image = stand_in_image(name, f"sm_{CAPABILITY}")
            key = hashlib.sha256(image).hexdigest()[:16]
            images.append(Image(name, f"sm_{CAPABILITY}", key, len(content), len(image)))
            content += image
        formats = tuple(
            MapFormat(self.dtype, name, tuple(Tactic.of(*one) for one in of_format.items()))
            for name, of_format in self.plans.items()
        )
        program = LaunchProgram(
            gate=f"{self.gate(self.formats[0])} after a test",
            inputs=in_lower_case(self.operator.inputs),
            maps=in_lower_case(self.operator.maps),
            sizes=(self.channels, self.height, self.width),
            images=tuple(images),
            targets=(Target(CAPABILITY, formats),),
        )
        return Node(program, content)

    @cached_property
    def inputs(self) -> dict[str, NDArray]:
        """Maps [images, C, H, W] and weights, by name."""
        rng = np.random.default_rng(len(str(self)))
        gate = self.gate(self.formats[0])
        maps = {
            name: random_maps(gate, self.images, "normal", rng) for name in self.node.program.maps
        }
        weights = {
            name: value
            for name, value in vars(random_weights(gate, rng)).items()
            if name not in maps
        }
        return maps | {name: value for name, value in weights.items() if value is not None}

    @cached_property
    def expected(self) -> Bounded:
        """In float64."""
        weights = Weights(**{k: v for k, v in self.inputs.items() if k not in ("x", "r")})
        gate = self.gate(self.formats[0])
        return apply_gate(gate, weights, self.inputs["x"], self.inputs.get("r"))

    def input_lines(self, folder: Path, format_: str) -> list[str]:
        """Commands that hand the inputs to the host."""
        gate, maps = self.gate(format_), self.node.program.maps
        stored = {
            name: to_storage(gate, value) if name in maps else value
            for name, value in self.inputs.items()
        }
        place = folder / f"{self}.{format_}"
        place.mkdir(exist_ok=True)
        return self.node.input_lines(place, self.images, stored)

    def result(self, format_: str, file: Path) -> NDArray:
        """The map [batch, C, H, W] in a file that the host wrote."""
        gate = self.gate(format_)
        stored = np.fromfile(file, DTYPES[self.dtype])
        return from_storage(gate, stored, stored.size // (gate.stored * gate.positions))


def _is_pair(one: LaunchPlan) -> bool:
    launch = one.launches[0]
    return (launch.cluster, launch.threads) == (2, LIMITS.small_block)


def stand_in_image(entry: str, architecture: str) -> bytes:
    """What ``host/driver.cpp`` takes for machine code, or for PTX."""
    if architecture.startswith("sm_"):
        return f"\x7fELF {architecture} {entry}".encode()
    return f"// {architecture} {entry}\0".encode()


CASES = (
    Case(GATE_OPERATORS["CbamGateAddRelu"], 20, 5, 6, "float16", ("HWC8", "LINEAR")),
    Case(GATE_OPERATORS["SeGateAddRelu"], 40, 4, 4, "int8", ("CHW32", "HWC16")),
    Case(GATE_OPERATORS["CbamGate"], 12, 4, 6, "float32", ("LINEAR",)),
)
