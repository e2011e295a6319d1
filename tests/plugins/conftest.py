from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def built(pytestconfig: pytest.Config) -> Path:
    """Where programs built from the kernels stay, so that only a change builds them again."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++, version 12 or later")
    assert pytestconfig.cache is not None
    return pytestconfig.cache.mkdir("host_kernels")
