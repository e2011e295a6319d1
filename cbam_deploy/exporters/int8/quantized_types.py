"""The types of 8 bits that Q and DQ write and read, and how values are rounded to them.

INT8 has 255 even steps, from -127 to 127. FP8 is E4M3FN: 4 bits of exponent and 3 of mantissa, so
4 bits of precision everywhere between 2^-6 and 448, steps of 2^-9 below, no infinity.

Source: P. Micikevicius et al., "FP8 formats for deep learning", arXiv 2209.05433; what rounding and
saturation mean in ONNX is on the pages of QuantizeLinear and of float8 (https://onnx.ai/onnx).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


@dataclass(frozen=True)
class QuantizedType:
    """One of them.

    Attributes:
        name: as reports have it, such as ``INT8``.
        dtype: in ONNX.
        largest: what the largest magnitude of a tensor becomes.
        opset: the first whose Q and DQ know it, with a scale of each channel.
        lowest: what Q saturates at on the other side.
    """

    name: str
    dtype: ir.DataType
    largest: int
    opset: int
    lowest: int

    def rounded(self, values: NDArray[Any]) -> NDArray[Any]:
        """`values`, in units of the scale, in this type: to nearest, halves to even, saturated."""
        if self.dtype == ir.DataType.INT8:
            values = np.rint(values)
        # NumPy's FP8 knows no saturation.
        clipped = np.clip(values, self.lowest, self.largest)
        return np.asarray(clipped.astype(self.dtype.numpy()))


INT8 = QuantizedType("INT8", ir.DataType.INT8, 127, 13, -128)
FP8 = QuantizedType("FP8", ir.DataType.FLOAT8E4M3FN, 448, 19, -448)
TYPES = (INT8, FP8)


def quantized_type(node: ir.Node) -> QuantizedType | None:
    """The type that a QuantizeLinear writes or a DequantizeLinear reads; None of another node."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "QuantizeLinear":
        values = [node.outputs[0], *node.inputs[2:]]
    elif node.op_type == "DequantizeLinear":
        values = [node.inputs[0], *node.inputs[2:]]
    else:
        return None
    dtypes = {value.dtype for value in values if value is not None}
    dtypes.add(ir.DataType(node.attributes.get_int("output_dtype", 0)))
    return FP8 if ir.DataType.FLOAT8E4M3FN in dtypes else INT8
