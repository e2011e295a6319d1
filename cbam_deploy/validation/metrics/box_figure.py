"""A figure of pictures with the objects in them, and what networks find there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.data.pictures import decode
from cbam_deploy.data.source import ImageSource
from cbam_deploy.report.content import Figure
from cbam_deploy.report.picture_grid import Row, Tile, picture_grid

if TYPE_CHECKING:
    from cbam_deploy.validation.metrics.average_precision import BoxJudge

PICTURES = 4
LEAST_SCORE = 0.25
_SIDE = 256  # Of a tile, in pixels.
_COLOURS = ("#e6194b", "#ffe119", "#42d4f4", "#3cb44b", "#f58231", "#f032e6", "#bfef45", "#fabed4")
_TEXT = 18


def box_figure(source: ImageSource, judges: Sequence[tuple[str, BoxJudge]]) -> Figure:
    """The first pictures judged: above with their objects, then with what each network finds.

    Args:
        source: the pictures.
        judges: of the networks, by name; they have judged the same pictures.
    """
    shown = tuple(judges[0][1].true)[:PICTURES]
    return Figure(
        draw=partial(_draw, source, judges, shown),
        caption=(
            "From above: the objects; what "
            + ", ".join(name for name, _ in judges)
            + f" find{'s' * (len(judges) == 1)} with a score of {LEAST_SCORE} or more."
        ),
        description="Pictures with boxes around the objects in them, and around those found.",
    )


def _draw(source: ImageSource, judges: Sequence[tuple[str, BoxJudge]], shown: Sequence[int]) -> str:
    first = judges[0][1]
    rows = [Row("objects", tuple(_true_tile(source, first, index) for index in shown))]
    rows += (
        Row(name, tuple(_found_tile(source, judge, index) for index in shown))
        for name, judge in judges
    )
    return picture_grid(rows, [""] * len(shown))[0]


def _true_tile(source: ImageSource, judge: BoxJudge, index: int) -> Tile:
    objects = judge.true[index]
    texts = [judge.names[kind] for kind in objects.classes]
    return Tile(_with_boxes(source.names[index], objects.boxes, objects.classes, texts))


def _found_tile(source: ImageSource, judge: BoxJudge, index: int) -> Tile:
    found = judge.found[index]
    sure = found.scores >= LEAST_SCORE
    boxes, classes = found.boxes[sure], found.classes[sure]
    texts = [
        f"{judge.names[kind]} {score:.2f}"
        for kind, score in zip(classes, found.scores[sure], strict=True)
    ]
    return Tile(_with_boxes(source.names[index], boxes, classes, texts))


def _with_boxes(
    path: str, boxes: NDArray[np.float64], classes: NDArray[np.int64], texts: Sequence[str]
) -> NDArray[np.uint8]:
    """The picture in a square, with a box and a text for each row of `boxes`."""
    from PIL import Image, ImageDraw, ImageFont

    picture = decode(Path(path))
    scale = _SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    tile = Image.new("RGB", (_SIDE, _SIDE), "#808080")
    corner = ((_SIDE - size[0]) // 2, (_SIDE - size[1]) // 2)
    tile.paste(picture.resize(size, Image.Resampling.BILINEAR), corner)
    pen = ImageDraw.Draw(tile)
    font: Any = ImageFont.load_default(_TEXT)
    for box, kind, text in zip(boxes, classes.tolist(), texts, strict=True):
        colour = _COLOURS[kind % len(_COLOURS)]
        left, top, right, bottom = (box.reshape(2, 2) * scale + corner).ravel().tolist()
        pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=3)
        width = pen.textlength(text, font=font)
        x = min(max(0, left), _SIDE - width)
        y = top - _TEXT - 2 if top > _TEXT + 2 else min(bottom, _SIDE - _TEXT - 2)
        pen.rectangle((x, y, x + width, y + _TEXT + 2), fill=colour)
        pen.text((x, y), text, fill="black", font=font)
    return np.asarray(tile, np.uint8)
