"""Tests of this folder need an NVIDIA GPU, and are skipped, saying so, where there is none.

On a machine with one: ``CUDA_VISIBLE_DEVICES=0 python -m pytest tests/gpu``; `make gpu-check` runs
them too. Elsewhere the whole suite hides GPUs, so that it is the same everywhere.
"""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items):
    import torch

    missing = "" if torch.cuda.is_available() else "needs an NVIDIA GPU, in CUDA_VISIBLE_DEVICES"
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if missing:
                item.add_marker(pytest.mark.skip(reason=missing))
