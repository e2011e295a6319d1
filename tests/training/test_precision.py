"""Mixed precision: 16-bit products, FP32 weights, part of what a run must not change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from cbam_deploy.errors import BadInput
from cbam_deploy.models import load_state
from cbam_deploy.training.precision import MixedPrecision
from cbam_deploy.training.result import TrainResult

Quick = Callable[..., TrainResult]


def test_bf16_learns_and_leaves_weights_in_fp32(quick: Quick) -> None:
    result = quick("bf16", amp="bf16", epochs=12, lr_step=8, augmentation="none")
    assert result.best.val_accuracy == 1.0
    state = load_state(result.weights).state_dict
    assert {tensor.dtype for tensor in state.values()} == {torch.float32, torch.int64}


def test_products_are_in_16_bits_only_when_asked() -> None:
    linear = torch.nn.Linear(2, 2)
    for amp, dtype in (("bf16", torch.bfloat16), ("none", torch.float32)):
        with MixedPrecision(amp, torch.device("cpu")).forward():
            assert linear(torch.ones(1, 2)).dtype == dtype


def test_a_run_resumes_in_the_precision_it_began_with(quick: Quick) -> None:
    quick("run", amp="bf16", epochs=1)
    with pytest.raises(BadInput, match="made with amp bf16, not none"):
        quick("run", resume=True)
    assert len(quick("run", amp="bf16", epochs=2, resume=True).epochs) == 2


@pytest.mark.parametrize(
    ("amp", "message"),
    [("fp16", "--amp fp16 needs a GPU"), ("fp8", "amp 'fp8' is unknown")],
)
def test_what_cannot_work_is_refused(quick: Quick, amp: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        quick("run", amp=amp)
