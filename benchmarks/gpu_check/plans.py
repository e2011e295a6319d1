"""Plans in a few words, and what the cost model says of them."""

from __future__ import annotations

from cbam_deploy.plugins.cost_model import Chip, resident_blocks, seconds
from cbam_deploy.plugins.launches import LaunchPlan


def described(plan: LaunchPlan) -> str:
    """Such as ``fused 8 x 512`` (blocks per image, threads) or ``staged 64, 49, 49 x 256``."""
    kind = "fused" if len(plan.launches) == 1 else "staged"
    blocks = ", ".join(str(launch.blocks_per_image) for launch in plan.launches)
    images = plan.launches[0].images
    several = f", {images} images" if images > 1 else ""
    return f"{kind} {blocks} x {plan.launches[0].threads}{several}"


def predicted(plan: LaunchPlan, batch: int, on: Chip) -> dict[str, float]:
    """The cost model's duration, and the clusters that it takes to run at the same time."""
    launch = plan.launches[0]
    figures: dict[str, float] = {"predicted_us": seconds(plan, batch, on) * 1e6}
    if launch.cluster > 1:
        figures["predicted_clusters"] = resident_blocks(launch, on) // launch.cluster
    return figures
