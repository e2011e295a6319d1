"""The CBAM paper's studies of the gate's variants, with what each costs when deployed."""

from __future__ import annotations

from cbam_deploy.studies.run import ablation

__all__ = ["ablation"]
