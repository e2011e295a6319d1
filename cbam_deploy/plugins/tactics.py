"""The few launch plans of a gate that TensorRT is to time, each with a number of its own.

A number says what a plan is, whatever else is offered beside it, so that timings which a cache
keeps stay those of the same kernels:

    80512    the fused kernel on clusters of 8 blocks of 512 threads
    1        the staged kernels
"""

from __future__ import annotations

from cbam_deploy.errors import BadInput
from cbam_deploy.plugins.gate import Gate
from cbam_deploy.plugins.geometry import DeviceLimits, fused_candidates, kept_part, plan
from cbam_deploy.plugins.launches import LaunchPlan

STAGED = 1
MOST_FUSED = 3  # each costs the builder's time, and its kernel's size in the file


def tactics(gate: Gate, limits: DeviceLimits, batch: int = 8) -> dict[int, LaunchPlan]:
    """The plans worth timing, by number, the one to prefer first.

    Args:
        gate: what is computed.
        limits: of the device.
        batch: that they are to be fast for.

    Raises:
        BadInput: there are none.
    """
    found: dict[int, LaunchPlan] = {}
    candidates = fused_candidates(gate, limits)
    if candidates:
        preferred = (plan(gate, limits, batch=one, strategy="fused") for one in (batch, 1))
        by_kept_part = sorted(candidates, key=kept_part, reverse=True)
        for one in (*preferred, *by_kept_part):
            if len(found) < MOST_FUSED:
                found.setdefault(_number(one), one)
    try:
        found[STAGED] = plan(gate, limits, batch=batch, strategy="staged")
    except BadInput:
        if not found:
            raise
    return found


def _number(fused: LaunchPlan) -> int:
    (launch,) = fused.launches
    return 10_000 * launch.cluster + launch.threads
