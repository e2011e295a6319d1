"""The kernels' own source, run on C++20 threads against the float64 reference.

Built with AddressSanitizer and UndefinedBehaviorSanitizer, every buffer and every block's shared
memory of exactly the planned size and filled with NaN: a read of what nobody wrote, an element not
written and a step outside all show. What this does not show: the GPU's own instructions behind
`device.cuh`, and speed.
"""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from gate_cases import (
    GENERATED,
    VALUES,
    VARIANTS,
    V,
    Variant,
    example_plan,
    kernels_of,
    plans,
    random_maps,
    random_weights,
)
from host_device import HostDevice, build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cbam_deploy.gates.description import CBAM
from cbam_deploy.gates.operators import operator_for
from cbam_deploy.gates.reference import apply_gate, disagreement
from cbam_deploy.plugins.gate import Gate
from cbam_deploy.plugins.geometry import KNOWN_DEVICES, plan

SANITIZED = ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="session")
def host(built) -> HostDevice:
    return build(built, set().union(*map(kernels_of, VARIANTS)), *SANITIZED)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@settings(max_examples=4, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_kernels_compute_the_gate(variant: Variant, data, host, tmp_path):
    check(data, variant, host, tmp_path)


@pytest.fixture(scope="session")
def host_of_generated(built) -> HostDevice:
    """Many kernels: without UndefinedBehaviorSanitizer, which doubles what building them takes."""
    return build(built, set().union(*map(kernels_of, GENERATED)), "-O0", "-fsanitize=address")


@pytest.mark.parametrize("variant", GENERATED, ids=str)
# The first example is the smallest, a map of one position.
@settings(max_examples=3, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_kernels_compute_what_the_language_says(
    variant: Variant, data, host_of_generated, tmp_path
):
    check(data, variant, host_of_generated, tmp_path)


def check(data, variant: Variant, host: HostDevice, folder) -> None:
    launch_plan = data.draw(plans(variant))
    gate = launch_plan.gate
    batch, clusters = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 2))
    kind = data.draw(st.sampled_from(VALUES))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    weights = random_weights(gate, rng)
    x = random_maps(gate, batch, kind, rng)
    r = random_maps(gate, batch, "normal", rng) if gate.operator.residual else None
    y = host.run(launch_plan, weights, x, r, folder, clusters=clusters)
    assert disagreement(gate, y, apply_gate(gate, weights, x, r)) is None


CBAM_ADD_RELU = operator_for(CBAM, residual=True, activation="relu")
FUSED = V("float16", "nhwc", 8, 16, 4, 7, True, 2)
STAGED = V("bfloat16", "nhwc", 4, 16, 8, 3, True, None)


@pytest.mark.parametrize("variant", [FUSED, STAGED], ids=str)
def test_same_input_gives_same_bits(variant, host, tmp_path):
    launch_plan = example_plan(variant, channels=24, height=5, width=5)
    rng = np.random.default_rng(1)
    weights = random_weights(launch_plan.gate, rng)
    x, r = (random_maps(launch_plan.gate, 2, "normal", rng) for _ in range(2))
    first, *others = (host.run(launch_plan, weights, x, r, tmp_path) for _ in range(4))
    assert all(other.tobytes() == first.tobytes() for other in others)


@pytest.mark.parametrize("variant", [FUSED, STAGED], ids=str)
def test_nan_reaches_every_element_it_should(variant, host, tmp_path):
    launch_plan = example_plan(variant, channels=24, height=5, width=5)
    gate = launch_plan.gate
    rng = np.random.default_rng(2)
    weights = random_weights(gate, rng)
    x, r = (random_maps(gate, 2, "normal", rng) for _ in range(2))
    x[0, 3, 2, 2] = np.nan
    y = host.run(launch_plan, weights, x, r, tmp_path).astype(np.float64)
    assert np.isnan(y[0]).all(), "one NaN reaches the whole image through the channel gate"
    assert not np.isnan(y[1]).any(), "and no other image"


@pytest.mark.parametrize(
    "variant", [one for one in GENERATED if one.operator.residual][::2], ids=str
)
def test_a_gate_may_be_added_to_its_own_input(variant, host_of_generated, tmp_path):
    """One address for both; where that is common, x is not read again as r."""
    channels = {"nchw": 9, "nhwc": 3 * variant.vector, "chw32": 64}[variant.layout]
    sizes = (
        {"channels": channels - 1, "stored": channels} if variant.padded else {"channels": channels}
    )
    launch_plan = example_plan(variant, **sizes, height=5, width=16)
    gate = launch_plan.gate
    rng = np.random.default_rng(4)
    weights, x = random_weights(gate, rng), random_maps(gate, 2, "normal", rng)
    y = host_of_generated.run(launch_plan, weights, x, x, tmp_path)
    assert disagreement(gate, y, apply_gate(gate, weights, x, x)) is None


def test_int8_rounds_to_nearest_even_and_saturates(host, tmp_path):
    variant = V("int8", "chw32", 16, 32, 8, 0, False, 4)
    launch_plan = example_plan(variant, channels=32, height=4, width=4)
    gate = launch_plan.gate
    weights = random_weights(gate, np.random.default_rng(0), scale=0.0)  # Mc is sigmoid(0) = 1/2
    x = np.arange(-256, 256).astype(np.int8).reshape(1, 32, 4, 4)
    y = host.run(launch_plan, weights, x, None, tmp_path)
    np.testing.assert_array_equal(y, np.rint(x / 2).astype(np.int8))
    # Scales folded by hand: y_scale 1/8 makes most of the range saturate.
    fine = replace(gate, y_scale=0.125)
    launch_plan = example_plan(variant, channels=32, height=4, width=4)
    launches = tuple(
        replace(launch, integers=tuple(_with_scale(launch.integers, fine)))
        for launch in launch_plan.launches
    )
    y = host.run(replace(launch_plan, gate=fine, launches=launches), weights, x, None, tmp_path)
    np.testing.assert_array_equal(y, np.clip(x.astype(int) * 4, -128, 127))


def test_int8_behind_relu_rounds_to_nearest_even_and_saturates(host, tmp_path):
    variant = V("int8", "chw32", 16, 16, 4, 7, True, 2, padded=True)
    launch_plan = example_plan(variant, channels=31, height=4, width=4)
    rng = np.random.default_rng(0)
    weights = random_weights(launch_plan.gate, rng, scale=0.0)  # Mc and Ms are 1/2
    x, r = rng.integers(-128, 128, (2, 1, 31, 4, 4)).astype(np.int8)
    y = host.run(launch_plan, weights, x, r, tmp_path)
    np.testing.assert_array_equal(y, np.clip(np.rint(x / 4 + r), 0, 127))


def _with_scale(integers, gate):
    bits = int(np.float32(gate.y_scale).view(np.int32))
    return [(name, bits if name == "y_scale" else value) for name, value in integers]


# Warps of 32, blocks of 256 and 512 threads, clusters up to 8: what a GPU would launch.
FULL_SIZE = {
    f"{dtype}-{layout}": plan(
        Gate(CBAM_ADD_RELU, *shape, hidden=8, kernel_size=7, dtype=dtype, layout=layout),
        KNOWN_DEVICES[90],
        batch=batch,
    )
    for shape, dtype, layout, batch in (
        ((128, 14, 14), "float16", "nhwc", 1),
        ((64, 14, 14), "int8", "chw32", 32),
        ((96, 7, 7), "float32", "nchw", 2),
    )
}


@pytest.fixture(scope="session")
def host_of_full_size(built) -> HostDevice:
    kernels = {launch.kernel for plan in FULL_SIZE.values() for launch in plan.launches}
    return build(built, kernels, "-O1", warp=32)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_planned_geometry_computes_the_gate_at_full_size(name, host_of_full_size, tmp_path):
    launch_plan = FULL_SIZE[name]
    gate = launch_plan.gate
    rng = np.random.default_rng(0)
    weights = random_weights(gate, rng)
    x, r = (random_maps(gate, 1, "normal", rng) for _ in range(2))
    y = host_of_full_size.run(launch_plan, weights, x, r, tmp_path)
    assert disagreement(gate, y, apply_gate(gate, weights, x, r)) is None


def test_host_rounds_bfloat16_like_ml_dtypes(host, tmp_path):
    variant = V("bfloat16", "nhwc", 8, 32, 2, 0, False, 2, padded=True)
    gate_plan = example_plan(variant, channels=7, stored=8, height=4, width=4)
    weights = random_weights(gate_plan.gate, np.random.default_rng(0), scale=0.0)
    x = np.random.default_rng(3).standard_normal((1, 7, 4, 4)).astype(ml_dtypes.bfloat16)
    y = host.run(gate_plan, weights, x, None, tmp_path)
    np.testing.assert_array_equal(y.astype(np.float32), x.astype(np.float32) / 2)
