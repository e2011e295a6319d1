"""ThreadSanitizer over the kernels: no data race, and without any one barrier there is one."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
from gate_cases import Variant, example_plan, kernels_of, random_maps, random_weights
from host_device import KERNELS, build

THREAD_SANITIZER = ("-O0", "-fsanitize=thread")

FUSED_NHWC = Variant("float16", "nhwc", 4, 32, 16, 3, True, 2)  # two warps along rows, two across
FUSED_NCHW = Variant("float32", "nchw", 4, 16, 2, 7, False, 2)
FUSED_CHW32 = Variant("int8", "chw32", 16, 16, 2, 0, True, 2)
STAGED = Variant("float16", "nhwc", 4, 16, 16, 3, True, None)
STAGED_SE = Variant("float32", "nchw", 1, 16, 4, 0, False, None)
IN_PLACE = Variant("float32", "nhwc", 4, 16, 4, 3, False, None, in_place=True)
CLEAN = (FUSED_NHWC, FUSED_NCHW, FUSED_CHW32, STAGED, STAGED_SE, IN_PLACE)

BARRIER = re.compile(
    r"__syncthreads\(\);|(?:if constexpr \(blocks > 1\) )?cluster_sync<blocks>\(\);"
)


def run(variant, host, tmp_path):
    channels = 64 if variant.layout == "chw32" else 72
    launch_plan = example_plan(variant, channels=channels, height=4, width=8)
    rng = np.random.default_rng(0)
    weights = random_weights(launch_plan.gate, rng)
    x, r = (random_maps(launch_plan.gate, 1, "normal", rng) for _ in range(2))
    host.run(launch_plan, weights, x, r if launch_plan.gate.residual else None, tmp_path)


def barriers() -> list[tuple[str, int]]:
    """File and number of every barrier in the kernels."""
    found = []
    for path in sorted(KERNELS.glob("*.cuh")):
        if path.name != "device.cuh":
            found += [(path.name, i) for i in range(len(BARRIER.findall(path.read_text())))]
    return found


def without(barrier: tuple[str, int], folder):
    """A copy of the kernels that lacks one barrier."""
    sources = folder / "kernels"
    shutil.copytree(KERNELS, sources)
    name, number = barrier
    text = (sources / name).read_text()
    match = list(BARRIER.finditer(text))[number]
    (sources / name).write_text(text[: match.start()] + ";" + text[match.end() :])
    return sources


@pytest.fixture(scope="session")
def host(built):
    return build(built, set().union(*map(kernels_of, CLEAN)), *THREAD_SANITIZER)


@pytest.mark.parametrize("variant", CLEAN, ids=str)
def test_no_data_race(variant, host, tmp_path):
    run(variant, host, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("barrier", barriers(), ids=lambda b: f"{b[0]}-{b[1]}")
def test_a_removed_barrier_is_caught(barrier, built, tmp_path):
    variant = STAGED if barrier[0] == "staged.cuh" else FUSED_NHWC
    sources = without(barrier, tmp_path)
    host = build(built, kernels_of(variant), *THREAD_SANITIZER, sources=sources)
    with pytest.raises(RuntimeError, match=r"data race|before the peer runs"):
        run(variant, host, tmp_path)
