"""Precision chosen by measurement: as few operations as possible above the lowest precision."""

from __future__ import annotations

from cbam_deploy.precision_search.search import search_precision

__all__ = ["search_precision"]
