"""Proof that an artefact computes what PyTorch computes, and measures how well it classifies."""

from __future__ import annotations

from cbam_deploy.validation.accuracy import evaluate
from cbam_deploy.validation.parity import validate

__all__ = ["evaluate", "validate"]
