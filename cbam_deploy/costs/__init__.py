"""What a network costs: parameters and multiply-adds, of a module or of an ONNX graph."""

from __future__ import annotations

from cbam_deploy.costs.measure import complexity

__all__ = ["complexity"]
