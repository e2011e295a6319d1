import math

import pytest

from cbam_deploy.report import units
from cbam_deploy.report.units import Estimate


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.012345, "0.0123"),
        (1.2345, "1.23"),
        (12.345, "12.3"),
        (123.45, "123"),
        (12345.6, "12,346"),
        (-1.2345, "-1.23"),
        (math.nan, "–"),
        (math.inf, "–"),
    ],
)
def test_numbers_have_three_digits_and_no_exponent(value, text):
    assert units.digits(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0005123, "0.5123"), (0.03125, "31.25"), (0.2501, "250.1"), (2, "2,000")],
)
def test_milliseconds(seconds, text):
    assert units.milliseconds(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0032, "3.20 ms"), (41.0, "41.0 s"), (125.4, "2 min 5 s")]
)
def test_durations(seconds, text):
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "–"), (12, "12 B"), (66_100_000, "66.1 MB"), (1_500, "1.50 kB"), (24e9, "24.0 GB")],
)
def test_sizes(size, text):
    assert units.size(size) == text


def test_half_width_is_that_of_the_larger_side():
    assert units.half_width(Estimate(100.0, 97.0, 101.0)) == "±3.0%"
    assert units.half_width(Estimate(100.0, 99.5, 101.0)) == "±1.0%"


def test_unknown_figures_show_a_dash():
    assert units.scientific(None) == units.scientific(math.inf) == units.percent(None) == "–"
    assert units.scientific(3.14e-6) == "3.1e-06"
    assert units.percent(0.98333) == "98.33%"
