"""The floating-point formats of 16 bits that a network's maps and weights may have.

FP16 has 11 bits of precision and ends at 65504; BF16 has 8 bits and the range of FP32. So BF16 is
for networks that overflow FP16, and costs eight times the rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from cbam_deploy.graphs.gate_body_opsets import CAST_LIKE_SINCE


@dataclass(frozen=True)
class HalfFormat:
    """One of them.

    Attributes:
        name: as reports have it, such as ``FP16``.
        dtype: in ONNX.
        largest: largest finite value.
        roundoff: unit roundoff u: a normal number loses at most that share of itself.
        opset: the first in which ONNX's convolutions take it, and the bodies of gates do.
        lacking: operators that ONNX has in it and TensorRT-RTX 1.7 does not build.
    """

    name: str
    dtype: ir.DataType
    largest: float
    roundoff: float
    opset: int
    lacking: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        """Of the name of what is in this format beside the FP32 value."""
        return f"_{self.name.lower()}"


FP16 = HalfFormat("FP16", ir.DataType.FLOAT16, 65504.0, 2.0**-11, CAST_LIKE_SINCE)
BF16 = HalfFormat(
    "BF16",
    ir.DataType.BFLOAT16,
    (2 - 2.0**-7) * 2.0**127,
    2.0**-8,
    22,
    ("ConvTranspose", "HardSwish", "Mish"),
)
FORMATS = (FP16, BF16)
DTYPES = tuple(one.dtype for one in FORMATS)
