"""One attention gate as the GPU kernels see it: its shape, its type, how its maps are stored."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from cbam_deploy.errors import BadInput
from cbam_deploy.gates.description import CBAM, SE
from cbam_deploy.gates.operators import GATE_OPERATORS, GateOperator
from cbam_deploy.plugins.layouts import LAYOUTS, Dtype, Layout, LayoutName

ELEMENTS: dict[Dtype, tuple[str, int]] = {
    "float32": ("float", 4),
    "float16": ("__half", 2),
    "bfloat16": ("__nv_bfloat16", 2),
    "int8": ("signed char", 1),
}
"""C++ type and bytes of one element."""

KERNEL_OPERATORS: dict[str, GateOperator] = {
    name: operator for name, operator in GATE_OPERATORS.items() if operator.gate in (CBAM, SE)
}
"""The operators that there are kernels for; `Gate.operator` is one of them."""

_LARGEST_IMAGE = 2**30  # elements; offsets inside an image are 32-bit integers
_UNFUSED = "leave this gate unfused: its standard operators run everywhere"


@dataclass(frozen=True)
class Gate:
    """One gate on maps of one shape.

    Attributes:
        channels, height, width: of the map; any positive numbers.
        hidden: units of the channel gate's hidden layer.
        kernel_size: of the spatial gate, 3 or 7; 0 for a channel gate only (SE).
        residual: whether a residual is added and ReLU applied.
        dtype, layout: of x, r and y.
        stored: channels stored per position, 0 for as many as the layout needs. TensorRT's HWC8 is
            ``nhwc`` with `stored` rounded up to a multiple of 8.
        alignment: bytes that the addresses of x, r and y are multiples of.
        x_scale, r_scale, y_scale: per-tensor scales of int8 maps.

    Raises:
        BadInput: there is no kernel for such a gate.
    """

    channels: int
    height: int
    width: int
    hidden: int
    kernel_size: int = 7
    residual: bool = False
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
        if min(self.channels, self.height, self.width, self.hidden) < 1:
            raise BadInput(f"{self}: sizes must be positive", _UNFUSED)
        if self.kernel_size not in (0, 3, 7):
            raise BadInput(f"kernel size {self.kernel_size}: there are kernels for 3, 7", _UNFUSED)
        if self.dtype not in storage.dtypes:
            dtypes = ", ".join(storage.dtypes)
            raise BadInput(f"layout {self.layout} is for {dtypes} maps, not {self.dtype}", _UNFUSED)
        if self.stored < natural or (self.stored > natural and not storage.padding):
            raise BadInput(f"{self}: {self.stored} channels stored, {natural} needed", _UNFUSED)
        if self.alignment % max(storage.alignment, self.element_bytes):
            raise BadInput(f"{self}: addresses are not aligned", _UNFUSED)
        if self.stored * self.positions > _LARGEST_IMAGE:
            raise BadInput(f"{self}: an image of more than 2^30 elements", _UNFUSED)

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
    def operator(self) -> GateOperator:
        """The operator that it computes."""
        return GateOperator(
            CBAM if self.kernel_size else SE, self.residual, "relu" if self.residual else "none"
        )

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


def round_up(size: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `size`."""
    return -(-size // multiple) * multiple
