"""Gates as tf2onnx writes Keras networks: maps are NHWC, each Conv stands between two Transposes.

Multiply, Dense and the pools of `Lambda(K.mean)` and GlobalAveragePooling2D see NHWC; a Dense is a
MatMul and an Add.
"""

import numpy as np
from onnx import numpy_helper, parser

CHANNELS, HIDDEN = 16, 4
_SHAPES = {
    "first": (CHANNELS, 3, 3, 3),
    "kernel0": (CHANNELS, HIDDEN),
    "bias0": (HIDDEN,),
    "kernel1": (HIDDEN, CHANNELS),
    "bias1": (CHANNELS,),
    "spatial": (1, 2, 7, 7),
    "last": (4, CHANNELS, 1, 1),
}
_HEAD = """
<ir_version: 10, opset_import: ["" : 17]>
keras (float[N, 10, 12, 3] input) => (float[N, 10, 12, 4] output)
<int64[4] vector = {-1, 1, 1, 16}>
{
  input_nchw = Transpose <perm = [0, 3, 1, 2]> (input)
  conv_nchw = Conv <auto_pad = "SAME_UPPER", kernel_shape = [3, 3]> (input_nchw, first)
  conv = Transpose <perm = [0, 2, 3, 1]> (conv_nchw)
"""
_DENSE = """
  {0} = Reduce{1} <axes = [1, 2], keepdims = 0> (conv)
  {0}_1x1 = Reshape ({0}, vector)
  {0}_matmul0 = MatMul ({0}_1x1, kernel0)
  {0}_biased0 = Add ({0}_matmul0, bias0)
  {0}_relu = Relu ({0}_biased0)
  {0}_matmul1 = MatMul ({0}_relu, kernel1)
  {0}_dense = Add ({0}_matmul1, bias1)
"""
_SE = """
  scale = Sigmoid (avg_dense)
  gated = Mul (conv, scale)
"""
_CBAM = """
  sum = Add (avg_dense, max_dense)
  scale = Sigmoid (sum)
  channel = Mul (conv, scale)
  mean = ReduceMean <axes = [3], keepdims = 1> (channel)
  peak = ReduceMax <axes = [3], keepdims = 1> (channel)
  both = Concat <axis = 3> (mean, peak)
  both_nchw = Transpose <perm = [0, 3, 1, 2]> (both)
  logits_nchw = Conv <auto_pad = "SAME_UPPER", kernel_shape = [7, 7]> (both_nchw, spatial)
  logits = Transpose <perm = [0, 2, 3, 1]> (logits_nchw)
  map = Sigmoid (logits)
  gated = Mul (channel, map)
"""
_TAIL = """
  gated_nchw = Transpose <perm = [0, 3, 1, 2]> (gated)
  last_nchw = Conv <kernel_shape = [1, 1]> (gated_nchw, last)
  output = Transpose <perm = [0, 2, 3, 1]> (last_nchw)
}
"""


def keras_network(gate):
    """The ONNX model of one gate, ``se`` or ``cbam``, between two convolutions."""
    pools = _DENSE.format("avg", "Mean")
    if gate == "cbam":
        pools += _DENSE.format("max", "Max") + _CBAM
    else:
        pools += _SE
    model = parser.parse_model(_HEAD + pools + _TAIL)
    random = np.random.default_rng(0)
    used = {name for node in model.graph.node for name in node.input}
    for name, shape in _SHAPES.items():
        if name in used:
            array = random.standard_normal(shape).astype(np.float32) / 4
            model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model
