"""Other ways to write the body of `CbamGateAddRelu`: what `gate_body.py` compares ours with.

All compute the same numbers but for the order of sums.
"""

from __future__ import annotations

import onnx
from onnx import helper, parser

from cbam_deploy.gates.operators import DOMAIN
from cbam_deploy.graphs.gate_bodies import GROUPS, gate_function

_START = """
  height_width = Constant <value_ints = [2, 3]> ()
  channels = Constant <value_ints = [1]> ()
  two = Constant <value_float = 2.0> ()
  b1_twice = Mul (B1, two)
  mean = GlobalAveragePool (X)
  peak = GlobalMaxPool (X)
"""

_CONV_MLP = """
  w0 = Unsqueeze (W0, height_width)
  w1 = Unsqueeze (W1, height_width)
  mean_squeezed = Conv (mean, w0, B0)
  peak_squeezed = Conv (peak, w0, B0)
  mean_hidden = Relu (mean_squeezed)
  peak_hidden = Relu (peak_squeezed)
  hidden = Add (mean_hidden, peak_hidden)
  logits = Conv (hidden, w1, b1_twice)
  attention = Sigmoid (logits)
"""

_GEMM_MLP = """
  mean_vector = Flatten (mean)
  peak_vector = Flatten (peak)
  mean_squeezed = Gemm <transB = 1> (mean_vector, W0, B0)
  peak_squeezed = Gemm <transB = 1> (peak_vector, W0, B0)
  mean_hidden = Relu (mean_squeezed)
  peak_hidden = Relu (peak_squeezed)
  hidden = Add (mean_hidden, peak_hidden)
  logits = Gemm <transB = 1> (hidden, W1, b1_twice)
  attention_vector = Sigmoid (logits)
  attention = Unsqueeze (attention_vector, height_width)
"""

_POOL = f"""
  refined = Mul (X, attention)
  in_group = Constant <value_ints = [2]> ()
  grouped_shape = Constant <value_ints = [0, {GROUPS}, -1, 0, 0]> ()
  lifted = Unsqueeze (refined, channels)
  grouped = Reshape (lifted, grouped_shape)
  group_peaks = ReduceMax <keepdims = 0> (grouped, in_group)
  group_means = ReduceMean <keepdims = 0> (grouped, in_group)
  peaks = ReduceMax (group_peaks, channels)
  means = ReduceMean (group_means, channels)
"""

_MATMUL_POOL = """
  refined = Mul (X, attention)
  peaks = ReduceMax (refined, channels)
  count = Size (B1)
  divisor = CastLike (count, X)
  share = Div (attention, divisor)
  row_shape = Constant <value_ints = [0, 1, -1]> ()
  matrix_shape = Constant <value_ints = [0, 0, -1]> ()
  row = Reshape (share, row_shape)
  matrix = Reshape (X, matrix_shape)
  mean_row = MatMul (row, matrix)
  plane_shape = Shape (peaks)
  means = Reshape (mean_row, plane_shape)
"""

_SPATIAL = """
  descriptor = Concat <axis = 1> (peaks, means)
  spatial_logits = Conv <auto_pad = "SAME_UPPER"> (descriptor, WS, BS)
  spatial_attention = Sigmoid (spatial_logits)
  gated = Mul (refined, spatial_attention)
"""

_END = """
  sum = Add (gated, R)
  Y = Relu (sum)
"""

_DEPTHWISE_END = """
  count = Shape (B1)
  single = Constant <value_ints = [1, 1, 1]> ()
  identity_shape = Concat <axis = 0> (count, single)
  identity = ConstantOfShape <value = float[1] {1.0}> (identity_shape)
  copied = Conv <group : int = @channels> (gated, identity)
  sum = Add (copied, R)
  Y = Relu (sum)
"""

_CHANNELS_LAST = """
  zero = Constant <value_ints = [0]> ()
  infer = Constant <value_ints = [-1]> ()
  last = Constant <value_ints = [2]> ()
  count = Shape (B1)
  rows_shape = Concat <axis = 0> (zero, infer, count)
  turned = Transpose <perm = [0, 2, 3, 1]> (X)
  rows = Reshape (turned, rows_shape)
  row_shape = Constant <value_ints = [0, 1, -1]> ()
  row = Reshape (attention, row_shape)
  refined = Mul (rows, row)
  peak_rows = ReduceMax <keepdims = 0> (refined, last)
  mean_rows = ReduceMean <keepdims = 0> (refined, last)
  peak_lines = Unsqueeze (peak_rows, channels)
  mean_lines = Unsqueeze (mean_rows, channels)
  lines = Concat <axis = 1> (peak_lines, mean_lines)
  size = Shape <start = 1, end = 3> (turned)
  two_planes = Constant <value_ints = [0, 2]> ()
  planes_shape = Concat <axis = 0> (two_planes, size)
  descriptor = Reshape (lines, planes_shape)
  spatial_logits = Conv <auto_pad = "SAME_UPPER"> (descriptor, WS, BS)
  spatial_attention = Sigmoid (spatial_logits)
  column_shape = Constant <value_ints = [0, -1, 1]> ()
  column = Reshape (spatial_attention, column_shape)
  gated = Mul (refined, column)
  turned_residual = Transpose <perm = [0, 2, 3, 1]> (R)
  residual_rows = Reshape (turned_residual, rows_shape)
  sum = Add (gated, residual_rows)
  rectified = Relu (sum)
  turned_shape = Concat <axis = 0> (zero, size, count)
  back = Reshape (rectified, turned_shape)
  Y = Transpose <perm = [0, 3, 1, 2]> (back)
"""

_TEXTS = {
    "MLP by Gemm": _START + _GEMM_MLP + _POOL + _SPATIAL + _END,
    "mean by MatMul": _START + _CONV_MLP + _MATMUL_POOL + _SPATIAL + _END,
    "channels last": _START + _CONV_MLP + _CHANNELS_LAST,
    "depthwise end": _START + _CONV_MLP + _POOL + _SPATIAL + _DEPTHWISE_END,
}
ALTERNATIVES = ("pooled in one step", *_TEXTS)


def with_body(fused: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """A copy of a model of `CbamGateAddRelu` nodes with another body, one of `ALTERNATIVES`."""
    model = onnx.ModelProto()
    model.CopyFrom(fused)
    (function,) = model.functions
    function.CopyFrom(_function(name))
    sizes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.domain == DOMAIN and "channels" in function.attribute:
            node.attribute.append(helper.make_attribute("channels", sizes[node.input[5]][0]))
    onnx.checker.check_model(model)
    return model


def _function(name: str) -> onnx.FunctionProto:
    if name not in _TEXTS:
        import onnx_ir as ir

        return ir.to_proto(gate_function("CbamGateAddRelu", 18, grouped=False))
    attributes = "<channels>" if "@channels" in _TEXTS[name] else ""
    return parser.parse_function(
        f'<opset_import: ["" : 18], domain: "{DOMAIN}">\n'
        f"CbamGateAddRelu {attributes} (X, R, W0, B0, W1, B1, WS, BS) => (Y)\n{{{_TEXTS[name]}}}"
    )
