"""A preprocessing in a TOML or YAML file: one entry for each step of its text.

    letterbox = 640
    pad = 114
    colour = "rgb"
    scale = 255
    mean = [0.5, 0.5, 0.5]
    std = [0.5, 0.5, 0.5]
    layout = "nchw"

``values = "imagenet"`` and ``values = "raw"`` are there too; a side may be two, height and width:
``crop = [224, 320]``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cbam_deploy.config_files import read_table
from cbam_deploy.errors import BadInput
from cbam_deploy.preprocessing.text import FORM

SUFFIXES = (".toml", ".yaml", ".yml")
_SIDES = ("letterbox", "stretch", "keep", "crop", "resize", "pad")
_LISTS = ("mean", "std")
_WORDS = ("colour", "layout", "values")


def read_steps(path: Path) -> str:
    """The text that a file stands for, for `text.parse`.

    Raises:
        BadInput: it cannot be read, is no table, or has an entry that is no step.
        MissingCapability: what reads YAML, or TOML before Python 3.11, is not installed.
    """
    table = read_table(path, "a preprocessing", FORM)
    steps = []
    for key, value in table.items():
        if key in _WORDS and isinstance(value, str) and "," not in value:
            steps.append(value)
        elif key == "scale" and _is_number(value):
            steps.append(f"/{value}")
        elif key in _SIDES and (sides := _numbers(value, 2)):
            steps.append(f"{key} {'x'.join(sides)}")
        elif key in _LISTS and (numbers := _numbers(value, 4)):
            steps.append(f"{key} {' '.join(numbers)}")
        else:
            known = ", ".join((*_SIDES, "scale", *_LISTS, *_WORDS))
            raise BadInput(f"{path}: {key} = {value!r} is no step", f"steps are {known}")
    return ", ".join(steps)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(value: Any, most: int) -> list[str]:
    """The texts of one number, or of a list of up to `most`; empty for anything else."""
    values = value if isinstance(value, list) else [value]
    right = 1 <= len(values) <= most and all(map(_is_number, values))
    return [str(number) for number in values] if right else []
