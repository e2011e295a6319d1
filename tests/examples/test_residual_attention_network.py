"""A network whose attention is not CBAM's takes the same road: export, engine, parity."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from cbam_deploy import build_engine, export_onnx, validate
from cbam_deploy.models.factory import call_factory

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "residual_attention_network.py")


def module(network: nn.Module, name: str) -> nn.Module:
    return next(part for part in network.modules() if type(part).__name__ == name)


def test_attention_56_has_the_papers_number_of_parameters() -> None:
    with torch.device("meta"):
        network = call_factory(f"{EXAMPLE}:attention_56")
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert millions == pytest.approx(31.9, abs=0.1)  # Table 2 of the paper.


def test_a_mask_adds_to_the_trunk_and_never_silences_it() -> None:
    attention = module(call_factory(f"{EXAMPLE}:attention_tiny"), "AttentionModule").eval()
    x = torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        first = attention.first(x)
        mask, trunk = attention.mask(first), attention.trunk(first)
        assert mask.shape == trunk.shape
        assert 0 < mask.min() < mask.max() < 1
        torch.testing.assert_close(attention(x), attention.last(trunk + mask * trunk))


def test_the_hourglass_adds_what_it_carries_across() -> None:
    outer = module(call_factory(f"{EXAMPLE}:attention_tiny"), "Hourglass").eval()
    x = torch.randn(1, 16, 8, 8)

    def doubled(small: torch.Tensor) -> torch.Tensor:
        size = (2 * small.shape[2], 2 * small.shape[3])
        return interpolate(small, size=size, mode="bilinear", align_corners=False)

    with torch.no_grad():
        half = outer.down(outer.pool(x))
        inner = outer.inner
        quarter = doubled(inner.up(inner.down(inner.pool(half))))
        expected = doubled(outer.up(quarter + outer.across(half)))
        torch.testing.assert_close(outer(x), expected)


@pytest.mark.slow
def test_it_goes_through_export_engine_and_parity_unchanged(tmp_path: Path) -> None:
    onnx, engine = tmp_path / "attention.onnx", tmp_path / "attention.engine"
    exported = export_onnx(f"{EXAMPLE}:attention_tiny", onnx, image_size=32)
    assert exported.to_json()["gates"] == {}
    parity = validate(onnx, reference=f"{EXAMPLE}:attention_tiny")
    assert parity.passed
    build_engine(onnx, engine, targets=("sm_89",), max_batch=8)
    assert engine.stat().st_size > 0
