"""A preprocessing as text, steps with commas between them: `parse` reads, `text_of` writes it.

    letterbox 640, pad 114, rgb, /255
    resize 256, crop 224, rgb, imagenet
    stretch 384x640, bgr, mean 103.94 116.78 123.68, std 1 1 1, nhwc
    raw

One step fits the picture in: ``letterbox``, ``stretch``, ``resize`` and ``crop``, or ``keep``,
with a side or HEIGHTxWIDTH. Without a number it is the network's own size, and without such a step
pictures must have that size (``keep``). One word is the colour (``rgb`` where none is given), and
``nhwc`` the layout. The values must be said: ``imagenet``; or what levels are divided by
(``/255``), their ``mean`` and ``std`` after that (one number counts for every channel); or ``raw``
for levels of 0 to 255 as they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, get_args

from cbam_deploy.errors import BadInput
from cbam_deploy.preprocessing.description import (
    CHANNELS,
    Colour,
    Layout,
    Preprocessing,
    imagenet_values,
)

FORM = (
    "write it as 'letterbox 640, rgb, /255' or 'resize 256, crop 224, imagenet' or 'raw', or give"
    " a .toml or .yaml file, or package:function"
)
_STEPS = {
    "frame": r"(?P<fit>letterbox|stretch|keep|crop)( (?P<height>\d{1,7})(x(?P<width>\d{1,7}))?)?",
    "resize": r"resize (?P<resize>\d{1,7})",
    "pad": r"pad (?P<pad>\d{1,3})",
    "colour": rf"(?P<colour>{'|'.join(get_args(Colour))})",
    "layout": rf"(?P<layout>{'|'.join(get_args(Layout))})",
    "scale": r"/ ?(?P<scale>\S+)",
    "mean": r"mean (?P<mean>.+)",
    "std": r"std (?P<std>.+)",
    "values": r"(?P<values>imagenet|raw)",
}
_PATTERNS = {name: re.compile(pattern) for name, pattern in _STEPS.items()}


def text_of(preprocessing: Preprocessing) -> str:
    """`preprocessing` as text, with everything in it that counts; `parse` reads it back."""
    if preprocessing.function is not None:
        return preprocessing.function
    height, width = preprocessing.frame
    size = str(height) if preprocessing.width is None else f"{height}x{width}"
    steps = [f"{preprocessing.fit} {size}"]
    if preprocessing.fit == "crop":
        steps.insert(0, f"resize {preprocessing.resize}")
    if preprocessing.fit == "letterbox":
        steps.append(f"pad {preprocessing.padding}")
    layout = [preprocessing.layout] if preprocessing.layout != "nchw" else []
    return ", ".join([*steps, preprocessing.colour, *_values_of(preprocessing), *layout])


def _values_of(preprocessing: Preprocessing) -> list[str]:
    mean, std, scale = preprocessing.mean, preprocessing.std, preprocessing.scale
    if (mean, std) == imagenet_values(preprocessing.colour) and scale == 255:
        return ["imagenet"]
    steps = [] if scale == 1 else [f"/{_number_of(scale)}"]
    if any(mean):
        steps.append(f"mean {' '.join(map(_number_of, mean))}")
    if any(value != 1 for value in std):
        steps.append(f"std {' '.join(map(_number_of, std))}")
    return steps or ["raw"]


def _number_of(value: float) -> str:
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def parse(text: str, shape: Sequence[int | None] = ()) -> Preprocessing:
    """Read steps as the module's docstring has them, in any order.

    Args:
        text: the steps.
        shape: of the network's input with its batch, where steps say no size; None is unknown.

    Raises:
        BadInput: a step is unknown, given twice, contradicts another, or is missing.
    """
    found: dict[str, dict[str, str]] = {}
    for step in (" ".join(part.split()) for part in text.split(",")):
        name, groups = _step(text, step)
        if name in found:
            raise _refusal(text, f"{step!r} is the second step of its kind")
        found[name] = groups
    layout = found.get("layout", {"layout": "nchw"})["layout"]
    frame = tuple(shape[1:3] if layout == "nhwc" else shape[2:4])
    fields = {**_fit(text, found, frame), **_values(text, found), "layout": layout}
    try:
        return Preprocessing(**fields)
    except ValueError as error:
        raise _refusal(text, str(error)) from error


def _step(text: str, step: str) -> tuple[str, dict[str, str]]:
    for name, pattern in _PATTERNS.items():
        if match := pattern.fullmatch(step):
            return name, {key: value for key, value in match.groupdict().items() if value}
    raise _refusal(text, f"{step!r} is not understood")


def _fit(
    text: str, found: dict[str, dict[str, str]], frame: tuple[int | None, ...]
) -> dict[str, Any]:
    step = found.get("frame", {"fit": "keep"})
    fit = step["fit"]
    if ("resize" in found) != (fit == "crop"):
        raise _refusal(text, "resize and crop belong together; stretch and letterbox resize alone")
    if "pad" in found and fit != "letterbox":
        raise _refusal(text, "pad is for letterbox")
    said = [int(step[side]) for side in ("height", "width") if side in step]
    sides = said or [side for side in frame if side is not None]
    if len(sides) < (1 if said else 2):
        raise _refusal(text, f"nothing says the size that {fit} needs; write {fit} 640")
    height, width = sides[0], sides[-1]
    fields: dict[str, Any] = {
        "fit": fit,
        "image_size": height,
        "width": None if width == height else width,
        "resize": int(found["resize"]["resize"]) if "resize" in found else height,
    }
    if "pad" in found:
        fields["padding"] = int(found["pad"]["pad"])
    return fields


def _values(text: str, found: dict[str, dict[str, str]]) -> dict[str, Any]:
    colour: Any = found.get("colour", {"colour": "rgb"})["colour"]
    channels, word = CHANNELS[colour], found.get("values", {}).get("values")
    numeric = [name for name in ("scale", "mean", "std") if name in found]
    if word and numeric:
        raise _refusal(text, f"{word} says the values already")
    if not word and not numeric:
        raise _refusal(text, "nothing says the values: add /255, imagenet, or raw")
    if word == "imagenet":
        values = imagenet_values(colour)
        if values is None:
            raise _refusal(text, f"ImageNet has no values for {colour}")
        return {"colour": colour, "mean": values[0], "std": values[1]}
    return {
        "colour": colour,
        "scale": _numbers(text, found["scale"]["scale"], 1)[0] if "scale" in found else 1.0,
        "mean": _numbers(text, found["mean"]["mean"] if "mean" in found else "0", channels),
        "std": _numbers(text, found["std"]["std"] if "std" in found else "1", channels),
    }


def _numbers(text: str, words: str, count: int) -> tuple[float, ...]:
    try:
        numbers = tuple(float(word) for word in words.split())
    except ValueError:
        raise _refusal(text, f"{words!r} is not a number") from None
    return numbers * count if len(numbers) == 1 else numbers


def _refusal(text: str, reason: str) -> BadInput:
    return BadInput(f"--preprocess {text}: {reason}", FORM)
