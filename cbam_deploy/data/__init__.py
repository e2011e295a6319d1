"""Pictures in, batches out: image folders, built-in sets, one preprocessing.

The names below are imported on first use: `provenance` needs `data.preprocessing` alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cbam_deploy.data.opening import open_source
    from cbam_deploy.data.preprocessing import Preprocessing
    from cbam_deploy.data.source import Batch, ImageSource

__all__ = ["Batch", "ImageSource", "Preprocessing", "open_source"]

_MODULES = {
    "Batch": "source",
    "ImageSource": "source",
    "Preprocessing": "preprocessing",
    "open_source": "opening",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
