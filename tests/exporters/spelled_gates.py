"""A gate of standard ops in any of its spellings, as an ONNX model from input to output."""

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper
from spelled_functions import ACTIVATIONS, FACTORS, HARD_SIGMOIDS, activation, clip, hard_sigmoid

from cbam_deploy.gates.description import GateSpec
from cbam_deploy.gates.operators import operator_for

CHANNELS, HIDDEN = 8, 4
BATCH, HEIGHT, WIDTH = 2, 6, 5
AXES_AS_INPUT = {"ReduceMean": 18, "ReduceMax": 18, "Unsqueeze": 13, "Squeeze": 13}

BEHIND = ("silu:product", "gelu:half_last", "hard_swish:mul_clip_div", "leaky_relu:node")
NORM = {"scale": 0.7, "shift": -0.2, "mean": 0.3, "variance": 0.5}
CHOICES = {
    "opset": tuple(range(11, 25)),
    "half": (False, True),
    "fixed": ("channels", "map", "all"),  # What is known of the input's sizes.
    "gate": ("cbam", "se"),
    "order": ("spatial-channel", "parallel", "product", "sum", "sum_inside", "channel", "spatial"),
    "sees": ("both", "mean", "maximum"),
    "mixer": ("mlp", "linear", "conv", "conv2d", "conv2d_square"),
    "inner": (*ACTIVATIONS, *FACTORS),
    "join": ("logits", "gates", "pools", "pools_halved", "pools_added"),
    "channel_gate": ("sigmoid", *HARD_SIGMOIDS),
    "spatial_gate": ("sigmoid", *HARD_SIGMOIDS[:2]),
    "layer_norm": (False, True),
    "warmer": (False, True),
    "pool": ("reduce", "steps", "global", "window", "reshape", "flatten_all", "topk"),
    "layer": ("gemm", "gemm_untransposed", "matmul", "conv"),
    "bias": ("inside", "added", "none"),
    "weights": ("shared", "copies", "transposed", "stated"),
    "sum_first": (False, True),
    "channel_peak": ("reduce", "topk", "argmax", "squeezed", "reshape"),
    "mean_first": (False, True),
    "kernel_size": (1, 3, 5, 7, 11, 15),
    "dilation": (1, 2),
    "descriptor": ("both", "maximum", "mean", "halves", "conv", "conv_alone"),
    "padding": ("pads", "auto"),
    "spatial_bias": ("inside", "added", "none"),
    "norm": (False, True),
    "sigmoid": ("node", "div", "reciprocal", "pow", "tanh", "tanh_affine"),
    "spread": ("unsqueeze", "reshape", "expand", "expand_shape", "expand_known"),
    "swapped": (False, True),
    "behind": ("nothing", "add", "add_relu", *(f"add_{one}" for one in BEHIND), *BEHIND),
    "residual": ("input", "map", "copy"),  # `map` is what is gated.
    "copied": ("nothing", "pooled", "scaled", "both"),  # What is read through an Identity.
    "view": ("none", "identity", "dropout"),
}
# Changes that make it another function: what is fused all the same, and the reason that is given.
CHANNEL, SPATIAL = ["SeGateMeanMax"], ["SpatialGateAddRelu"]
MISTAKES = {
    "other_mlp": (SPATIAL, "the branches of mean and maximum have different weights"),
    "leaky": (SPATIAL, "LeakyReLU of slope 0.1 lies between its layers; fused are ReLU"),
    "tanh_gelu": (SPATIAL, "GELU by tanh lies between its layers"),
    "slope": (SPATIAL, "its gate function is clip(0.2·z + 0.5, 0, 1); fused are"),
    "clipped_slope": (SPATIAL, "its gate function is clip(0.2·z + 0.6, 0, 1); fused are"),
    "no_activation": (SPATIAL, "its two layers have no activation between them"),
    "minimum": (SPATIAL, "it sees a minimum; fused are the mean and the maximum"),
    "same_pool_twice": (SPATIAL, "both of its branches pool the mean"),
    "third_branch": (SPATIAL, "it sees GlobalLpPool; fused are the mean and the maximum"),
    "layers_of_their_own": (SPATIAL, "its first layer is a sum, not W0·v + b0"),
    "half_the_map": (SPATIAL, "computed from another map (a part) than the one it multiplies"),
    "pooled_elsewhere": (SPATIAL, "computed from another map (|·|) than the one it multiplies"),
    "squared": (SPATIAL, "computed from another map (a product) than the one it multiplies"),
    "unequal_shares": (SPATIAL, "fused is the mean of both with equal shares"),
    "wrongly_reshaped": (SPATIAL, "its replacement differs"),
    "overridable_weight": (SPATIAL, "a weight is an input of the network"),
    "normalized_logits": (SPATIAL, "softmax lies between its last layer and σ"),
    "tanh_logits": (SPATIAL, "tanh lies between its last layer and σ: σ(tanh(W·v + b))"),
    "smallest": (CHANNEL, "it sees other elements by topk than the one largest"),
    "used_elsewhere": (
        CHANNEL,
        "the spatial part: a value inside (a concatenation) is also used outside, by a negation",
    ),
    "strided": (CHANNEL, "a 7x7 convolution has a stride"),
    "one_sided": (CHANNEL, "a 7x7 convolution is not padded by 3 all around"),
    "even_kernel": (CHANNEL, "a 4x4 convolution covers 4 elements; fused are odd sizes up to 15"),
    "oblong": (CHANNEL, "a 3x5 convolution is not square"),
    "too_wide": (CHANNEL, "of dilation 3 covers 19 elements; fused are odd sizes up to 15"),
    "spatial_maximum_twice": (CHANNEL, "its convolution does not see [max; mean]"),
    "relu_before_spatial_sigmoid": (CHANNEL, "σ is taken of ReLU, not of a convolution"),
    "descriptor_bias": (CHANNEL, "its 1x1 convolution has a bias, which the next one's zero"),
    "large_descriptor": (CHANNEL, "a 3x3 convolution sees all channels of x"),
}


@dataclass(frozen=True)
class Spelling:
    """One choice of each kind; the first is the plainest."""

    opset: int = 18
    half: bool = False
    fixed: str = "channels"
    gate: str = "cbam"
    order: str = "channel-spatial"
    sees: str = "both"
    mixer: str = "mlp"
    inner: str = "relu:node"
    join: str = "logits"
    channel_gate: str = "sigmoid"
    spatial_gate: str = "sigmoid"
    layer_norm: bool = False
    warmer: bool = False
    pool: str = "reduce"
    layer: str = "gemm"
    bias: str = "inside"
    weights: str = "shared"
    sum_first: bool = False
    channel_peak: str = "reduce"
    mean_first: bool = False
    kernel_size: int = 7
    dilation: int = 1
    descriptor: str = "both"
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

    @property
    def arrangement(self):
        """Of its parts."""
        if self.gate == "se":
            return "channel"
        return {"product": "parallel", "sum_inside": "sum"}.get(self.order, self.order)

    @property
    def pools(self):
        """What the channel part sees."""
        if self.gate == "se" or self.sees == "mean":
            return ["mean"]
        return ["maximum"] if self.sees == "maximum" else ["maximum", "mean"]

    def op(self):
        """The operator that computes it."""
        spatial = {"both": "pool", "halves": "pool", "maximum": "max", "mean": "avg"}
        pools = {("mean",): "avg", ("maximum",): "max"}.get(tuple(self.pools), "avg+max")
        alone = self.arrangement == "channel"
        gate = GateSpec(
            channel_pool=pools,
            spatial="none" if alone else spatial.get(self.descriptor, "conv1x1"),
            arrangement=self.arrangement,
            mixer="conv" if self.mixer.startswith("conv") else self.mixer,
            activation=self.inner.split(":")[0],
            join=self.join.split("_")[0],
            channel_gate="sigmoid" if self.channel_gate == "sigmoid" else "hard_sigmoid",
            spatial_gate="sigmoid" if self.spatial_gate == "sigmoid" else "hard_sigmoid",
        )
        last = self.behind.removeprefix("add").removeprefix("_").split(":")[0]
        residual = self.behind.startswith("add")
        activation = "none" if last in ("", "nothing") else last
        return operator_for(gate, residual=residual, activation=activation).name


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
    y = _gated(w, x, scaled, other, random)
    if spelling.behind.startswith("add"):
        residual = "input" if spelling.residual == "input" else x
        residual = w.add("Identity", x) if spelling.residual == "copy" else residual
        y = w.add("Add", *((residual, y) if spelling.swapped else (y, residual)))
    last = spelling.behind.removeprefix("add").removeprefix("_")
    if last == "relu":
        y = w.add("Relu", y)
    elif last not in ("", "nothing"):
        y = activation(w, y, last)
    w.nodes.append(helper.make_node("Identity", [y], ["output"], name="last"))
    return _model(w)


def _gated(w, x, scaled, pooled, random):
    """The map `scaled`, a copy of x, times attentions of `pooled`, another."""
    arrangement, order = w.spelling.arrangement, w.spelling.order
    parts = {
        "channel": lambda pooled: _channel_attention(w, x, pooled, random),
        "spatial": lambda pooled: _spatial_attention(w, pooled, random),
    }
    if arrangement in ("parallel", "sum"):
        attentions = [part(pooled) for part in parts.values()]
        join = "Add" if arrangement == "sum" else "Mul"
        if order in ("product", "sum_inside"):
            return _scale(w, scaled, w.add(join, *attentions))
        if order == "sum":
            return w.add("Add", *(_scale(w, scaled, attention) for attention in attentions))
        return _scale(w, _scale(w, scaled, attentions[0]), attentions[1])
    for number, part in enumerate(arrangement.split("-")):
        if number:
            scaled, pooled = _reads(w, scaled)
        scaled = _scale(w, scaled, parts[part](pooled))
    return scaled


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
    w1 = w1 / FACTORS.get(s.inner, 1)
    square, taps = random.normal(0, 0.5, (CHANNELS, CHANNELS)), random.normal(0, 0.5, 3)
    pools = ["mean", "mean"] if s.mistake == "same_pool_twice" else list(s.pools)
    if s.mean_first:
        pools.reverse()
    if s.mistake == "third_branch":  # Such as the authors' `lp` and `lse`.
        pools.append("lp")

    def inside(vector):
        squeezed = _linear(w, vector, "w0", w0, b0)
        if s.mistake == "leaky":
            return w.add("LeakyRelu", squeezed, alpha=0.1)
        if s.mistake == "tanh_gelu":
            tanh = w.add("Tanh", w.add("Mul", squeezed, w.scalar(0.8)))
            return w.add("Mul", squeezed, w.add("Add", tanh, w.scalar(1)))
        if s.mistake == "no_activation":
            return squeezed
        return activation(w, squeezed, s.inner)

    def mixed(vector):
        if s.mixer == "mlp":
            return _linear(w, inside(vector), "w1", w1, b1)
        if s.mixer == "linear":
            return _linear(w, vector, "w1", square, b1)
        return _along_channels(w, vector, taps)

    def gate(logits):
        if s.mistake in ("normalized_logits", "tanh_logits"):
            softmax = s.mistake == "normalized_logits"
            logits = w.add("Softmax", logits, axis=1) if softmax else w.add("Tanh", logits)
        if s.mistake == "slope":
            return w.add("HardSigmoid", logits)
        if s.mistake == "clipped_slope":
            inside = w.add("Add", w.add("Mul", logits, w.scalar(0.2)), w.scalar(0.6))
            return clip(w, inside, 0, 1)
        return _sigmoid(w, logits, s.channel_gate)

    vectors = [_vector(w, other, pool) for pool in pools]
    if len(pools) == 2 and (s.join.startswith("pools") or s.mistake == "unequal_shares"):
        vectors = [_mean_of_pools(w, vectors)]
    if s.mistake == "layers_of_their_own":
        layers = [_linear(w, v, f"w{number}", w0, b0) for number, v in enumerate(vectors)]
        logits = [_linear(w, w.add("Relu", w.add("Add", *layers)), "w", w1, b1)]
    elif s.sum_first and len(vectors) == 2 and s.mixer == "mlp" and s.join != "gates":
        logits = [_linear(w, w.add("Add", *map(inside, vectors)), "w1", w1, 2 * b1)]
    else:
        logits = [mixed(vector) for vector in vectors]
    if s.join == "gates":
        attention = _added(w, [gate(one) for one in logits])
    else:
        attention = gate(_added(w, logits))
    if s.layer != "conv":
        attention = _unflat(w, attention)
    return _spread(w, attention, x)


def _added(w, terms):
    total, *rest = terms
    for term in rest:
        total = w.add("Add", total, term)
    return total


def _mean_of_pools(w, vectors):
    if w.spelling.mistake == "unequal_shares":
        return w.add("Add", vectors[0], w.add("Mul", vectors[1], w.scalar(0.3)))
    if w.spelling.join == "pools":
        return w.add("Add", *(w.add("Mul", vector, w.scalar(0.5)) for vector in vectors))
    both = w.add("Add", *vectors)
    return both if w.spelling.join == "pools_added" else w.add("Div", both, w.scalar(2))


def _along_channels(w, vector, taps):
    """A convolution along the channels of [N, C, 1, 1] or [N, C]."""
    s = w.spelling
    bias = [w.floats([0.3])] if s.bias == "inside" else []
    if s.mixer == "conv":
        row = w.add("Reshape", vector, w.integers([0, 1, CHANNELS]))
        mixed = w.add("Conv", row, w.floats(taps.reshape(1, 1, 3)), *bias, pads=[1, 1])
    else:
        row = w.add("Reshape", vector, w.integers([0, 1, CHANNELS, 1]))
        kernel, pads = taps.reshape(1, 1, 3, 1), [1, 0, 1, 0]
        if s.mixer == "conv2d_square":
            kernel, pads = np.repeat(kernel, 3, 3) * np.array([2.0, 1.0, -1.0]), [1] * 4
        mixed = w.add("Conv", row, w.floats(kernel), *bias, pads=pads)
    shape = [0, CHANNELS, 1, 1] if s.layer == "conv" else [0, CHANNELS]
    return w.add("Reshape", mixed, w.integers(shape))


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
    shape: tuple[int, ...] = (-1,)
    if s.layer == "conv":
        x = w.add("Reshape", x, w.integers([0, 0, 1, 1])) if key == "w0" or s.mixer != "mlp" else x
        inputs = [x, w.weight(key, weight[:, :, None, None])]
        inputs += [w.weight(f"{key}b", bias)] if s.bias == "inside" else []
        y, shape = w.add("Conv", *inputs), (1, -1, 1, 1)
    elif s.layer == "matmul":
        y = w.add("MatMul", x, w.weight(key, weight.T))
        if s.bias == "inside":
            return w.add("Add", y, w.weight(f"{key}b", bias))
    else:
        transposed = s.layer == "gemm"
        inputs = [x, w.weight(key, weight if transposed else weight.T)]
        inputs += [w.weight(f"{key}b", bias)] if s.bias == "inside" else []
        y = w.add("Gemm", *inputs, transB=int(transposed))
    if s.bias == "added":
        terms = y, w.weight(f"{key}b", bias.reshape(shape))
        y = w.add("Add", *(terms[::-1] if s.swapped else terms))
    if s.layer_norm and s.bias != "none":
        steps = np.arange(len(weight)) / 9
        statistics = [w.weight(f"{key}{name}", value + steps) for name, value in NORM.items()]
        y = w.add("BatchNormalization", y, *statistics)
    if s.warmer and key == "w1":
        y = w.add("Mul", y, w.scalar(1.25))
    return y


def _sigmoid(w, x, function):
    """The gate function, in a spelling of its own or in that of all sigmoids."""
    s = w.spelling
    if function != "sigmoid":
        return hard_sigmoid(w, x, function)
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
    k, d = {"even_kernel": (4, 1), "too_wide": (7, 3)}.get(s.mistake, (s.kernel_size, s.dilation))
    d = 1 if s.mistake is None and d * (k - 1) >= 15 else d
    k, d = (1, 1) if s.descriptor == "conv_alone" else (k, d)
    size = (3, 5) if s.mistake == "oblong" else (k, k)
    kernel, bias = random.normal(0, 0.3, (1, 2, *size)), random.normal(0, 0.5, 1)
    if s.descriptor != "both" or s.mistake in ("descriptor_bias", "large_descriptor"):
        kernel = kernel[:, :1]
    learned = random.normal(0, 0.4, (1, CHANNELS, 1, 1))
    if s.mistake == "large_descriptor":
        descriptor, kernel = x, random.normal(0, 0.3, (1, CHANNELS, 3, 3))
        size = (3, 3)
    elif s.descriptor == "conv_alone":
        descriptor, kernel, size = x, learned, (1, 1)
    elif s.descriptor == "conv" or s.mistake == "descriptor_bias":
        also = [w.floats([0.7])] if s.mistake == "descriptor_bias" or k == 1 else []
        descriptor = w.add("Conv", x, w.floats(learned), *also)
    else:
        descriptor = _descriptor(w, x)
    reach = [d * (one - 1) // 2 for one in size]
    attributes: dict[str, str | list[int]] = {"pads": reach * 2, "dilations": [d, d]}
    if (s.padding == "auto" and d == 1) or s.mistake == "even_kernel":
        attributes = {"auto_pad": "SAME_UPPER"}
    if s.mistake == "strided":  # Such a model runs on maps of one position.
        attributes["strides"] = [2, 2]
    if s.mistake == "one_sided":
        attributes = {"pads": [0, 0, size[0] - 1, size[1] - 1]}
    inputs = [
        descriptor,
        w.floats(kernel),
        *([w.floats(bias)] if s.spatial_bias == "inside" else []),
    ]
    y = w.add("Conv", *inputs, **attributes)
    if s.spatial_bias == "added":
        y = w.add("Add", y, w.floats(bias.reshape(1, 1, 1, 1)))
    if s.norm:
        statistics = [w.floats([value]) for value in NORM.values()]
        y = w.add("BatchNormalization", y, *statistics, epsilon=1e-3)
    if s.mistake == "relu_before_spatial_sigmoid":
        y = w.add("Relu", y)
    return _spread(w, _sigmoid(w, y, s.spatial_gate), x)


def _descriptor(w, x):
    s = w.spelling
    second = "ReduceMax" if s.mistake == "spatial_maximum_twice" else "ReduceMean"
    maximum = _channel_peak(w, x) if s.descriptor != "mean" else None
    mean = w.add(second, x, axes=[-3], keepdims=1) if s.descriptor != "maximum" else None
    pools = [one for one in (maximum, mean) if one is not None]
    if s.mean_first:
        pools.reverse()
    if len(pools) == 1:
        return pools[0]
    if s.descriptor == "halves":
        return w.add("Add", *(w.add("Mul", w.scalar(0.5), pool) for pool in pools))
    descriptor = w.add("Concat", *pools, axis=-3 if s.swapped else 1)
    if s.mistake == "used_elsewhere":
        w.extra_outputs.append(w.add("Neg", descriptor))
    return descriptor


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
