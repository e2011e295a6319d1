"""Pictures in, batches out: image folders, built-in sets, what networks are fed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from cbam_deploy.data.open_source import open_source
    from cbam_deploy.data.source import Batch, ImageSource

__all__ = ["Batch", "ImageSource", "open_source"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__, submod_attrs={"source": ["Batch", "ImageSource"], "open_source": ["open_source"]}
)
