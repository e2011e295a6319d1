"""Kernel launches that compute a gate, described without choosing anything and without a driver.

A `Launch` carries a kernel and its parameters in order, so the PyTorch op, the TensorRT plugin and
the tests on the host carry out the same `LaunchPlan`. `fused_launch` and `staged_launches` make
them, `geometry.plan` chooses one. Kernels, and the names used here, are those of ``kernels/``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cbam_deploy.plugins.entries import (
    Kernel,
    before_the_last,
    element_type,
    entry_point,
    gate_type,
)
from cbam_deploy.plugins.gate import Gate
from cbam_deploy.plugins.stages import Stage, buffers
from cbam_deploy.plugins.tiling import Tiling

BATCH = "batch"
"""Stands for the number of images among the `arguments` of a launch."""


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Attributes:
        stage: what it computes.
        kernel: its entry point.
        tiling: of its slices; None where it reads no map.
        blocks_per_image: the grid is this times the batch, but for what `persistent` says.
        cluster: blocks of a cluster, fixed in the kernel.
        threads: of a block.
        shared_bytes: dynamic shared memory of a block.
        inputs, outputs: names of buffers: x, r, y, the gate's weights, or the plan's workspace.
        integers: 32-bit parameters by name.
        persistent: whether there are at most as many blocks as the device runs at the same time,
            which then take several images; the kernel is told the batch.
        programmatic: whether it may start before the launch in front of it has ended, whose results
            its kernel waits for: CUDA's programmatic dependent launch.
        images: the most that a cluster takes at a time, where it takes several.
    """

    stage: Stage
    kernel: Kernel
    tiling: Tiling | None
    blocks_per_image: int
    cluster: int
    threads: int
    shared_bytes: int
    inputs: tuple[str, ...]
    integers: tuple[tuple[str, int], ...]
    outputs: tuple[str, ...]
    persistent: bool = False
    programmatic: bool = False
    images: int = 1

    @property
    def arguments(self) -> tuple[str | int, ...]:
        """The kernel's parameters in order: names of buffers, integers, and `BATCH` for one."""
        integers = tuple(value for _, value in self.integers)
        return (*self.inputs, *integers, *([BATCH] if self.persistent else []), *self.outputs)

    def blocks(self, batch: int, running: int) -> int:
        """The grid for `batch` images on a device that runs `running` blocks at the same time."""
        blocks = self.blocks_per_image * batch
        return min(blocks, running) if self.persistent else blocks

    def integer(self, name: str) -> int:
        """The value of one of `integers`."""
        return dict(self.integers)[name]


@dataclass(frozen=True)
class LaunchPlan:
    """The launches that compute one gate, in order: one fused, or those of `stages.stages`.

    Attributes:
        gate: what is computed.
        launches: to be run one after the other on one stream.
        workspace: float32 elements per image of each intermediate buffer, by name.
    """

    gate: Gate
    launches: tuple[Launch, ...]
    workspace: tuple[tuple[str, int], ...] = ()

    @property
    def splits(self) -> int:
        """Parts in which staged launches pass on what comes of the channels; 0 without these."""
        return max(dict(launch.integers).get("splits", 0) for launch in self.launches)

    @property
    def first_layer(self) -> bool:
        """Whether the launch of the channels' statistics goes on to the first layer."""
        return any(
            launch.stage == "channel_statistics" and "w0" in launch.inputs
            for launch in self.launches
        )


def launch_of(
    gate: Gate,
    stage: Stage,
    function: str,
    tiling: Tiling,
    *,
    blocks: int,
    shared_bytes: int,
    integers: tuple[tuple[str, int], ...],
    cluster: int = 1,
    first_layer: bool = False,
    images: int = 1,
    persistent: bool = False,
) -> Launch:
    """The launch of a stage, with the entry point around a device function.

    Args:
        gate: what is computed.
        stage: what of it.
        function: C++ expression of the device function.
        tiling: of a block's slice; of a stage that reads no map, any with its threads.
        blocks: for one image.
        shared_bytes: as in `Launch`.
        integers: as in `Launch`.
        cluster: as in `Launch`.
        first_layer: as in `stages.buffers`.
        images: as in `Launch`.
        persistent: as in `Launch`.
    """
    inputs, outputs = buffers(gate.operator, stage, first_layer=first_layer)
    reads_maps = "x" in inputs
    last = stage in ("fused", "apply")
    kind = (gate.operator if last else before_the_last(gate.operator)).function
    return Launch(
        stage=stage,
        kernel=entry_point(
            kind if stage == "fused" else f"{kind}_{stage}",
            function,
            # Without maps the scales are read as of int8, whatever the type.
            element_type(gate) if reads_maps else "signed char",
            cluster=cluster,
            threads=tiling.threads,
            resident=1 if images > 1 else 512 // tiling.threads,
            inputs=inputs,
            integers=[*(name for name, _ in integers), *([BATCH] if persistent else [])],
            outputs=outputs,
        ),
        tiling=tiling if reads_maps else None,
        blocks_per_image=blocks,
        cluster=cluster,
        threads=tiling.threads,
        shared_bytes=shared_bytes,
        inputs=inputs,
        integers=integers,
        outputs=outputs,
        persistent=persistent,
        images=images,
    )


def kernel_type(gate: Gate) -> str:
    """C++ type that says to the kernels what a gate is made of."""
    return gate_type(gate.operator, gate.kernel_size, gate.channel_kernel_size)


def kernel_type_before_the_last(gate: Gate) -> str:
    """The same for launches before the last one."""
    return gate_type(before_the_last(gate.operator), gate.kernel_size, gate.channel_kernel_size)


def shape_parameters(gate: Gate) -> tuple[tuple[str, int], ...]:
    """Sizes of the map."""
    return tuple((name, getattr(gate, name)) for name in ("channels", "stored", "height", "width"))


def hidden_parameters(gate: Gate) -> tuple[tuple[str, int], ...]:
    """Hidden units, where there are any."""
    return (("hidden", gate.hidden),) if gate.hidden else ()


def scale_parameters(gate: Gate) -> tuple[tuple[str, int], ...]:
    """The scales' bits: a kernel is passed nothing but pointers and integers."""
    return tuple(
        (name, struct.unpack("<i", struct.pack("<f", getattr(gate, name)))[0])
        for name in ("x_scale", "r_scale", "y_scale")
    )
