"""The bodies of the operators of `gates.operators`: ONNX local functions of standard operators.

Any runtime that lacks our kernel inlines the body, so a file with gate nodes runs everywhere.

A body computes in FP32 whatever the type of X and R is, and rounds to it once, at the end; runtimes
drop the casts where X is FP32. It is written for the speed of ONNX Runtime on CPUs, which keeps
activations in a blocked layout between convolutions (`benchmarks/gate_body.py` measures it):

- Pooling over positions is GlobalAveragePool and GlobalMaxPool, and the layers are 1x1
  convolutions, because these have kernels for the blocked layout; ReduceMean, ReduceMax and Gemm
  would first bring the whole map back to rows.
- The last layer is linear: W1·a + b1 + W1·m + b1 = W1·(a + m) + 2·b1 saves one of four products.
- Maximum and mean over channels are taken in two steps, over `GROUPS` groups and then over their
  results. In one step, a batch of one image takes a slow path that uses one thread.
- No shape is computed from X: the sizes that Reshape copies (0) or infers (-1) remain known;
  without that, ONNX Runtime would not reuse buffers in place.

Constants are tensors: tools that rewrite models change the other kinds of Constant.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx import parser

from cbam_deploy.gates.description import Activation, GateFunction, GateSpec
from cbam_deploy.gates.operators import DOMAIN, GateOperator, operator_named
from cbam_deploy.graphs.gate_body_opsets import in_words_of

GROUPS = 8
FIRST_OPSET = 11
_SAME = 'auto_pad = "SAME_UPPER"'


def gate_function(
    op: str, opset: int, *, grouped: bool = True, dtype: ir.DataType = ir.DataType.FLOAT
) -> ir.Function:
    """The body of the operator `op`.

    Args:
        op: name of the operator.
        opset: version of ONNX's own operators, at least `FIRST_OPSET`; it must be the model's, as
            ONNX allows a function no other than where all its operators are the same in both.
        grouped: pool over channels in groups; every map's C must then be a multiple of `GROUPS`.
        dtype: type of the maps. It matters only where `needs_dtype`, else the body takes any.
    """
    operator = operator_named(op)
    assert operator is not None
    body = _Body(operator.gate, grouped)
    y = body.gated("x")
    if operator.residual:
        y = body.add("sum", f"Add ({y}, {body.add('r', 'Cast <to = 1> (R)')})")
    if operator.activation != "none":
        y = body.activated("rectified", operator.activation, y)
    body.add("Y", f"CastLike ({y}, X)")
    header = f'<opset_import: ["" : {opset}], domain: "{DOMAIN}">'
    inputs = ", ".join(operator.inputs)
    lines = "\n".join(body.lines)
    proto = parser.parse_function(f"{header}\n{op} ({inputs}) => (Y)\n{{\n{lines}\n}}")
    function = ir.serde.deserialize_function(in_words_of(opset, proto, dtype))
    for node in function:  # Some tools that inline name nodes after these, and want no name twice.
        node.name = node.outputs[0].name
    function.doc_string = _doc(operator)
    return function


def _doc(operator: GateOperator) -> str:
    of_x = {
        "channel": "X * Mc(X)",
        "spatial": "X * Ms(X)",
        "channel-spatial": "X' * Ms(X') with X' = X * Mc(X)",
        "spatial-channel": "X' * Mc(X') with X' = X * Ms(X)",
        "parallel": "X * Mc(X) * Ms(X)",
        "sum": "X * Mc(X) + X * Ms(X)",
    }[operator.gate.arrangement]
    behind = f", then {operator.behind}" if operator.behind else ""
    return f"Y = {of_x}{behind}; Mc is the channel attention and Ms the spatial attention."


class _Body:
    """The lines of one body, as ONNX's parser reads them."""

    def __init__(self, gate: GateSpec, grouped: bool) -> None:
        self._gate, self._grouped = gate, grouped
        self.lines = ["x = Cast <to = 1> (X)"]

    def add(self, name: str, call: str) -> str:
        """A line; one that is there is not written twice."""
        line = f"{name} = {call}"
        if line not in self.lines:
            self.lines.append(line)
        return name

    def integers(self, name: str, *values: int) -> str:
        """A Constant of int64."""
        numbers = ", ".join(map(str, values))
        return self.add(name, f"Constant <value = int64[{len(values)}] {{{numbers}}}> ()")

    def number(self, name: str, value: float) -> str:
        """A Constant of one float32."""
        return self.add(name, f"Constant <value = float {{{value!r}}}> ()")

    def gated(self, x: str) -> str:
        """The map `x` times its attentions."""
        arrangement = self._gate.arrangement
        if arrangement == "sum":
            both = self.add("attention", f"Add ({self._channel(x)}, {self._spatial(x)})")
            return self.add("gated", f"Mul ({x}, {both})")
        if arrangement == "parallel":
            refined = self.add("refined", f"Mul ({x}, {self._channel(x)})")
            return self.add("gated", f"Mul ({refined}, {self._spatial(x)})")
        parts = arrangement.split("-")
        for part in parts:
            attention = self._channel(x) if part == "channel" else self._spatial(x)
            x = self.add("gated" if part == parts[-1] else "refined", f"Mul ({x}, {attention})")
        return x

    def activated(self, name: str, activation: Activation, z: str) -> str:
        """An activation of the value `z`."""
        if activation == "relu":
            return self.add(name, f"Relu ({z})")
        if activation == "leaky_relu":
            return self.add(name, f"LeakyRelu <alpha = 0.01> ({z})")
        if activation == "gelu":
            half, half_root = self.number("half", 0.5), self.number("half_root", 0.5**0.5)
            scaled = self.add(f"{name}_scaled", f"Mul ({z}, {half_root})")
            erf = self.add(f"{name}_erf", f"Erf ({scaled})")
            half_erf = self.add(f"{name}_half_erf", f"Mul ({erf}, {half})")
            share = self.add(f"{name}_share", f"Add ({half_erf}, {half})")
            return self.add(name, f"Mul ({z}, {share})")
        functions: dict[Activation, GateFunction] = {
            "silu": "sigmoid",
            "hard_swish": "hard_sigmoid",
        }
        share = self._gate_of(f"{name}_gate", functions[activation], z)
        return self.add(name, f"Mul ({z}, {share})")

    def _gate_of(self, name: str, function: GateFunction, z: str) -> str:
        words = {
            "sigmoid": "Sigmoid",
            "hard_sigmoid": f"HardSigmoid <alpha = {1 / 6!r}, beta = 0.5>",
        }
        return self.add(name, f"{words[function]} ({z})")

    def _channel(self, x: str) -> str:
        """Mc [N, C, 1, 1] of `x`."""
        gate = self._gate
        pooled = []
        if gate.channel_pool != "max":
            pooled.append(self.add("mean", f"GlobalAveragePool ({x})"))
        if gate.channel_pool != "avg":
            pooled.append(self.add("peak", f"GlobalMaxPool ({x})"))
        if gate.join == "pools":
            both = self.add("both", f"Add ({', '.join(pooled)})")
            pooled = [self.add("pooled", f"Mul ({both}, {self.number('half', 0.5)})")]
        hidden = [self._hidden(statistic) for statistic in pooled]
        if gate.join == "gates":
            gates = []
            for one in hidden:
                logits = self._last_layer(f"{one}_logits", one, branches=1)
                gates.append(self._gate_of(f"{one}_attention", gate.channel_gate, logits))
            return self.add("channel_attention", f"Add ({', '.join(gates)})")
        one = self.add("hidden", f"Add ({', '.join(hidden)})") if len(hidden) > 1 else hidden[0]
        logits = self._last_layer("channel_logits", one, branches=len(hidden))
        return self._gate_of("channel_attention", gate.channel_gate, logits)

    def _hidden(self, statistic: str) -> str:
        """What the last layer sees of a statistic [N, C, 1, 1]."""
        if self._gate.mixer != "mlp":
            return statistic
        w0 = self.add("w0", f"Unsqueeze (W0, {self.integers('height_width', 2, 3)})")
        squeezed = self.add(f"{statistic}_squeezed", f"Conv ({statistic}, {w0}, B0)")
        return self.activated(f"{statistic}_hidden", self._gate.activation, squeezed)

    def _last_layer(self, name: str, hidden: str, *, branches: int) -> str:
        """Logits [N, C, 1, 1] of the sum of as many `branches`, each of which has the bias."""
        conv = self._gate.mixer == "conv"
        bias = "BC" if conv else "B1"
        if branches == 2:
            bias = self.add(f"{bias.lower()}_twice", f"Mul ({bias}, {self.number('two', 2.0)})")
        if not conv:
            w1 = self.add("w1", f"Unsqueeze (W1, {self.integers('height_width', 2, 3)})")
            return self.add(name, f"Conv ({hidden}, {w1}, {bias})")
        wc = self.add("wc", f"Unsqueeze (WC, {self.integers('width', 3)})")
        in_a_row = self.add(
            f"{hidden}_in_a_row", f"Reshape ({hidden}, {self.integers('row', 0, 1, -1, 1)})"
        )
        mixed = self.add(f"{name}_in_a_row", f"Conv <{_SAME}> ({in_a_row}, {wc}, {bias})")
        return self.add(name, f"Reshape ({mixed}, {self.integers('column', 0, -1, 1, 1)})")

    def _spatial(self, x: str) -> str:
        """Ms [N, 1, H, W] of `x`."""
        gate = self._gate
        if gate.spatial == "conv1x1":
            descriptor = self.add("descriptor", f"Conv ({x}, WD)")
        else:
            peaks = [self._pooled(x, "peaks", "ReduceMax")] if gate.spatial != "avg" else []
            means = [self._pooled(x, "means", "ReduceMean")] if gate.spatial != "max" else []
            descriptor = (peaks + means)[0]
            if len(peaks + means) > 1:
                descriptor = self.add("descriptor", f"Concat <axis = 1> ({peaks[0]}, {means[0]})")
        logits = self.add("spatial_logits", f"Conv <{_SAME}> ({descriptor}, WS, BS)")
        return self._gate_of("spatial_attention", gate.spatial_gate, logits)

    def _pooled(self, x: str, name: str, op: str) -> str:
        """One statistic over the channels of `x`, [N, 1, H, W]."""
        channels = self.integers("channels", 1)
        if not self._grouped:
            return self.add(name, f"{op} ({x}, {channels})")
        shape = self.integers("grouped_shape", 0, GROUPS, -1, 0, 0)
        lifted = self.add("lifted", f"Unsqueeze ({x}, {channels})")
        grouped = self.add("grouped", f"Reshape ({lifted}, {shape})")
        in_group = self.integers("in_group", 2)
        of_groups = self.add(f"group_{name}", f"{op} <keepdims = 0> ({grouped}, {in_group})")
        return self.add(name, f"{op} ({of_groups}, {channels})")
