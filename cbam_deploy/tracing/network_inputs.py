"""What a network takes, as ``--input`` says it: ``NAME:AXISxAXISx...`` once for each input.

    image:1x3x640x640            every axis fixed, the batch too
    image:Nx3x640x640            a free batch
    image:Nx3xH=640xW=640        free height and width as well, 640 as a rule
    mask:Nx1xHxW                 as high and wide as the image
    tokens:Nx16:int64            of another type than float32

A capital letter is a free axis. On the first axis it is the batch; elsewhere it gets a typical size
once, at which the network is traced, checked, validated and measured. The same letter means the
same size everywhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from cbam_deploy.errors import BadInput
from cbam_deploy.numerics.tensors import TensorSpec

BATCH = "batch"
DTYPES = ("float32", "int32", "int64", "uint8", "bool")
_INPUT = re.compile(r"(?P<name>[A-Za-z_][\w.]*):(?P<axes>[^:]+)(:(?P<dtype>\w+))?")
_AXIS = re.compile(r"(?P<fixed>[1-9]\d{0,8})|(?P<letter>[A-Z])(=(?P<typical>[1-9]\d{0,8}))?")
_FORM = "write NAME:AXISxAXISx..., such as image:1x3x640x640 or image:Nx3xH=640xW=640"
# Networks halve their maps up to six times, so sizes are varied by what keeps that possible.
_HALVINGS = 64


@dataclass(frozen=True)
class NetworkInputs:
    """The inputs of a network, in the order in which it takes them.

    Attributes:
        specs: of each; a free axis has a name, the first one's is ``batch``.
        sizes: the typical size of each free axis but the batch.
    """

    specs: tuple[TensorSpec, ...]
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def picture_size(self) -> int | None:
        """Side in pixels, where the one input is square pictures of three channels."""
        if len(self.specs) != 1 or len(self.specs[0].shape) != 4:
            return None
        channels, height, width = (
            self.sizes[size] if isinstance(size, str) else size for size in self.specs[0].shape[1:]
        )
        return height if (channels, height) == (3, width) else None

    @property
    def batch(self) -> int | None:
        """The first input's batch where all of them are fixed, else None."""
        first = [spec.shape[0] for spec in self.specs]
        return None if BATCH in first else int(first[0])

    @property
    def other_sizes(self) -> dict[str, int]:
        """Other sizes than the typical ones, each by another step, that halve as often."""
        return {
            name: size + math.gcd(size, _HALVINGS) * step
            for step, (name, size) in enumerate(self.sizes.items(), start=1)
        }

    def as_options(self, *, batch: int | None = None, sizes_free: bool = True) -> str:
        """What to write on the command line for these inputs, with some axes fixed.

        Args:
            batch: of every free first axis; None leaves it free.
            sizes_free: whether other free axes stay free, else they get their typical size.
        """
        return " ".join(f"--input {self._text(spec, batch, sizes_free)}" for spec in self.specs)

    def _text(self, spec: TensorSpec, batch: int | None, sizes_free: bool) -> str:
        axes: list[int | str] = ["N" if batch is None else batch]
        if isinstance(spec.shape[0], int):
            axes = [spec.shape[0]]
        for size in spec.shape[1:]:
            if isinstance(size, int):
                axes.append(size)
            else:
                axes.append(f"{size}={self.sizes[size]}" if sizes_free else self.sizes[size])
        dtype = "" if spec.dtype == "float32" else f":{spec.dtype}"
        return f"{spec.name}:{'x'.join(map(str, axes))}{dtype}"


def pictures(shape: tuple[int, int, int]) -> NetworkInputs:
    """One input of pictures of `shape`, ``input`` [batch, *shape] float32."""
    return NetworkInputs((TensorSpec("input", (BATCH, *shape), "float32"),))


def parse_inputs(texts: Sequence[str]) -> NetworkInputs:
    """Read what `texts` say of each input.

    Raises:
        BadInput: a text is malformed, a name is given twice, or a letter has no size, several, or
            is the batch in one place and something else in another.
    """
    sizes: dict[str, int] = {}
    batches: set[str] = set()
    read = [_read(text, sizes, batches) for text in texts]
    specs: list[TensorSpec] = []
    for text, (name, axes, dtype) in zip(texts, read, strict=True):
        if any(spec.name == name for spec in specs):
            raise BadInput(f"--input {text}: {name} is given twice", "name each input once")
        for letter in axes[1:]:
            if letter in batches:
                raise BadInput(
                    f"--input {text}: {letter} is the batch, which is the first axis only",
                    "choose another letter",
                )
            if isinstance(letter, str) and letter not in sizes:
                raise BadInput(
                    f"--input {text}: nothing says how large {letter} is as a rule",
                    f"give its typical size once: {letter}=640",
                )
        first = BATCH if isinstance(axes[0], str) else axes[0]
        specs.append(TensorSpec(name, (first, *axes[1:]), dtype))
    if len(batches) > 1:
        raise BadInput(
            f"the batch has several letters: {', '.join(sorted(batches))}", "use one for all inputs"
        )
    return NetworkInputs(tuple(specs), sizes)


def _read(
    text: str, sizes: dict[str, int], batches: set[str]
) -> tuple[str, tuple[int | str, ...], str]:
    """Name, axes and type of one input; adds to what is known of letters."""
    found = _INPUT.fullmatch(text)
    if found is None:
        raise BadInput(f"--input {text}: is not understood", _FORM)
    dtype = found["dtype"] or "float32"
    if dtype not in DTYPES:
        raise BadInput(f"--input {text}: type {dtype} is unknown", f"one of {', '.join(DTYPES)}")
    axes: list[int | str] = []
    for position, part in enumerate(found["axes"].split("x")):
        axis = _AXIS.fullmatch(part)
        if axis is None:
            raise BadInput(f"--input {text}: axis {part!r} is not understood", _FORM)
        letter, typical = axis["letter"], axis["typical"]
        if letter is None:
            axes.append(int(axis["fixed"]))
            continue
        axes.append(letter)
        if position == 0:
            batches.add(letter)
            if typical is not None:
                raise BadInput(
                    f"--input {text}: the first axis is the batch and has no typical size",
                    f"write {letter} alone",
                )
        elif typical is not None and sizes.setdefault(letter, int(typical)) != int(typical):
            raise BadInput(
                f"--input {text}: {letter} is {sizes[letter]} and {typical}",
                "use another letter for another size",
            )
    return found["name"], tuple(axes), dtype
