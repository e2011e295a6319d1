"""ThreadSanitizer over the kernels: no data race, and without any one barrier there is one."""

from __future__ import annotations

import itertools
import re
import shutil

import numpy as np
import pytest
from gate_cases import V, Variant, example_plan, kernels_of, random_maps, random_weights
from host_device import KERNELS, build

from cbam_deploy.gates.description import GateSpec
from cbam_deploy.gates.operators import operator_for

THREAD_SANITIZER = ("-O0", "-fsanitize=thread")

FUSED_NHWC = V("float16", "nhwc", 4, 32, 16, 3, True, 2)  # two warps along rows, two across
FUSED_NCHW = V("float32", "nchw", 4, 16, 2, 7, False, 2)
FUSED_CHW32 = V("int8", "chw32", 16, 16, 2, 0, True, 2)
STAGED = V("float16", "nhwc", 4, 16, 16, 3, True, None)
STAGED_SE = V("float32", "nchw", 1, 16, 4, 0, False, None)
FIRST_LAYER = V("float32", "nchw", 4, 16, 4, 3, False, None, first_layer=True)


def of_order(arrangement: str, cluster: int | None, **fields: str) -> Variant:
    """A gate of another order than CBAM's, that also has another mixer or descriptor."""
    spec = GateSpec(arrangement=arrangement, **fields)
    taps = 3 if fields.get("mixer") == "conv" else 0
    tiling = (4, 16, 4)
    operator = operator_for(spec, residual=True)
    return Variant("float16", "nhwc", *tiling, operator, 3, cluster, channel_kernel_size=taps)


SPATIAL_FIRST, SPATIAL_FIRST_STAGED = (
    of_order("spatial-channel", cluster, join="gates") for cluster in (2, None)
)
LINEAR_STAGED = of_order("channel-spatial", None, mixer="linear")
LINEAR_THEN_CONV = of_order("channel-spatial", 2, mixer="linear", spatial="conv1x1")
SUM = of_order("sum", 2, mixer="conv", spatial="conv1x1")
PARALLEL = of_order("parallel", 2)
SPATIAL = of_order("spatial", 2, spatial="conv1x1")
ALONE = V("float16", "nhwc", 8, 16, 2, 3, True, 1)
SEVERAL = V("float16", "nhwc", 8, 16, 4, 3, True, 2, images=2)
CLEAN = (
    *(FUSED_NHWC, FUSED_NCHW, FUSED_CHW32, ALONE, SEVERAL, STAGED, STAGED_SE, FIRST_LAYER),
    *(SPATIAL_FIRST, SPATIAL_FIRST_STAGED, LINEAR_THEN_CONV, SUM, PARALLEL, SPATIAL),
    *(LINEAR_STAGED, of_order("sum", None, mixer="conv", spatial="conv1x1")),
)

ATTEMPTS = 8
"""To see what a missing barrier lets happen: whether it does is up to the threads' timing."""

BARRIER = re.compile(
    r"__syncthreads\(\);|await_previous_launch\(\);|await_peers<blocks>\(\);"
    r"|receive<blocks>\([^;]*;|await\(chunks[^;]*;"
)


def run(variant, host, tmp_path, omitted_barrier=-1):
    channels = 64 if variant.layout == "chw32" else 72
    launch_plan = example_plan(variant, channels=channels, height=4, width=8)
    rng = np.random.default_rng(0)
    weights = random_weights(launch_plan.gate, rng)
    # One more than are taken at a time, which is copied to where another one is kept.
    images = (variant.images or 0) + 1
    x, r = (random_maps(launch_plan.gate, images, "normal", rng) for _ in range(2))
    maps = x, r if launch_plan.gate.operator.residual else None
    host.run(launch_plan, weights, *maps, tmp_path, omitted_barrier=omitted_barrier)


def run_often(variants, host, tmp_path, omitted_barrier):
    for variant in ATTEMPTS * variants:
        run(variant, host, tmp_path, omitted_barrier)


def barriers() -> list[str]:
    """The file of every barrier in the kernels; its place in the list is the barrier's number."""
    return [
        path.name
        for path in sorted(KERNELS.glob("*.cuh"))
        if path.name != "device.cuh"
        for _ in BARRIER.findall(path.read_text())
    ]


def numbered(folder):
    """A copy of the kernels whose barriers can be left out by their numbers when they run."""
    sources = folder / "kernels"
    shutil.copytree(KERNELS, sources)
    numbers = itertools.count()
    for path in sorted(sources.glob("*.cuh")):
        if path.name != "device.cuh":
            text = BARRIER.sub(
                lambda barrier: (
                    f"{{ if (cuda_on_threads::omitted_barrier != {next(numbers)}) {barrier[0]} }}"
                ),
                path.read_text(),
            )
            path.write_text(text)
    return sources


@pytest.fixture(scope="session")
def host(built, tmp_path_factory):
    sources = numbered(tmp_path_factory.mktemp("numbered"))
    kernels = set().union(*map(kernels_of, CLEAN))
    return build(built, kernels, *THREAD_SANITIZER, sources=sources)


@pytest.mark.parametrize("variant", CLEAN, ids=str)
def test_no_data_race(variant, host, tmp_path):
    run(variant, host, tmp_path)


@pytest.mark.parametrize(("number", "file"), list(enumerate(barriers())))
def test_a_removed_barrier_is_caught(number, file, host, tmp_path):
    staged = (STAGED, SPATIAL_FIRST_STAGED, LINEAR_STAGED, FIRST_LAYER)
    variants = staged if file == "staged.cuh" else (FUSED_NHWC, SUM, FUSED_CHW32)
    with pytest.raises(RuntimeError, match=r"data race|before it runs"):
        run_often(variants, host, tmp_path, omitted_barrier=number)
