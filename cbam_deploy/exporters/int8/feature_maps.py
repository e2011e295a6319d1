"""Feature maps that travel through memory as float in a quantized network.

Between DQ and Q, a runtime such as TensorRT fuses what it can into one kernel, so the float tensors
in there exist in registers only. Every other float feature map is written and read at its full
size. Speed at INT8 is lost exactly there.
"""

from __future__ import annotations

import onnx_ir as ir

from cbam_deploy.exporters.half.rules import PRODUCTS, is_standard
from cbam_deploy.exporters.int8.placement import is_feature_map

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "PRelu", "HardSwish")


def float_feature_maps(model: ir.Model) -> tuple[str, ...]:
    """Names of the feature maps that travel as float, in graph order.

    A map stays inside a kernel when Q alone reads it, or when one node alone reads it that is fused
    into the map's producer: an activation behind a product (`PRODUCTS`) or an addition, or an
    addition behind a product. What DQ gives is read where it is used, and never counts; nor does
    the network's input, which cannot be int8.
    """
    values = [value for node in model.graph for value in node.outputs]
    return tuple(value.name or "" for value in values if _travels_as_float(value))


def _travels_as_float(value: ir.Value) -> bool:
    producer = value.producer()
    if producer is None or producer.op_type in ("QuantizeLinear", "DequantizeLinear", "Constant"):
        return False
    if value.dtype not in (None, *_FLOATS) or not is_feature_map(value):
        return False
    readers = [use.node for use in value.uses()]
    if value.is_graph_output() or not readers:
        return True
    if all(reader.op_type == "QuantizeLinear" for reader in readers):
        return False
    return len(readers) > 1 or not _fuses(producer, readers[0])


def _fuses(producer: ir.Node, reader: ir.Node) -> bool:
    if is_standard(reader, *_ACTIVATIONS):
        return is_standard(producer, *PRODUCTS, "Add")
    return is_standard(reader, "Add") and is_standard(producer, *PRODUCTS)
