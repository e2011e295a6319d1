"""Gate functions and activations in the ways that exporters write them, as nodes of a `Writer`."""

import math

HARD_SIGMOIDS = ("node", "clip_div", "clip_mul", "min_max", "relu_min", "two_clips", "add_mul")
INNER = {
    "relu": ("node", "max", "clip"),
    "leaky_relu": ("node",),
    "silu": ("product", "swapped", "quotient"),
    "gelu": ("half_last", "half_first", "half_inside", "factors"),
    "hard_swish": ("product", "clip_div", "clip_mul", "mul_clip_div", "sixth_first"),
}
ACTIVATIONS = tuple(f"{name}:{how}" for name, ways in INNER.items() for how in ways)
# What onnxsim makes of two: a factor is left to the weights of the next layer.
FACTORS = {"gelu:folded": 2.0, "hard_swish:folded": 6.0}


def clip(w, x, low, high):
    """Clip, whose bounds may each be missing."""
    bounds = [("" if bound is None else w.scalar(bound)) for bound in (low, high)]
    return w.add("Clip", x, *(bounds[:1] if high is None else bounds))


def hard_sigmoid(w, x, how="node", slope=1 / 6):
    """clip(x / 6 + 1 / 2, 0, 1)."""
    if how == "node":
        return w.add("HardSigmoid", x, alpha=slope)
    if how == "add_mul":
        inside = w.add("Add", w.add("Mul", w.scalar(slope), x), w.scalar(0.5))
        return clip(w, inside, 0, 1)
    inside = w.add("Add", x, w.scalar(3))
    if how == "min_max":
        six = w.add("Max", w.add("Min", inside, w.scalar(6)), w.scalar(0))
    elif how == "relu_min":
        six = w.add("Min", w.scalar(6), w.add("Relu", inside))
    elif how == "two_clips":
        six = clip(w, clip(w, inside, 0, None), None, 6)
    else:
        six = clip(w, inside, 0, 6)
    if how == "clip_mul":
        return w.add("Mul", w.scalar(slope), six)
    return w.add("Div", six, w.scalar(1 / slope))


def activation(w, x, spelling):
    """``name:how`` of x."""
    name, how = spelling.split(":")
    return {
        "relu": _relu,
        "leaky_relu": lambda w, x, how: w.add("LeakyRelu", x, alpha=0.01),
        "silu": _silu,
        "gelu": _gelu,
        "hard_swish": _hard_swish,
    }[name](w, x, how)


def _relu(w, x, how):
    if how == "max":
        return w.add("Max", x, w.scalar(0))
    return clip(w, x, 0, None) if how == "clip" else w.add("Relu", x)


def _silu(w, x, how):
    if how == "quotient":
        return w.add("Div", x, w.add("Add", w.add("Exp", w.add("Neg", x)), w.scalar(1)))
    sigmoid = w.add("Sigmoid", x)
    return w.add("Mul", *((sigmoid, x) if how == "swapped" else (x, sigmoid)))


def _gelu(w, x, how):
    if how == "factors":
        erf = w.add("Erf", w.add("Mul", x, w.scalar(math.sqrt(0.5))))
    else:
        erf = w.add("Erf", w.add("Div", x, w.scalar(math.sqrt(2))))
    if how == "half_inside":
        half = w.add("Add", w.add("Mul", erf, w.scalar(0.5)), w.scalar(0.5))
        return w.add("Mul", half, x)
    above = w.add("Add", erf, w.scalar(1))
    if how == "folded":
        return w.add("Mul", x, above)
    if how == "half_first":
        return w.add("Mul", w.add("Mul", w.scalar(0.5), x), above)
    if how == "factors":
        return w.add("Mul", x, w.add("Mul", above, w.scalar(0.5)))
    return w.add("Mul", w.add("Mul", x, above), w.scalar(0.5))


def _hard_swish(w, x, how):
    if how in ("clip_div", "clip_mul"):
        return w.add("Mul", x, hard_sigmoid(w, x, how))
    if how == "product":
        return w.add("Mul", hard_sigmoid(w, x), x)
    six = clip(w, w.add("Add", w.scalar(3), x), 0, 6)
    if how == "folded":
        return w.add("Mul", x, six)
    if how == "sixth_first":
        return w.add("Mul", w.add("Mul", x, w.scalar(1 / 6)), six)
    return w.add("Div", w.add("Mul", x, six), w.scalar(6))
