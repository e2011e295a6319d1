"""Pictures of circles, squares and triangles on photographs, with their boxes; drawn by a seed.

The photographs are the two that scikit-learn brings. Training and held-out pictures have their
backgrounds from different parts of these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from network import CLASSES, SIZE
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images

MOST = 5  # Objects of a picture.
_FINER = 4  # Shapes are drawn so many times larger, so that their edges are smooth.


@dataclass(frozen=True)
class Picture:
    """A picture, uint8 [S, S, 3]; boxes [M, 4] as corners in pixels; classes int64 [M]."""

    pixels: NDArray[np.uint8]
    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]


def draw(count: int, *, held_out: bool, seed: int) -> list[Picture]:
    """`count` pictures, the same for the same seed."""
    photographs = [np.asarray(photograph) for photograph in load_sample_images().images]
    random = np.random.default_rng((seed, held_out))
    return [_picture(photographs[number % 2], random, held_out) for number in range(count)]


def save(pictures: list[Picture], folder: Path) -> None:
    """Write PNG files to ``images`` and YOLO's text labels to ``labels``."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture.pixels).save(folder / "images" / f"{number:05}.png")
        middles = (picture.boxes[:, :2] + picture.boxes[:, 2:]) / 2
        rows = np.hstack([middles, picture.boxes[:, 2:] - picture.boxes[:, :2]]) / SIZE
        lines = [
            f"{kind} {' '.join(f'{value:.6f}' for value in row)}\n"
            for kind, row in zip(picture.classes, rows, strict=True)
        ]
        (folder / "labels" / f"{number:05}.txt").write_text("".join(lines))
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))


def _picture(photograph: NDArray[np.uint8], random: np.random.Generator, held_out: bool) -> Picture:
    height, width, _ = photograph.shape
    border = width * 7 // 10  # To its right lies what is held out.
    low, high = (border, width - SIZE) if held_out else (0, border - SIZE)
    left, top = random.integers(low, high + 1), random.integers(0, height - SIZE + 1)
    image = Image.fromarray(photograph[top : top + SIZE, left : left + SIZE])
    boxes: list[tuple[float, float, float, float]] = []
    classes: list[int] = []
    for _ in range(random.integers(1, MOST + 1)):
        kind = int(random.integers(len(CLASSES)))
        radius = SIZE * random.uniform(0.06, 0.22)
        x, y = random.uniform(radius, SIZE - radius, 2)
        outline = _outline(kind, x, y, radius, random.uniform(0, 2 * math.pi))
        box = (*outline.min(0), *outline.max(0))
        if all(_apart(box, other) for other in boxes):
            image = _with_shape(image, outline, tuple(random.integers(0, 256, 3)))
            boxes.append(box)
            classes.append(kind)
    return Picture(np.asarray(image), np.array(boxes), np.array(classes, np.int64))


def _outline(kind: int, x: float, y: float, radius: float, turn: float) -> NDArray[np.float64]:
    """Points on the edge, [K, 2]; a circle is a polygon of many."""
    corners = {"circle": 48, "square": 4, "triangle": 3}[CLASSES[kind]]
    angles = turn + np.arange(corners) * (2 * math.pi / corners)
    return np.array([x, y]) + radius * np.stack([np.cos(angles), np.sin(angles)], 1)


def _apart(box: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two boxes overlap by less than a fifth of the smaller one."""
    shared = math.prod(
        max(0.0, min(box[axis + 2], other[axis + 2]) - max(box[axis], other[axis]))
        for axis in (0, 1)
    )
    areas = [(one[2] - one[0]) * (one[3] - one[1]) for one in (box, other)]
    return shared < min(areas) / 5


def _with_shape(
    image: Image.Image, outline: NDArray[np.float64], colour: tuple[int, ...]
) -> Image.Image:
    size = (image.width * _FINER, image.height * _FINER)
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).polygon([tuple(point * _FINER) for point in outline], fill=255)
    mask = mask.resize(image.size, Image.Resampling.BOX)
    return Image.composite(Image.new("RGB", image.size, colour), image, mask)
