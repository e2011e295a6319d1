"""The nodes of `gates.operators` and their bodies: ONNX local functions of standard ops.

Any runtime that lacks our kernel inlines the body, so a file with gate nodes runs everywhere.

A body computes in FP32 whatever the type of X and R is, and rounds to it once, at the end; runtimes
drop the casts where X is FP32. It is written for the speed of ONNX Runtime on CPUs, which keeps
activations in a blocked layout between convolutions (`benchmarks/gate_body.py` measures it):

- Pooling over positions is GlobalAveragePool and GlobalMaxPool, and the MLP is 1x1 convolutions,
  because these have kernels for the blocked layout; ReduceMean, ReduceMax and Gemm would first
  bring the whole map back to rows.
- W1 is linear: W1·a + b1 + W1·m + b1 = W1·(a + m) + 2·b1 saves one of four products.
- Maximum and mean over channels are taken in two steps, over `GROUPS` groups and then over their
  results. In one step, a batch of one image takes a slow path that uses one thread.
- No shape is computed from X: the sizes that Reshape copies (0) or infers (-1) remain known;
  without that, ONNX Runtime would not reuse buffers in place.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable

import numpy as np
import onnx_ir as ir
from onnx import parser

from cbam_deploy.gates.description import CBAM, SE, GateSpec
from cbam_deploy.gates.operators import DOMAIN, GATE_OPERATORS, VERSION, operator_of
from cbam_deploy.graphs.gate_body_opsets import in_words_of

GROUPS = 8
_FUNCTIONS_SINCE = 8  # Version of ONNX's file format.
FIRST_OPSET = 11

_CHANNEL_START = """
  x = Cast <to = 1> (X)
  height_width = Constant <value_ints = [2, 3]> ()
  w0 = Unsqueeze (W0, height_width)
  w1 = Unsqueeze (W1, height_width)
  mean = GlobalAveragePool (x)
  mean_squeezed = Conv (mean, w0, B0)
  mean_hidden = Relu (mean_squeezed)
"""

_SE_CHANNEL = """
  channel_logits = Conv (mean_hidden, w1, B1)
  channel_attention = Sigmoid (channel_logits)
  gated = Mul (x, channel_attention)
"""

_CBAM_CHANNEL = """
  peak = GlobalMaxPool (x)
  peak_squeezed = Conv (peak, w0, B0)
  peak_hidden = Relu (peak_squeezed)
  hidden = Add (mean_hidden, peak_hidden)
  two = Constant <value_float = 2.0> ()
  b1_twice = Mul (B1, two)
  channel_logits = Conv (hidden, w1, b1_twice)
  channel_attention = Sigmoid (channel_logits)
  refined = Mul (x, channel_attention)
"""

_POOL_IN_GROUPS = f"""
  channels = Constant <value_ints = [1]> ()
  in_group = Constant <value_ints = [2]> ()
  grouped_shape = Constant <value_ints = [0, {GROUPS}, -1, 0, 0]> ()
  lifted = Unsqueeze (refined, channels)
  grouped = Reshape (lifted, grouped_shape)
  group_peaks = ReduceMax <keepdims = 0> (grouped, in_group)
  group_means = ReduceMean <keepdims = 0> (grouped, in_group)
  peaks = ReduceMax (group_peaks, channels)
  means = ReduceMean (group_means, channels)
"""

_POOL_AT_ONCE = """
  channels = Constant <value_ints = [1]> ()
  peaks = ReduceMax (refined, channels)
  means = ReduceMean (refined, channels)
"""

_CBAM_SPATIAL = """
  descriptor = Concat <axis = 1> (peaks, means)
  spatial_logits = Conv <auto_pad = "SAME_UPPER"> (descriptor, WS, BS)
  spatial_attention = Sigmoid (spatial_logits)
  gated = Mul (refined, spatial_attention)
"""

# What each gate computes, in words and in operators, the pools over channels left open.
_BODIES: dict[GateSpec, tuple[str, str]] = {
    CBAM: (
        "Y = X' * Ms(X') with X' = X * Mc(X): channel, then spatial attention of CBAM.",
        _CHANNEL_START + _CBAM_CHANNEL + "{pool}" + _CBAM_SPATIAL,
    ),
    SE: (
        "Y = X * sigmoid(W1 ReLU(W0 mean(X) + B0) + B1): Squeeze-and-Excitation.",
        _CHANNEL_START + _SE_CHANNEL,
    ),
}

_END = """
  Y = CastLike (gated, X)
"""

_END_ADD_RELU = """
  r = Cast <to = 1> (R)
  sum = Add (gated, r)
  rectified = Relu (sum)
  Y = CastLike (rectified, X)
"""


def gate_function(
    op: str, opset: int, *, grouped: bool = True, dtype: ir.DataType = ir.DataType.FLOAT
) -> ir.Function:
    """The body of `op`, one of `GATE_OPERATORS`.

    Args:
        op: name of the operator.
        opset: version of ONNX's own operators, at least `FIRST_OPSET`; it must be the model's, as
            ONNX allows a function no other than where all its operators are the same in both.
        grouped: pool over channels in groups; every map's C must then be a multiple of `GROUPS`.
        dtype: type of the maps. It matters only where `needs_dtype`, else the body takes any.
    """
    operator = GATE_OPERATORS[op]
    doc, body = _BODIES[operator.gate]
    body = body.replace("{pool}", _POOL_IN_GROUPS if grouped else _POOL_AT_ONCE)
    if operator.residual:
        doc = f"Y = ReLU({operator.kind}Gate(X) + R)."
    body += _END_ADD_RELU if operator.residual else _END
    header = f'<opset_import: ["" : {opset}], domain: "{DOMAIN}">'
    inputs = ", ".join(operator.inputs)
    proto = parser.parse_function(f"{header}\n{op} ({inputs}) => (Y)\n{{{body}}}")
    function = ir.serde.deserialize_function(in_words_of(opset, proto, dtype))
    function.doc_string = doc
    return function


def gate_nodes(model: ir.Model) -> list[ir.Node]:
    """Gate nodes of the main graph, in its order."""
    return [node for node in model.graph if operator_of(node)]


def gate_counts(model: ir.Model) -> dict[str, int]:
    """Number of gate nodes by operator."""
    return dict(sorted(Counter(node.op_type for node in gate_nodes(model)).items()))


def foreign_operators(model: ir.Model) -> dict[str, str]:
    """Operators that bear the name of one of ours, and why they are another one in `model`.

    A later version, or whoever edited the file, may mean something else by a name. What its nodes
    compute is what the file says, so neither our body nor our kernel may take their place.
    """
    version = model.opset_imports.get(DOMAIN, VERSION)
    if version != VERSION:
        reason = f"the file uses version {version} of {DOMAIN}, not {VERSION}"
        return dict.fromkeys(GATE_OPERATORS, reason)
    return {
        function.name: f"{function.name} has another body in the file than in this version"
        for function in model.functions.values()
        if function.domain == DOMAIN and function.name in GATE_OPERATORS and not _is_ours(function)
    }


def _is_ours(function: ir.Function) -> bool:
    """Whether a body is one that `gate_function` writes, but for names and the order of nodes."""
    opset = function.opset_imports.get("", 0)
    if opset < FIRST_OPSET:
        return False
    numbers: dict[Hashable, int] = {}
    found = _meaning(function, numbers)
    dtypes = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    return any(
        _meaning(gate_function(function.name, opset, grouped=grouped, dtype=dtype), numbers)
        == found
        for grouped, dtype in itertools.product((True, False), dtypes)
    )


def _meaning(function: ir.Function, numbers: dict[Hashable, int]) -> tuple[int, ...]:
    """Number of inputs, and of each output the number in `numbers` of the expression it is."""
    known: dict[ir.Value | None, int] = {None: -1}

    def number(value: ir.Value | None, expression: Hashable) -> None:
        known[value] = numbers.setdefault(expression, len(numbers))

    for index, value in enumerate(function.inputs):
        number(value, index)
    for node in function:
        operands = tuple(known.get(value, -2) for value in node.inputs)
        attributes = sorted(node.attributes.items())
        of_one = node.op_type == "Constant"  # Its one attribute has several names.
        read = tuple(
            ("" if of_one else name, entry.ref_attr_name, _plain(entry))
            for name, entry in attributes
        )
        for index, value in enumerate(node.outputs):
            number(value, (index, node.op_identifier(), operands, read))
    return (len(function.inputs), *(known.get(value, -2) for value in function.outputs))


def _plain(attribute: ir.Attr) -> Hashable:
    """What an attribute is, to be compared; a graph is like no other."""
    value, kind = attribute.value, attribute.type
    if kind in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
        value = ir.tensor(np.array(value, np.float32))
    elif kind in (ir.AttributeType.INT, ir.AttributeType.INTS):
        value = ir.tensor(np.array(value, np.int64))
    if isinstance(value, ir.TensorProtocol):
        return (value.dtype, tuple(value.shape.numpy()), value.tobytes())
    return (kind, value if isinstance(value, str) else id(value))


def set_functions(model: ir.Model, dtype: ir.DataType = ir.DataType.FLOAT) -> None:
    """Give the operators of the model's gate nodes their bodies, and import their domain.

    Those of `foreign_operators` keep the body they have.

    Args:
        model: whose gates all have maps of `dtype` where `needs_dtype`.
        dtype: type of the maps. FP16 is fast on GPUs, whose engines are smaller without groups.
    """
    nodes, foreign = gate_nodes(model), foreign_operators(model)
    everywhere = itertools.chain(model.graph.all_nodes(), *model.functions.values())
    called = [node for node in everywhere if operator_of(node)]
    grouped = dtype == ir.DataType.FLOAT and all(_channels(node) % GROUPS == 0 for node in called)
    opset = model.opset_imports[""]
    for op in sorted({node.op_type for node in nodes} - foreign.keys()):
        function = gate_function(op, opset, grouped=grouped, dtype=dtype)
        model.functions[function.identifier()] = function
    if nodes:
        model.opset_imports[DOMAIN] = VERSION
        model.ir_version = max(model.ir_version, _FUNCTIONS_SINCE)


def _channels(node: ir.Node) -> int:
    """C, the length of B1."""
    operator = operator_of(node)
    b1 = operator.by_name(node.inputs).get("B1") if operator else None
    if b1 is None or b1.shape is None or not isinstance(b1.shape[0], int):
        return 1  # Fits no groups: unknown counts are pooled at once.
    return b1.shape[0]
