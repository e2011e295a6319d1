"""Small networks written as ONNX text, and how to run them."""

from __future__ import annotations

import cProfile

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import parser

from cbam_deploy.exporters.half.rounding import round_in_fp32
from cbam_deploy.graphs.gate_functions import set_functions

# FP16 rounds to 11 bits. A value passes at most five roundings here (input, two convolutions, gate,
# classifier), weights one each; errors of sums of n terms grow with the root of n.
FP16_TOLERANCE = 10 * 2.0**-11


def network(text: str, *, opset: int = 18, **weights: np.ndarray) -> ir.Model:
    """`text` is ``(inputs) => (outputs) {nodes}``; types of inner values are inferred."""
    header = f'<ir_version: 10, opset_import: ["" : {opset}, "cbam_deploy" : 1]>'
    proto = parser.parse_model(f"{header}\nnet {text}")
    for name, value in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    model = ir.from_proto(proto)
    set_functions(model)
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model)))


def run_like_gpu(model: ir.Model, **feeds: np.ndarray):
    """Outputs in ONNX Runtime, with every FP16 value rounded to FP16."""
    check(model)
    rounding = model.clone()
    round_in_fp32(rounding)
    return run(rounding, **feeds)


def check(model: ir.Model) -> None:
    """ONNX's full check of types and shapes."""
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def run(model: ir.Model, *, optimize: bool = True, **feeds: np.ndarray):
    """Outputs in ONNX Runtime, which on a CPU rounds no value between two nodes to FP16."""
    check(model)
    proto = ir.to_proto(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if not optimize:
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def nodes(model: ir.Model, op: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op]


def dtypes(model: ir.Model) -> dict[str, str]:
    """``FLOAT``, ``FLOAT16``, ... by name of a value of the main graph."""
    values = ir.convenience.create_value_mapping(model.graph)
    return {name: value.dtype.name for name, value in values.items() if value.dtype is not None}


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    return values.astype(np.float32)


def count_calls(function, *arguments) -> int:
    """How many Python functions run: what a computation takes, the same on every machine."""
    profile = cProfile.Profile(builtins=False)
    profile.runcall(function, *arguments)
    return sum(entry.callcount for entry in profile.getstats())


def relative_error(actual, expected):
    return np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max()


def gate_weights(channels: int) -> dict[str, np.ndarray]:
    c, hidden = channels, max(1, channels // 4)
    shapes = {
        "gw0": (hidden, c),
        "gb0": (hidden,),
        "gw1": (c, hidden),
        "gb1": (c,),
        "gws": (1, 2, 7, 7),
        "gbs": (1,),
    }
    return {
        name: normal(*shape, seed=i, scale=0.3) for i, (name, shape) in enumerate(shapes.items())
    }


GATED = """(float[batch, 3, 16, 16] input) => (float[batch, 5] logits)
{
  stem = Conv (input, w1, b1)
  relu = Relu (stem)
  branch = Conv (relu, w2, b2)
  gated = cbam_deploy.CbamGateAddRelu (branch, relu, gw0, gb0, gw1, gb1, gws, gbs)
  mean = ReduceMean <keepdims = 0> (gated, axes)
  logits = Gemm <transB = 1> (mean, fc, fb)
}"""


def gated() -> ir.Model:
    return network(
        GATED,
        w1=normal(16, 3, 1, 1, seed=10, scale=0.5),
        b1=normal(16, seed=11),
        w2=normal(16, 16, 1, 1, seed=12, scale=0.3),
        b2=normal(16, seed=13),
        fc=normal(5, 16, seed=14, scale=0.3),
        fb=normal(5, seed=15),
        axes=np.array([2, 3]),
        **gate_weights(16),
    )


CONCATENATED = """(float[batch, 2, 4, 4] input) => (float[batch, 4, 4, 4] y)
{
  q = QuantizeLinear (input, s, zero)
  a = DequantizeLinear (q, s, zero)
  p = QuantizeLinear (input, t, zero)
  b = DequantizeLinear (p, t, zero)
  %s
  q1 = QuantizeLinear (c, s, zero)
  x1 = DequantizeLinear (q1, s, zero)
  y = Conv (x1, w)
}"""


def concatenated(between: str = "c = Concat <axis = 1> (a, b)") -> ir.Model:
    """Quantized maps a and b are joined to c, which is quantized again.

    ONNX Runtime makes that one operation of integers, which takes no FP16 scales.
    """
    return network(
        CONCATENATED % between,
        s=np.float32(0.02),
        t=np.float32(0.01),
        zero=np.int8(0),
        w=normal(4, 4, 1, 1),
        shape=np.array([0, 2, 4, 4]),
        split=np.array([0, 1, 2, 4, 4]),
    )
