"""Training by the paper's recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from cbam_deploy.training.run import train

__all__ = ["train"]

__getattr__, __dir__, _ = lazy_loader.attach(__name__, submod_attrs={"run": ["train"]})
