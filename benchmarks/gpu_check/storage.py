"""Feature maps as the kernels store them, by NumPy alone.

bfloat16, which NumPy has not, stands as the upper half of a float32's bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.plugins.gate import Gate
from cbam_deploy.plugins.layouts import Dtype

_STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "int8": np.int8}


def encode(values: NDArray[np.floating], dtype: Dtype) -> NDArray[np.generic]:
    """Round `values` to a type, to nearest even; those of int8 are integers in its range."""
    if dtype != "bfloat16":
        with np.errstate(over="ignore", invalid="ignore"):
            return values.astype(_STORED[dtype])
    bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def decode(stored: NDArray[np.generic], dtype: Dtype) -> NDArray[np.float64]:
    """The values of what `encode` made."""
    if dtype == "bfloat16":
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float64)


def to_storage(gate: Gate, x: NDArray[np.generic]) -> NDArray[np.generic]:
    """Encoded x [N, C, H, W] in the gate's layout, flat; beyond C all bits are set."""
    if gate.layout == "nchw":
        return np.ascontiguousarray(x).ravel()
    padded = np.empty((len(x), gate.height, gate.width, gate.stored), x.dtype)
    padded.view(np.uint8)[:] = 0xFF
    padded[..., : gate.channels] = x.transpose(0, 2, 3, 1)
    if gate.layout == "nhwc":
        return padded.ravel()
    blocks = padded.reshape(len(x), gate.positions, gate.stored // 32, 32)
    return np.ascontiguousarray(blocks.transpose(0, 2, 1, 3)).ravel()


def from_storage(gate: Gate, y: NDArray[np.generic], batch: int) -> NDArray[np.generic]:
    """The inverse of `to_storage`; raises `ValueError` unless what lies beyond C is zero."""
    if gate.layout == "nchw":
        return y.reshape(batch, gate.channels, gate.height, gate.width)
    if gate.layout == "chw32":
        y = y.reshape(batch, gate.stored // 32, gate.positions, 32).transpose(0, 2, 1, 3)
    maps = y.reshape(batch, gate.height, gate.width, gate.stored)
    if maps[..., gate.channels :].any():
        raise ValueError("the padding beyond the last channel is not zero")
    return maps[..., : gate.channels].transpose(0, 3, 1, 2)
