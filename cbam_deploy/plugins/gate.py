"""One attention gate as the GPU kernels see it: its shape, its type, how its maps are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd

from cbam_deploy.errors import BadInput
from cbam_deploy.gates.description import KERNEL_SIZES
from cbam_deploy.gates.operators import GateOperator
from cbam_deploy.plugins.layouts import LAYOUTS, Dtype, Layout, LayoutName

ELEMENTS: dict[Dtype, tuple[str, int]] = {
    "float32": ("float", 4),
    "float16": ("__half", 2),
    "bfloat16": ("__nv_bfloat16", 2),
    "int8": ("signed char", 1),
}
"""C++ type and bytes of one element."""

_LARGEST_IMAGE = 2**30  # elements; offsets inside an image are 32-bit integers
_UNFUSED = "leave this gate unfused: its standard operators run everywhere"


@dataclass(frozen=True)
class Gate:
    """One gate on maps of one shape.

    Attributes:
        operator: what is computed.
        channels, height, width: of the map; any positive numbers.
        hidden: units of the channel part's hidden layer; 0 without one.
        kernel_size: of the spatial part's convolution; 0 without one.
        channel_kernel_size: of the convolution along the channels; 0 without one.
        dtype, layout: of x, r and y.
        stored: channels stored per position, 0 for as many as the layout needs. TensorRT's HWC8 is
            ``nhwc`` with `stored` rounded up to a multiple of 8.
        alignment: bytes that the addresses of x, r and y are multiples of.
        x_scale, r_scale, y_scale: per-tensor scales of int8 maps.

    Raises:
        BadInput: there is no kernel for such a gate.
    """

    operator: GateOperator
    channels: int
    height: int
    width: int
    hidden: int = 0
    kernel_size: int = 0
    channel_kernel_size: int = 0
    dtype: Dtype = "float16"
    layout: LayoutName = "nhwc"
    stored: int = 0
    alignment: int = 16
    x_scale: float = 1.0
    r_scale: float = 1.0
    y_scale: float = 1.0

    def __post_init__(self) -> None:
        storage = self.storage
        natural = round_up(self.channels, storage.block)
        if self.stored == 0:
            object.__setattr__(self, "stored", natural)
        if min(self.channels, self.height, self.width) < 1:
            raise BadInput(f"{self}: sizes must be positive", _UNFUSED)
        self._check_weights()
        if self.dtype not in storage.dtypes:
            dtypes = ", ".join(storage.dtypes)
            raise BadInput(f"layout {self.layout} is for {dtypes} maps, not {self.dtype}", _UNFUSED)
        if self.stored < natural or (self.stored > natural and not storage.padding):
            raise BadInput(f"{self}: {self.stored} channels stored, {natural} needed", _UNFUSED)
        if self.alignment % max(storage.alignment, self.element_bytes):
            raise BadInput(f"{self}: addresses are not aligned", _UNFUSED)
        if self.stored * self.positions > _LARGEST_IMAGE:
            raise BadInput(f"{self}: an image of more than 2^30 elements", _UNFUSED)

    def _check_weights(self) -> None:
        """Refuse sizes of weights that the operator has not, or that no kernel is for."""
        has = self.operator.weights
        if (self.hidden > 0) != ("W0" in has) or self.hidden < 0:
            raise BadInput(f"{self}: {self.hidden} hidden units", _UNFUSED)
        sizes = {"WS": self.kernel_size, "WC": self.channel_kernel_size}
        for weight, size in sizes.items():
            if weight in has and size not in KERNEL_SIZES:
                known = ", ".join(map(str, KERNEL_SIZES))
                raise BadInput(f"kernel size {size}: there are kernels for {known}", _UNFUSED)
            if weight not in has and size:
                raise BadInput(f"{self}: kernel size {size} without a convolution", _UNFUSED)

    def __str__(self) -> str:
        shape = f"{self.channels}x{self.height}x{self.width}"
        return f"{self.operator.name} on {shape} {self.dtype} {self.layout}"

    @property
    def positions(self) -> int:
        """Positions of the map, height times width."""
        return self.height * self.width

    @property
    def element_bytes(self) -> int:
        """Bytes of one element."""
        return ELEMENTS[self.dtype][1]

    @property
    def storage(self) -> Layout:
        """What its layout is like."""
        return LAYOUTS[self.layout]

    @property
    def vector(self) -> int:
        """Elements of one access: at most 16 bytes, never across a row's end."""
        row = self.positions if self.storage.rows_are_channels else self.stored
        return gcd(row, 16 // self.element_bytes, self.alignment // self.element_bytes)

    @property
    def halo(self) -> int:
        """Positions on either side of a slice that its convolution looks at."""
        return self.kernel_size // 2 * (self.width + 1)

    def matrix(self, positions: int, channels: int) -> tuple[int, int]:
        """Rows, and columns in vectors, of a slice of so many positions and stored channels."""
        if self.storage.rows_are_channels:
            return channels, positions // self.vector
        return positions, channels // self.vector


def weight_sizes(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The sizes of a `Gate` that its weights have, from their shapes by name in lower case."""
    return {
        "hidden": shapes["w0"][0] if "w0" in shapes else 0,
        "kernel_size": shapes["ws"][-1] if "ws" in shapes else 0,
        "channel_kernel_size": shapes["wc"][-1] if "wc" in shapes else 0,
    }


def round_up(size: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `size`."""
    return -(-size // multiple) * multiple
