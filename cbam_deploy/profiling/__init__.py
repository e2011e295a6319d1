"""Where the time goes: each layer of an artefact as its runtime runs it, and what INT8 changed."""

from __future__ import annotations

from cbam_deploy.profiling.profile import profile

__all__ = ["profile"]
