"""How the maps that the kernels read and write lie in memory: ``cbam::Layout`` of ``tile.cuh``.

TensorRT has names of its own for it, and pads channels in some: `FORMATS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["float32", "float16", "bfloat16", "int8"]
LayoutName = Literal["nchw", "nhwc", "chw32"]

FLOATS: tuple[Dtype, ...] = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Layout:
    """One layout, as far as geometry depends on it.

    Attributes:
        name: in C++, JSON and messages.
        rows_are_channels: whether the kernels' rows are channels, their columns positions; else it
            is the other way round.
        block: channels of one position that lie together before the next position follows, of which
            whole blocks are stored; 1 where channels are not in blocks.
        padding: whether still more channels may be stored.
        dtypes: that there are kernels for.
        alignment: bytes that addresses are multiples of at least, whatever the type.
        run_rows: rows that neighbouring lanes read before they go on along a row.
    """

    name: LayoutName
    rows_are_channels: bool = False
    block: int = 1
    padding: bool = False
    dtypes: tuple[Dtype, ...] = (*FLOATS, "int8")
    alignment: int = 1
    run_rows: int = 1


LAYOUTS: dict[LayoutName, Layout] = {
    layout.name: layout
    for layout in (
        Layout("nchw", rows_are_channels=True),
        Layout("nhwc", padding=True),
        Layout("chw32", block=32, dtypes=("int8",), alignment=4, run_rows=4),
    )
}


@dataclass(frozen=True)
class Format:
    """A layout by TensorRT's name (`TensorFormat`); it stores a multiple of `multiple` channels."""

    name: str
    layout: LayoutName
    multiple: int = 1


_LINEAR = Format("LINEAR", "nchw")
FORMATS: dict[Dtype, tuple[Format, ...]] = {
    "float32": (_LINEAR, Format("HWC", "nhwc")),
    "float16": (Format("HWC8", "nhwc", 8), _LINEAR),
    "bfloat16": (Format("HWC8", "nhwc", 8), _LINEAR),
    "int8": (Format("CHW32", "chw32", 32), Format("HWC16", "nhwc", 16), _LINEAR),
}
"""TensorRT's formats of maps by type, the one that convolutions of that type prefer first."""
