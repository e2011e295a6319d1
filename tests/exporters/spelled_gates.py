"""A gate of standard ops in any of its spellings, as an ONNX model from input to output."""

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

CHANNELS, HIDDEN = 8, 4
BATCH, HEIGHT, WIDTH = 2, 6, 5
AXES_AS_INPUT = {"ReduceMean": 18, "ReduceMax": 18, "Unsqueeze": 13, "Squeeze": 13}

CHOICES = {
    "opset": tuple(range(11, 25)),
    "half": (False, True),
    "fixed": ("channels", "map", "all"),  # What is known of the input's sizes.
    "gate": ("cbam", "se"),
    "pool": ("reduce", "steps", "global", "window", "reshape", "flatten_all", "topk"),
    "layer": ("gemm", "gemm_untransposed", "matmul", "conv"),
    "bias": ("inside", "added", "none"),
    "weights": ("shared", "copies", "transposed", "stated"),
    "sum_first": (False, True),
    "channel_peak": ("reduce", "topk", "argmax", "squeezed", "reshape"),
    "mean_first": (False, True),
    "kernel_size": (3, 7),
    "padding": ("pads", "auto"),
    "spatial_bias": ("inside", "added", "none"),
    "norm": (False, True),
    "sigmoid": ("node", "div", "reciprocal", "pow", "tanh", "tanh_affine"),
    "spread": ("unsqueeze", "reshape", "expand", "expand_shape", "expand_known"),
    "swapped": (False, True),
    "behind": ("nothing", "add", "add_relu"),
    "residual": ("input", "map", "copy"),  # `map` is what is gated.
    "copied": ("nothing", "pooled", "scaled", "both"),  # What is read through an Identity.
    "view": ("none", "identity", "dropout"),
}
# Changes that make it another function, of which no gate node may be made, and the reason.
MISTAKES = {
    "other_mlp": "have different MLPs",
    "leaky": "is made by LeakyRelu, not by Relu",
    "hard_sigmoid": "is made by HardSigmoid, not by Sigmoid",
    "clipped_sigmoid": "is made by Div, not by Sigmoid",
    "warmer_sigmoid": "is made by Mul, not by Gemm or MatMul or Conv",
    "no_activation": "is made by Gemm, not by Relu",
    "minimum": "is made by ReduceMin, not by a mean or a maximum",
    "same_pool_twice": "pool the mean",
    "third_branch": "is a sum of 3 branches; a gate has two at most",
    "layers_of_their_own": "and neither is a constant bias",
    "half_the_map": "but v0_0 is scaled",
    "pooled_elsewhere": "but v0_0 is scaled",
    "squared": "but v0_0 is scaled",
    "wrongly_reshaped": "its replacement differs",
    "smallest": "is not the one largest value",
    "used_elsewhere": "is also used by",
    "shown": "is an output of the graph",
    "gated_twice": "is not fused alone",
    "dilated": "is a dilated convolution",
    "strided": "is a convolution with a stride",
    "one_sided": "is not padded by 3 all around",
    "kernel_of_five": "is a convolution of shape [1, 2, 5, 5]",
    "spatial_maximum_twice": "is not the maximum and the mean",
    "relu_before_spatial_sigmoid": "is made by Relu, not by Conv",
    "overridable_weight": "is not constant: it is an input of the graph",
    "normalized_logits": "is made by Softmax, not by Gemm",
    "sum_of_sigmoids": "is made by Add, not by Sigmoid",
}


@dataclass(frozen=True)
class Spelling:
    """One choice of each kind; the first is the plainest."""

    opset: int = 18
    half: bool = False
    fixed: str = "channels"
    gate: str = "cbam"
    pool: str = "reduce"
    layer: str = "gemm"
    bias: str = "inside"
    weights: str = "shared"
    sum_first: bool = False
    channel_peak: str = "reduce"
    mean_first: bool = False
    kernel_size: int = 7
    padding: str = "pads"
    spatial_bias: str = "inside"
    norm: bool = False
    sigmoid: str = "node"
    spread: str = "unsqueeze"
    swapped: bool = False
    behind: str = "nothing"
    residual: str = "input"
    copied: str = "nothing"
    view: str = "none"
    mistake: str | None = None

    def op(self):
        """The operator that computes it."""
        op = {"cbam": "CbamGate", "se": "SeGate"}[self.gate]
        return f"{op}AddRelu" if self.behind == "add_relu" else op


@dataclass
class Writer:
    """A graph that is being written."""

    spelling: Spelling
    nodes: list = field(default_factory=list)
    initializers: list = field(default_factory=list)
    extra_inputs: list = field(default_factory=list)
    extra_outputs: list = field(default_factory=list)
    shared: dict = field(default_factory=dict)

    @property
    def dtype(self):
        return np.dtype(np.float16 if self.spelling.half else np.float32)

    def add(self, op, *inputs, outputs=1, **attributes):
        """Add a node; return the name of its first output."""
        number = len(self.nodes)
        names = [f"v{number}_{index}" for index in range(outputs)]
        since = AXES_AS_INPUT.get(op)
        if since is not None and self.spelling.opset >= since and "axes" in attributes:
            inputs = (*inputs, self.integers(attributes.pop("axes")))
        self.nodes.append(helper.make_node(op, inputs, names, name=f"n{number}", **attributes))
        return names[0]

    def array(self, array):
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def integers(self, values):
        return self.array(np.array(values, np.int64))

    def floats(self, array):
        return self.array(np.asarray(array).astype(self.dtype))

    def weight(self, key, array):
        """A weight in one of the ways to store one."""
        how = self.spelling.weights
        if how == "copies" or self.spelling.mistake == "other_mlp":
            changed = self.spelling.mistake == "other_mlp" and key in self.shared
            self.shared[key] = None
            return self.floats(array + (0.05 if changed else 0))
        if key not in self.shared:
            self.shared[key] = self._stored(array)
        return self.shared[key]

    def _stored(self, array):
        array = np.asarray(array).astype(self.dtype)
        if self.spelling.weights == "transposed" and array.ndim == 2:
            return self.add("Transpose", self.array(array.T), perm=[1, 0])
        if self.spelling.weights == "stated":
            return self.add("Constant", value=numpy_helper.from_array(array))
        name = self.array(array)
        if self.spelling.mistake == "overridable_weight":
            kind = helper.np_dtype_to_tensor_dtype(self.dtype)
            self.extra_inputs.append(helper.make_tensor_value_info(name, kind, array.shape))
        return name

    def scalar(self, value):
        return self.floats(np.array(value))


def write(spelling, seed=0):
    """The model: ``input`` [N, C, H, W] is negated, gated, and comes out as ``output``."""
    w = Writer(spelling)
    random = np.random.default_rng(seed)
    x = w.add("Neg", "input")
    scaled, pooled = _reads(w, x)
    other = w.add("Abs", "input") if spelling.mistake == "pooled_elsewhere" else pooled
    attention = _channel_attention(w, x, other, random)
    y = _scale(w, scaled, attention)
    if spelling.mistake == "gated_twice":
        y = w.add("Mul", y, x)
    if spelling.gate == "cbam":
        scaled, pooled = _reads(w, y)
        y = _scale(w, scaled, _spatial_attention(w, pooled, random))
    if spelling.behind != "nothing":
        residual = "input" if spelling.residual == "input" else x
        residual = w.add("Identity", x) if spelling.residual == "copy" else residual
        y = w.add("Add", *((residual, y) if spelling.swapped else (y, residual)))
        y = w.add("Relu", y) if spelling.behind == "add_relu" else y
    w.nodes.append(helper.make_node("Identity", [y], ["output"], name="last"))
    return _model(w)


def _reads(w, x):
    """What is scaled and what is pooled: the map, or a copy of it."""
    copied = w.spelling.copied
    if copied == "nothing":
        return x, x
    copy = w.add("Identity", x)
    return (x if copied == "pooled" else copy), (x if copied == "scaled" else copy)


def _model(w):
    s = w.spelling
    sizes = {
        "channels": ["N", CHANNELS, "H", "W"],
        "map": ["N", CHANNELS, HEIGHT, WIDTH],
        "all": [BATCH, CHANNELS, HEIGHT, WIDTH],
    }[s.fixed]
    kind = helper.np_dtype_to_tensor_dtype(w.dtype)
    graph = helper.make_graph(
        w.nodes,
        "spelled",
        [helper.make_tensor_value_info("input", kind, sizes), *w.extra_inputs],
        [
            helper.make_tensor_value_info("output", kind, [None] * 4),
            *(helper.make_tensor_value_info(name, kind, [None] * 4) for name in w.extra_outputs),
        ],
        w.initializers,
    )
    ir_version = 6 if s.opset == 11 else 8
    opsets = [helper.make_opsetid("", s.opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
    onnx.checker.check_model(model)
    return model


def feeds(spelling, batch=BATCH, height=HEIGHT, width=WIDTH):
    """An input that the model takes, as near the given sizes as it allows."""
    if spelling.fixed == "all":
        batch = BATCH
    if spelling.fixed != "channels":
        height, width = HEIGHT, WIDTH
    random = np.random.default_rng(batch * height)
    x = random.standard_normal((batch, CHANNELS, height, width))
    return {"input": x.astype(np.float16 if spelling.half else np.float32)}


def _channel_attention(w, x, other, random):
    s = w.spelling
    w0, w1 = (random.normal(0, 0.5, shape) for shape in ((HIDDEN, CHANNELS), (CHANNELS, HIDDEN)))
    b0, b1 = random.normal(0, 0.5, HIDDEN), random.normal(0, 0.5, CHANNELS)
    pools = ["mean"] if s.gate == "se" else ["maximum", "mean"]
    if s.mistake == "same_pool_twice":
        pools = ["mean", "mean"]
    if s.mean_first:
        pools.reverse()

    def hidden(pool):
        squeezed = _linear(w, _vector(w, other, pool), "w0", w0, b0)
        if s.mistake == "leaky":
            return w.add("LeakyRelu", squeezed, alpha=0.1)
        return squeezed if s.mistake == "no_activation" else w.add("Relu", squeezed)

    if s.mistake == "third_branch":  # Such as the authors' `lp` and `lse`.
        *terms, last = (_linear(w, hidden(pool), "w1", w1, b1) for pool in (*pools, "lp"))
        logits = w.add("Add", terms[0] if len(terms) == 1 else w.add("Add", *terms), last)
    elif s.mistake == "layers_of_their_own":
        layers = [_linear(w, _vector(w, other, p), p, w0, b0) for p in ("maximum", "mean")]
        logits = _linear(w, w.add("Relu", w.add("Add", *layers)), "w1", w1, b1)
    elif s.sum_first and len(pools) == 2 and s.mistake != "sum_of_sigmoids":
        both = w.add("Add", *map(hidden, pools))
        logits = _linear(w, both, "w1", w1, 2 * b1)
    else:
        branches = [_linear(w, hidden(pool), "w1", w1, b1) for pool in pools]
        if s.mistake == "sum_of_sigmoids":
            branches = [w.add("Sigmoid", branch) for branch in branches]
        logits = w.add("Add", *branches) if len(branches) == 2 else branches[0]
    if s.mistake == "normalized_logits":
        logits = w.add("Softmax", logits, axis=1)
    attention = logits if s.mistake == "sum_of_sigmoids" else _sigmoid(w, logits)
    if s.layer != "conv":
        attention = _unflat(w, attention)
    return _spread(w, attention, x)


def _vector(w, x, pool):
    """What the MLP takes of a map."""
    pooled = _pool_positions(w, x, pool)
    return pooled if w.spelling.layer == "conv" else _flat(w, pooled)


def _pool_positions(w, x, pool):
    """[N, C, 1, 1] or [N, C]."""
    s = w.spelling
    if pool == "lp":
        return w.add("GlobalLpPool", x)
    reduce = {"mean": "ReduceMean", "maximum": "ReduceMax"}[pool]
    how = s.pool
    if s.mistake == "minimum" and pool == "maximum":
        axes = {"axes": [2, 3]} if s.opset < 18 else {}
        return w.add("ReduceMin", x, *([] if axes else [w.integers([2, 3])]), keepdims=1, **axes)
    if s.mistake == "wrongly_reshaped":
        mixed = w.add("Reshape", x, w.integers([0, -1, CHANNELS]))
        return w.add(reduce, mixed, axes=[1], keepdims=0)
    if s.mistake == "half_the_map":
        starts, ends, axes = (w.integers([value]) for value in (0, 3, 2))
        x = w.add("Slice", x, starts, ends, axes)
    if s.mistake == "squared":
        x = w.add("Mul", x, x)
    if how == "global":
        return w.add({"mean": "GlobalAveragePool", "maximum": "GlobalMaxPool"}[pool], x)
    if how == "window" and s.fixed != "channels":
        op = {"mean": "AveragePool", "maximum": "MaxPool"}[pool]
        height = 3 if s.mistake == "half_the_map" else HEIGHT
        return w.add(op, x, kernel_shape=[height, WIDTH], strides=[height, WIDTH])
    if how == "steps":
        return w.add(reduce, w.add(reduce, x, axes=[3], keepdims=1), axes=[2], keepdims=1)
    if how == "reshape" or (how == "topk" and pool == "maximum"):
        x = w.add("Reshape", x, w.integers([0, 0, -1]))
        if how == "topk":
            return w.add("Squeeze", w.add("TopK", x, w.integers([1]), outputs=2), axes=[2])
        return w.add(reduce, x, axes=[-1], keepdims=0)
    if how == "flatten_all" and s.fixed == "all":
        size = 3 * WIDTH if s.mistake == "half_the_map" else HEIGHT * WIDTH
        x = w.add("Reshape", x, w.integers([BATCH * CHANNELS, size]))
        pooled = w.add(reduce, x, axes=[1], keepdims=0)
        return w.add("Reshape", pooled, w.integers([BATCH, CHANNELS]))
    return w.add(reduce, x, axes=[2, 3], keepdims=int(s.layer == "conv"))


def _flat(w, pooled):
    """[N, C] of [N, C, 1, 1] or [N, C]."""
    return w.add("Flatten", pooled, axis=1)


def _unflat(w, attention):
    """[N, C, 1, 1]."""
    if w.spelling.spread == "reshape":
        return w.add("Reshape", attention, w.integers([0, 0, 1, 1]))
    return w.add("Unsqueeze", attention, axes=[2, 3])


def _linear(w, x, key, weight, bias):
    s = w.spelling
    if s.layer == "conv":
        x = w.add("Reshape", x, w.integers([0, 0, 1, 1])) if key == "w0" else x
        inputs = [x, w.weight(key, weight[:, :, None, None])]
        inputs += [w.weight(f"{key}b", bias)] if s.bias == "inside" else []
        y, shape = w.add("Conv", *inputs), (1, -1, 1, 1)
    elif s.layer == "matmul":
        y, shape = w.add("MatMul", x, w.weight(key, weight.T)), (-1,)
        if s.bias == "inside":
            return w.add("Add", y, w.weight(f"{key}b", bias))
    else:
        transposed = s.layer == "gemm"
        inputs = [x, w.weight(key, weight if transposed else weight.T)]
        inputs += [w.weight(f"{key}b", bias)] if s.bias == "inside" else []
        y, shape = w.add("Gemm", *inputs, transB=int(transposed)), (-1,)
    if s.bias == "added":
        terms = y, w.weight(f"{key}b", bias.reshape(shape))
        y = w.add("Add", *(terms[::-1] if s.swapped else terms))
    return y


def _sigmoid(w, x, *, spatial=False):
    s = w.spelling
    if not spatial and s.mistake == "hard_sigmoid":
        return w.add("HardSigmoid", x, alpha=1 / 6)
    if not spatial and s.mistake == "clipped_sigmoid":
        inside = w.add("Clip", w.add("Add", x, w.scalar(3)), w.scalar(0), w.scalar(6))
        return w.add("Div", inside, w.scalar(6))
    if not spatial and s.mistake == "warmer_sigmoid":
        x = w.add("Mul", x, w.scalar(1.01))
    if s.sigmoid == "node":
        return w.add("Sigmoid", x)
    if s.sigmoid.startswith("tanh"):
        if s.sigmoid == "tanh":
            tanh = w.add("Tanh", w.add("Mul", x, w.scalar(0.5)))
            return w.add("Mul", w.scalar(0.5), w.add("Add", tanh, w.scalar(1)))
        tanh = w.add("Tanh", w.add("Div", x, w.scalar(2)))
        return w.add("Add", w.add("Mul", tanh, w.scalar(0.5)), w.scalar(0.5))
    negated = {
        "div": lambda: w.add("Neg", x),
        "reciprocal": lambda: w.add("Mul", x, w.scalar(-1)),
        "pow": lambda: w.add("Sub", w.scalar(0), x),
    }[s.sigmoid]()
    terms = w.scalar(1), w.add("Exp", negated)
    below = w.add("Add", *(terms[::-1] if s.swapped else terms))
    if s.sigmoid == "div":
        return w.add("Div", w.scalar(1), below)
    if s.sigmoid == "pow":
        return w.add("Pow", below, w.scalar(-1))
    return w.add("Reciprocal", below)


def _spread(w, attention, x):
    s = w.spelling
    if s.view != "none":
        attention = w.add({"identity": "Identity", "dropout": "Dropout"}[s.view], attention)
    if s.spread == "expand":
        return w.add("Expand", attention, w.integers([1, 1, 1, 1]))
    if s.spread == "expand_shape":
        return w.add("Expand", attention, w.add("Shape", x))
    if s.spread == "expand_known" and s.fixed == "all":
        return w.add("Expand", attention, w.integers([BATCH, CHANNELS, HEIGHT, WIDTH]))
    return attention


def _scale(w, x, attention):
    return w.add("Mul", *((attention, x) if w.spelling.swapped else (x, attention)))


def _spatial_attention(w, x, random):
    s = w.spelling
    k = {"kernel_of_five": 5, "dilated": 3}.get(s.mistake, s.kernel_size)
    kernel, bias = random.normal(0, 0.3, (1, 2, k, k)), random.normal(0, 0.5, 1)
    maximum = _channel_peak(w, x)
    second = "ReduceMax" if s.mistake == "spatial_maximum_twice" else "ReduceMean"
    mean = w.add(second, x, axes=[-3], keepdims=1)
    pools = (mean, maximum) if s.mean_first else (maximum, mean)
    descriptor = w.add("Concat", *pools, axis=-3 if s.swapped else 1)
    if s.mistake == "used_elsewhere":
        w.extra_outputs.append(w.add("Neg", descriptor))
    if s.mistake == "shown":
        w.extra_outputs.append(x)
    attributes = {"auto_pad": "SAME_UPPER"} if s.padding == "auto" else {"pads": [k // 2] * 4}
    if s.mistake == "dilated":
        attributes = {"pads": [2] * 4, "dilations": [2, 2]}
    if s.mistake == "strided":  # Such a model runs on maps of one position.
        attributes["strides"] = [2, 2]
    if s.mistake == "one_sided":
        attributes = {"pads": [0, 0, k - 1, k - 1]}
    inputs = [descriptor, w.floats(kernel)]
    inputs += [w.floats(bias)] if s.spatial_bias == "inside" else []
    y = w.add("Conv", *inputs, **attributes)
    if s.spatial_bias == "added":
        y = w.add("Add", y, w.floats(bias.reshape(1, 1, 1, 1)))
    if s.norm:
        statistics = [w.floats([value]) for value in (0.7, -0.2, 0.3, 0.5)]
        y = w.add("BatchNormalization", y, *statistics, epsilon=1e-3)
    if s.mistake == "relu_before_spatial_sigmoid":
        y = w.add("Relu", y)
    return _spread(w, _sigmoid(w, y, spatial=True), x)


def _channel_peak(w, x):
    """[N, 1, H, W]."""
    s = w.spelling
    how = "topk" if s.mistake == "smallest" else s.channel_peak
    if how == "topk":
        largest = int(s.mistake != "smallest")
        return w.add("TopK", x, w.integers([1]), outputs=2, axis=1, largest=largest)
    if how == "argmax":
        where = w.add("ArgMax", x, axis=1, keepdims=1)
        return w.add("GatherElements", x, where, axis=1)
    if how == "squeezed":
        return w.add("Unsqueeze", w.add("ReduceMax", x, axes=[1], keepdims=0), axes=[1])
    if how == "reshape" and s.fixed != "channels":
        flat = w.add("Reshape", x, w.integers([0, 0, -1]))
        peak = w.add("ReduceMax", flat, axes=[1], keepdims=1)
        return w.add("Reshape", peak, w.integers([0, 1, HEIGHT, WIDTH]))
    return w.add("ReduceMax", x, axes=[1], keepdims=1)
