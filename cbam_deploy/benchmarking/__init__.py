"""Throughput and latency, measured side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from cbam_deploy.benchmarking.benchmark import bench

__all__ = ["bench"]

__getattr__, __dir__, _ = lazy_loader.attach(__name__, submod_attrs={"benchmark": ["bench"]})
