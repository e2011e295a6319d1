"""A data set and a network small enough to train in no time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cbam_deploy.training import train
from cbam_deploy.training.result import TrainResult

NETWORK = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2),
    )
"""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Reddish and bluish noise of 8 x 8 pixels: 24 pictures to learn from, 10 to be tested on."""
    chance = np.random.default_rng(0)
    root = tmp_path / "pictures"
    for part, count in (("train", 12), ("val", 5)):
        for label, name in enumerate(("blue", "red")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = chance.integers(0, 200, (8, 8, 3))
                pixels[..., 2 - 2 * label] += 55
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.fixture
def network(tmp_path: Path) -> str:
    """MODEL: a factory of a network of 200 parameters, with BatchNorm and dropout."""
    (tmp_path / "network.py").write_text(NETWORK)
    return f"{tmp_path}/network.py:build"


@pytest.fixture
def quick(tmp_path: Path, pictures: Path, network: str) -> Callable[..., TrainResult]:
    """`train` on those, into the folder named first; options override."""

    def run(folder: str, **options: Any) -> TrainResult:
        standard = {
            "model": network,
            "data": str(pictures),
            "output": tmp_path / folder,
            "image_size": 8,
            "epochs": 4,
            "batch_size": 8,
            "lr_step": 2,
            "device": "cpu",
        }
        return train(**{**standard, **options})

    return run
