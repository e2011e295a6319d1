"""PyTorch to ONNX, and ONNX to ONNX: export, fusion of gates, files.

The names below are imported on first use: `fuse` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cbam_deploy.exporters.fusion import fuse
    from cbam_deploy.exporters.onnx_export import export_onnx

__all__ = ["export_onnx", "fuse"]

_MODULES = {"export_onnx": "onnx_export", "fuse": "fusion"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
