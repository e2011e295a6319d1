"""Pictures in, batches out: image folders, built-in sets, what networks are fed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from cbam_deploy.data.source import Batch, ImageSource
    from cbam_deploy.data.source_names import open_source

__all__ = ["Batch", "ImageSource", "open_source"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__, submod_attrs={"source": ["Batch", "ImageSource"], "source_names": ["open_source"]}
)
