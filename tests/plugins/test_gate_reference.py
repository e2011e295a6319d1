"""The float64 reference agrees with PyTorch, and its bound is neither exceeded nor slack."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gate_cases import random_maps, random_weights

from cbam_deploy.gates.description import CBAM, SE
from cbam_deploy.gates.operators import operator_for
from cbam_deploy.gates.reference import Bounded, apply_gate, disagreement
from cbam_deploy.plugins.gate import Gate


def torch_gate(gate, weights, x, r, dtype):
    """The formulas of Woo et al., ECCV 2018, in PyTorch's own operators."""
    w = {k: torch.tensor(v).to(dtype) for k, v in vars(weights).items() if v is not None}
    x = torch.tensor(x.astype(np.float64)).to(dtype) * gate.x_scale
    mlp = lambda v: torch.relu(v @ w["w0"].T + w["b0"]) @ w["w1"].T + w["b1"]  # noqa: E731
    pooled = mlp(x.mean((2, 3)))
    if gate.kernel_size:
        pooled = pooled + mlp(x.amax((2, 3)))
    y = x * torch.sigmoid(pooled)[:, :, None, None]
    if gate.kernel_size:
        maps = torch.cat([y.amax(1, keepdim=True), y.mean(1, keepdim=True)], 1)
        y = y * torch.sigmoid(
            torch.nn.functional.conv2d(maps, w["ws"], w["bs"], padding=gate.kernel_size // 2)
        )
    if r is not None:
        y = torch.relu(y + torch.tensor(r.astype(np.float64)).to(dtype) * gate.r_scale)
    return y


@pytest.fixture(params=[(7, True), (3, False), (0, True), (0, False)], ids=str)
def drawn(request):
    kernel_size, residual = request.param
    operator = operator_for(
        CBAM if kernel_size else SE, residual=residual, activation="relu" if residual else "none"
    )
    gate = Gate(operator, 48, 9, 11, 5, kernel_size, dtype="float32", layout="nchw")
    rng = np.random.default_rng(0)
    weights = random_weights(gate, rng)
    x = random_maps(gate, 3, "normal", rng)
    return gate, weights, x, random_maps(gate, 3, "normal", rng) if residual else None


def test_value_is_pytorchs_in_float64(drawn):
    expected = torch_gate(*drawn, dtype=torch.float64).numpy()
    np.testing.assert_allclose(apply_gate(*drawn).value, expected, rtol=1e-13, atol=1e-15)


def test_bound_holds_for_pytorch_in_float32_and_is_not_slack(drawn):
    found = torch_gate(*drawn, dtype=torch.float32).numpy()
    reference = apply_gate(*drawn)
    assert disagreement(drawn[0], found, reference) is None
    assert reference.error.max() < 3e-4, "of values about 1"


def test_disagreement_sees_a_wrong_sign_a_nan_and_a_missing_nan(drawn):
    gate, weights, x, r = drawn
    reference = apply_gate(gate, weights, x, r)
    y = reference.value.astype(np.float32)
    assert disagreement(gate, y, reference) is None
    for wrong in (np.nan, np.inf, y.flat[7] + 0.01):
        altered = y.copy()
        altered.flat[7] = wrong
        assert "1 of" in disagreement(gate, altered, reference)
    x = x.copy()
    x[0, 0, 0, 0] = np.nan
    with_nan = apply_gate(gate, weights, x, r)
    assert disagreement(gate, y, with_nan) is not None


def test_int8_may_differ_only_where_the_exact_value_is_near_a_tie():
    gate = Gate(operator_for(SE), 1, 1, 3, 1, dtype="int8", layout="nchw")
    value = np.array([[[[2.4, 2.5, 300.0]]]])
    expected = Bounded(value, np.full_like(value, 0.5 + 1e-6))
    for answer in ([2, 2, 127], [2, 3, 127]):
        assert disagreement(gate, np.array([[[answer]]], np.int8), expected) is None
    for answer in ([3, 2, 127], [2, 2, 126], [2, 1, 127]):
        assert disagreement(gate, np.array([[[answer]]], np.int8), expected) is not None
