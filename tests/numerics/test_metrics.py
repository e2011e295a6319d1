"""Metrics against figures computed by hand or by exact rational arithmetic."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cbam_deploy.numerics.metrics import ErrorAccumulator, tensor_error
from cbam_deploy.report.json_file import to_text

# A float64 sum of n products has relative error at most n 2^-53 of the sum of magnitudes.
ROUNDING = 1000 * 2.0**-53


def test_figures_of_a_tensor_worked_out_by_hand():
    error = tensor_error("y", np.array([[3.0, -4.0]]), np.array([[3.0, -4.5]]))
    assert error.max_abs == 0.5
    assert error.max_relative == 0.5 / 4
    assert error.reference_max == 4
    assert error.snr_db == pytest.approx(10 * math.log10(25 / 0.25))
    assert error.cosine == pytest.approx((9 + 18) / (5 * math.hypot(3, 4.5)))
    assert error.elements == 2


def exact(reference, actual):
    """Cosine and SNR by rational arithmetic, rounded once at the end."""
    r = [Fraction(float(x)) for x in reference.ravel()]
    a = [Fraction(float(x)) for x in actual.ravel()]
    rr, aa = sum(x * x for x in r), sum(x * x for x in a)
    ra = sum(x * y for x, y in zip(r, a, strict=True))
    ee = sum((x - y) ** 2 for x, y in zip(r, a, strict=True))
    return float(ra) / math.sqrt(float(rr)) / math.sqrt(float(aa)), 10 * math.log10(rr / ee)


def test_sums_of_float32_tensors_are_exact_to_float64_rounding():
    generator = np.random.default_rng(1)
    reference = generator.standard_normal((3, 50)).astype(np.float32)
    actual = reference + generator.standard_normal((3, 50)).astype(np.float32) * np.float32(1e-4)
    cosine, snr_db = exact(reference, actual)
    error = tensor_error("y", reference, actual)
    assert error.cosine == pytest.approx(cosine, abs=ROUNDING)
    assert error.snr_db == pytest.approx(snr_db, rel=1e-9)


@settings(max_examples=50)
@given(
    arrays(np.float32, (6, 4), elements=st.floats(-100, 100, width=32)),
    arrays(np.float32, (6, 4), elements=st.floats(-100, 100, width=32)),
    st.integers(1, 5),
)
def test_batches_add_up_to_the_whole(reference, actual, cut):
    parts = ErrorAccumulator("y")
    parts.add(reference[:cut], actual[:cut])
    parts.add(reference[cut:], actual[cut:])
    one, other = parts.result(), tensor_error("y", reference, actual)
    assert (one.max_abs, one.max_relative) == (other.max_abs, other.max_relative)
    assert (one.top1_agreement, one.elements) == (other.top1_agreement, other.elements)
    assert one.cosine == pytest.approx(other.cosine, abs=ROUNDING)
    if math.isfinite(other.snr_db):
        assert one.snr_db == pytest.approx(other.snr_db, abs=1e-9)


def test_relative_error_is_of_the_largest_reference_value_of_all_batches():
    parts = ErrorAccumulator("y")
    parts.add(np.array([1.0]), np.array([1.5]))
    parts.add(np.array([-10.0]), np.array([-10.0]))
    assert parts.result().max_relative == 0.05


def test_top1_counts_rows_with_the_same_largest_class():
    reference = np.array([[0.0, 1.0], [1.0, 0.0], [0.2, 0.1], [5.0, 6.0]])
    actual = np.array([[0.0, 1.0], [0.0, 1.0], [0.2, 0.1], [5.0, 6.5]])
    assert tensor_error("y", reference, actual).top1_agreement == 0.75


@pytest.mark.parametrize("shape", [(4,), (4, 1), (2, 3, 4)])
def test_tensors_without_classes_have_no_top1(shape):
    assert tensor_error("y", np.ones(shape), np.ones(shape)).top1_agreement is None


def test_nan_and_infinity_are_counted_and_spoil_nothing_else():
    nan, inf = np.nan, np.inf
    reference = np.array([[1.0, 2.0, 3.0], [nan, 2.0, 3.0], [1.0, 2.0, 3.0], [nan, 2.0, 3.0]])
    actual = np.array([[1.0, 2.0, 3.5], [1.0, 2.0, 3.0], [inf, nan, 3.0], [nan, 2.0, 3.0]])
    error = tensor_error("y", reference, actual)
    assert error.nonfinite == 3
    assert error.reference_nonfinite == 2
    assert error.max_abs == 0.5
    assert error.top1_agreement == 1 / 4


def test_no_error_is_infinitely_above_noise_and_json_says_null():
    error = tensor_error("y", np.ones(3), np.ones(3))
    assert error.snr_db == math.inf
    assert error.cosine == pytest.approx(1, abs=ROUNDING)
    assert json.loads(to_text(error))["snr_db"] is None


def test_zero_reference_makes_any_error_infinite():
    error = tensor_error("y", np.zeros(3), np.array([0.0, 1e-30, 0.0]))
    assert error.max_relative == math.inf
    assert error.snr_db == -math.inf
    assert error.cosine == 0
    both_zero = tensor_error("y", np.zeros(3), np.zeros(3))
    assert (both_zero.max_relative, both_zero.cosine) == (0, 1)


def test_float16_and_integers_are_compared_in_float64():
    error = tensor_error("y", np.array([65504, 1], np.float16), np.array([-65504, 1], np.float16))
    assert error.max_abs == 2 * 65504
    assert tensor_error("y", np.array([2**40 + 1]), np.array([2**40])).max_abs == 1


def test_broadcasting_never_hides_a_wrong_shape():
    with pytest.raises(ValueError, match="reference"):
        tensor_error("y", np.ones((2, 3)), np.ones((1, 3)))
