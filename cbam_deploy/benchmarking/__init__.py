"""Throughput and latency, measured side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cbam_deploy.benchmarking.benchmark import bench

__all__ = ["bench"]


def __getattr__(name: str) -> Any:
    if name != "bench":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cbam_deploy.benchmarking.benchmark import bench

    return bench
