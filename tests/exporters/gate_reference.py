"""The attention gate in float64, written from the papers' equations with plain loops.

Woo et al., "CBAM", ECCV 2018, equations 1 to 3; Hu et al., "Squeeze-and-Excitation Networks", CVPR
2018, equations 2 to 4.
"""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def mlp(v, weights):
    """W1 ReLU(W0 v + b0) + b1 of one vector [C]."""
    return weights["W1"] @ np.maximum(weights["W0"] @ v + weights["B0"], 0) + weights["B1"]


def channel_attention(x, weights, *, peaks):
    """Mc of one map [C, H, W], a vector [C]."""
    logits = mlp(x.mean(axis=(1, 2)), weights)
    if peaks:
        logits = logits + mlp(x.max(axis=(1, 2)), weights)
    return sigmoid(logits)


def spatial_attention(x, weights):
    """Ms of one map [C, H, W], a plane [H, W]."""
    _, height, width = x.shape
    kernel = weights["WS"][0]
    k = kernel.shape[-1]
    planes = np.stack([x.max(axis=0), x.mean(axis=0)])
    framed = np.zeros((2, height + k - 1, width + k - 1))
    framed[:, k // 2 : k // 2 + height, k // 2 : k // 2 + width] = planes
    logits = np.empty((height, width))
    for row in range(height):
        for column in range(width):
            window = framed[:, row : row + k, column : column + k]
            logits[row, column] = (window * kernel).sum() + weights["BS"][0]
    return sigmoid(logits)


def gate(op, x, weights, residual=None):
    """What operator `op` computes, in float64, from arrays of any type."""
    weights = {name: array.astype(np.float64) for name, array in weights.items()}
    cbam = op.startswith("Cbam")
    out = np.empty(x.shape)
    for n, one in enumerate(x.astype(np.float64)):
        refined = one * channel_attention(one, weights, peaks=cbam)[:, None, None]
        out[n] = refined * spatial_attention(refined, weights) if cbam else refined
    if op.endswith("AddRelu"):
        out = np.maximum(out + residual.astype(np.float64), 0)
    return out
