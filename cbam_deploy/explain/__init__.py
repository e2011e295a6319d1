"""Where a network looks: Grad-CAM of its modules, the spatial attention of its deployed files."""

from __future__ import annotations

from cbam_deploy.explain.explanation import gradcam

__all__ = ["gradcam"]
