"""PyTorch to ONNX, and ONNX to ONNX: export, fusion of gates, precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from cbam_deploy.exporters.gates.fusion import fuse
    from cbam_deploy.exporters.onnx_export import export_onnx

__all__ = ["export_onnx", "fuse"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__, submod_attrs={"onnx_export": ["export_onnx"], "gates.fusion": ["fuse"]}
)
