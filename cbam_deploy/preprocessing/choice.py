"""Which preprocessing holds: what the person says, else what the file records, else ImageNet's."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cbam_deploy.errors import BadInput
from cbam_deploy.preprocessing.description import (
    Colour,
    Layout,
    Preprocessing,
    imagenet_values,
)
from cbam_deploy.preprocessing.file import SUFFIXES, read_steps
from cbam_deploy.preprocessing.own_function import import_function, recorded
from cbam_deploy.preprocessing.text import parse, text_of

Asked = str | Path | Preprocessing
_COLOURS: dict[int, Colour] = {1: "grey", 3: "rgb"}  # Of the channels that ImageNet has values for.
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PictureInput:
    """The first input of a network, as far as pictures must fit it.

    Attributes:
        title: what to call the network in messages.
        name: of the input.
        shape: with its batch; a free size has a name.
        sizes: of free axes, by name.
    """

    title: str
    name: str
    shape: Sequence[int | str]
    sizes: Mapping[str, int]

    @property
    def known(self) -> tuple[int | None, ...]:
        """The shape as far as it is known."""
        return tuple(s if isinstance(s, int) else self.sizes.get(s) for s in self.shape)


def choose(
    asked: Asked | None, recorded_one: Preprocessing | None, of: PictureInput
) -> Preprocessing:
    """The preprocessing of a network's pictures; a warning says where ImageNet's is a guess.

    Args:
        asked: as the person says it: text, a file, ``package:function``, or the description.
        recorded_one: what the artefact records.
        of: the network's input.

    Raises:
        BadInput: what was asked is not understood or does not fit the input; only the file names
            the function; or nothing is said and the input takes no pictures.
    """
    if asked is not None:
        chosen = understood(asked, of.known)
        check_fit(chosen, of)
        if recorded_one not in (None, recorded(chosen)):
            assert recorded_one is not None
            _log.warning(
                "%s: records %r; %r is used, as you say",
                of.title,
                text_of(recorded_one),
                text_of(chosen),
            )
        return chosen
    if recorded_one is None:
        chosen = for_input(of.name, of.shape, of.sizes)
        _log.warning(
            "%s: does not say how its pictures are prepared; ImageNet's way is taken: %r."
            " Say it with --preprocess",
            of.title,
            text_of(chosen),
        )
        return chosen
    if recorded_one.function is not None:
        function = recorded_one.function
        raise BadInput(
            f"{of.title}: its pictures are prepared by {function}, which only you may run",
            f"if you trust it, name it: --preprocess {shlex.quote(function)}",
        )
    return recorded_one


def understood(asked: Asked, shape: Sequence[int | None] = ()) -> Preprocessing:
    """What the person said; `shape`, of the input with its batch, is for steps without a size.

    Raises:
        BadInput: it is not understood.
    """
    if isinstance(asked, Preprocessing):
        return asked
    text = str(asked)
    if Path(text).suffix in SUFFIXES:
        steps = read_steps(Path(text))
        try:
            return parse(steps, shape)
        except BadInput as error:
            raise BadInput(f"{text}: {error.message}", error.hint) from error
    return import_function(text) if ":" in text else parse(text, shape)


def check_fit(chosen: Preprocessing, of: PictureInput) -> None:
    """Raise `BadInput` where pictures so prepared are none that the input takes."""
    if chosen.function is not None:
        return
    made = chosen.shape
    takes = of.known[1:]
    if len(takes) != 3 or any(
        size not in (None, own) for size, own in zip(takes, made, strict=True)
    ):
        raise BadInput(
            f"{of.title}: input {of.name} takes [{', '.join(map(str, of.shape))}], and"
            f" {text_of(chosen)!r} makes [{', '.join(map(str, made))}] of a picture",
            "say another size, colour or layout with --preprocess, or --size for a free axis",
        )


def for_input(name: str, shape: Sequence[int | str], sizes: Mapping[str, int]) -> Preprocessing:
    """ImageNet's protocol at the size of a network input that has none recorded.

    A square is cut out of the middle; an input that is no square is filled by the whole picture.

    Args:
        name: of the input, for the message.
        shape: of the input, [N, C, H, W] or [N, H, W, C]; a free size has a name.
        sizes: of free sizes, by name; what is not there is 224, or 3 channels.

    Raises:
        BadInput: the input takes no pictures: it has other axes, or another number of channels.
    """
    known = PictureInput("", name, shape, sizes).known
    layout: Layout = "nchw"
    if len(known) == 4 and known[1] not in (None, *_COLOURS) and known[3] in _COLOURS:
        layout, known = "nhwc", (known[0], known[3], *known[1:3])
    if len(known) != 4 or (known[1] or 3) not in _COLOURS:
        raise BadInput(
            f"input {name} takes [{', '.join(map(str, shape))}], and ImageNet's pictures are"
            " [batch, 1 or 3, height, width]",
            "say how pictures become that with --preprocess; without --calibration or --data no"
            " pictures are needed",
        )
    channels, height, width = (
        size or default for size, default in zip(known[1:], (3, 224, 224), strict=True)
    )
    values = imagenet_values(_COLOURS[channels])
    assert values is not None
    square = height == width
    return Preprocessing(
        image_size=height,
        resize=Preprocessing.for_size(height).resize if square else height,
        mean=values[0],
        std=values[1],
        width=None if square else width,
        fit="crop" if square else "stretch",
        colour=_COLOURS[channels],
        layout=layout,
    )


def idle_preprocessing(*, or_else: str = "") -> BadInput:
    """What to raise where a preprocessing is asked for and no picture is read."""
    return BadInput(
        "no pictures are read that --preprocess could prepare",
        f"name some with --data, {or_else}or leave --preprocess out",
    )
