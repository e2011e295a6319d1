"""The few launch plans of a gate that TensorRT is to time, each with a number of its own.

A number says what a plan is, whatever else is offered beside it, so that timings which a cache
keeps stay those of the same kernels:

    80512    the fused kernel on clusters of 8 blocks of 512 threads
    82256    of 8 blocks of 256, which take 2 images at a time
    1        the staged kernels
"""

from __future__ import annotations

from dataclasses import replace

from cbam_deploy.plugins.gate import Gate
from cbam_deploy.plugins.geometry import DeviceLimits, ranked_plans
from cbam_deploy.plugins.launches import LaunchPlan

STAGED = 1
MOST_FUSED = 3  # each costs the builder's time, and its kernel's size in the file


def tactics(gate: Gate, limits: DeviceLimits, batch: int = 8) -> dict[int, LaunchPlan]:
    """The plans worth timing, by number, in the order of their predicted durations.

    Among them are the staged plan for `batch`, which needs no clusters, and the fused one for a
    single image.

    Args:
        gate: what is computed.
        limits: of the device.
        batch: that they are to be fast for.

    Raises:
        BadInput: there are none.
    """
    # The library asks the driver whether a cluster has room, and leaves out what has none.
    limits = replace(limits, large_clusters=limits.largest_cluster > 1)
    ranked = ranked_plans(gate, limits, batch=batch)
    alone = ranked_plans(gate, limits, batch=1)
    staged = [one for one in ranked if not _is_fused(one)]
    fused = [one for one in ranked if _is_fused(one)]
    for_one = [one for one in alone if _is_fused(one)]
    wanted = [*dict.fromkeys([*fused[:1], *for_one[:1], *fused])][:MOST_FUSED] + staged[:1]
    return {_number(one): one for one in ranked if one in wanted}


def _is_fused(one: LaunchPlan) -> bool:
    return len(one.launches) == 1


def _number(one: LaunchPlan) -> int:
    first = one.launches[0]
    several = 1000 * first.images if first.images > 1 else 0
    return 10_000 * first.cluster + several + first.threads if _is_fused(one) else STAGED
