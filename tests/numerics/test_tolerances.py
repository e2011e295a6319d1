"""Tolerances hold for the noise they were derived from, and for nothing much larger."""

import math
from dataclasses import replace

import numpy as np
import pytest

from cbam_deploy.errors import BadInput
from cbam_deploy.numerics.metrics import tensor_error
from cbam_deploy.numerics.tolerances import LAYERS, OUTPUTS, Tolerance, check, tolerance_for

TERMS = 9 * 512
DEPTH = 53


def rounding_noise(seed, relative):
    """A thousand normal logits, and the same with normal noise of relative root mean square."""
    generator = np.random.default_rng(seed)
    logits = generator.standard_normal((8, 1000))
    return logits, logits + relative * generator.standard_normal(logits.shape)


def test_one_rounding_has_the_root_mean_square_error_the_derivation_uses():
    values = np.exp2(np.random.default_rng(0).uniform(-8, 8, 1_000_000))
    relative = values.astype(np.float16) / values - 1
    assert np.sqrt(np.mean(relative**2)) == pytest.approx(0.42 * 2.0**-11, rel=0.02)


def test_a_sum_of_4608_terms_in_float32_errs_as_derived():
    generator = np.random.default_rng(0)
    terms = generator.standard_normal((200, TERMS)).astype(np.float32)
    running = np.cumsum(terms, axis=1, dtype=np.float32)[:, -1]
    error = running - terms.astype(np.float64).sum(axis=1)
    derived = 0.42 * 2.0**-24 * math.sqrt(TERMS / 2) * math.sqrt(TERMS)
    assert 0.5 * derived < np.sqrt(np.mean(error**2)) < 1.1 * derived


def test_layers_are_held_closer_than_outputs_and_both_above_the_noise():
    one_layer = 0.42 * 2.0**-24 * math.sqrt(TERMS)
    assert math.sqrt(DEPTH) * one_layer < LAYERS["fp32"].max_relative
    assert DEPTH * one_layer < OUTPUTS["fp32"].max_relative
    assert LAYERS["fp32"].max_relative < OUTPUTS["fp32"].max_relative


@pytest.mark.parametrize(
    ("precision", "expected_noise", "too_much"),
    [
        ("fp32", math.sqrt(DEPTH * TERMS) * 0.42 * 2.0**-24, 1e-3),
        ("fp16", math.sqrt(3 * DEPTH) * 0.42 * 2.0**-11, 0.02),
        ("int8", 10 ** (-33 / 20) * math.sqrt(18), 0.12),
    ],
)
def test_each_precision_passes_its_expected_noise_and_no_more(precision, expected_noise, too_much):
    expected = tensor_error("y", *rounding_noise(0, expected_noise))
    assert check(expected, OUTPUTS[precision]) == ()
    assert check(expected, LAYERS[precision]) == ()
    assert check(tensor_error("y", *rounding_noise(0, too_much)), OUTPUTS[precision])


@pytest.mark.parametrize("precision", OUTPUTS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_nan_or_infinity_is_never_within_tolerance(precision, value):
    actual = np.ones((2, 1000))
    actual[1, 7] = value
    (sentence,) = check(tensor_error("y", np.ones((2, 1000)), actual), OUTPUTS[precision])
    assert "NaN or infinite" in sentence


def test_every_bound_has_its_own_sentence():
    error = tensor_error("y", np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))
    strict = Tolerance(max_abs=0.5, max_relative=0.5, min_cosine=0.5, min_snr_db=20.0, min_top1=0.9)
    sentences = check(error, strict)
    assert len(sentences) == 5
    for word in ("maximum error 1", "largest reference", "cosine", "signal-to-noise", "top-1"):
        assert sum(word in sentence for sentence in sentences) >= 1
    assert check(error, Tolerance()) == ()


def test_a_bound_of_ones_own_replaces_only_that_bound():
    own = tolerance_for("fp16", OUTPUTS, Tolerance(max_relative=0.5))
    assert own == replace(OUTPUTS["fp16"], max_relative=0.5)


@pytest.mark.parametrize(
    "own",
    [
        Tolerance(max_abs=-1e-3),
        Tolerance(max_relative=math.nan),
        Tolerance(min_cosine=1.1),
        Tolerance(min_top1=99.9),
    ],
)
def test_impossible_bounds_are_refused(own):
    with pytest.raises(BadInput, match="is not a tolerance"):
        tolerance_for("fp32", OUTPUTS, own)


def test_precision_without_tolerance_is_refused():
    with pytest.raises(BadInput, match="fp4"):
        tolerance_for("fp4", OUTPUTS, Tolerance())
