"""A part of a tensor that is not computed is noticed however small; ordinary noise is not."""

import json

import numpy as np
import pytest

from cbam_deploy.numerics.metrics import ErrorAccumulator, tensor_error
from cbam_deploy.numerics.tolerances import OUTPUTS, Tolerance, check, tolerance_for

PRECISIONS = tuple(OUTPUTS)


def detector(seed, *, scores=1.0, classes=80, channels_last=False):
    """Boxes of 220 to 420 pixels in four channels, and scores up to `scores` in the others."""
    generator = np.random.default_rng(seed)
    boxes = 320 + 100 * np.tanh(generator.standard_normal((2, 4, 300)))
    probabilities = scores / (1 + np.exp(2 - 2 * generator.standard_normal((2, classes, 300))))
    tensor = np.concatenate([boxes, probabilities], axis=1).astype(np.float32)
    return tensor.transpose(0, 2, 1) if channels_last else tensor


def faults(precision, reference, actual):
    tolerance = OUTPUTS[precision]
    return check(tensor_error("y", reference, actual, tolerance.channels), tolerance)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("scores", "classes"), [(1.0, 80), (1.0, 1), (0.01, 80)])
@pytest.mark.parametrize("lost", [lambda s: 0 * s, lambda s: 0 * s + s.mean(), np.flip])
def test_lost_scores_beside_boxes_are_noticed(precision, channels_last, scores, classes, lost):
    reference = detector(0, scores=scores, classes=classes, channels_last=channels_last)
    part = (..., slice(4, None)) if channels_last else (slice(None), slice(4, None))
    actual = reference.copy()
    actual[part] = lost(reference[part])
    assert "by itself" in faults(precision, reference, actual)[-1]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_scores_that_only_the_artefact_has_are_noticed(precision):
    actual = detector(0)
    reference = actual.copy()
    reference[:, 4:] = 0
    assert "by itself" in faults(precision, reference, actual)[-1]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [(2, 64, 8, 8), (2, 256, 40), (2, 8, 8, 64), (16, 100)])
def test_one_dead_channel_of_many_is_noticed_and_named(precision, shape):
    reference = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    actual = reference.copy()
    actual[:, 5] = 0
    assert "channel 5 of axis 1 by itself" in faults(precision, reference, actual)[-1]


@pytest.mark.parametrize(("precision", "noise"), [("fp32", 1e-5), ("fp16", 2e-3), ("int8", 0.05)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_each_precisions_noise_in_every_part_is_in_tolerance(precision, noise, channels_last):
    reference = detector(2, channels_last=channels_last)
    generator = np.random.default_rng(3)
    actual = reference * (1 + noise * generator.uniform(-1, 1, reference.shape))
    assert faults(precision, reference, actual) == ()


@pytest.mark.parametrize(("precision", "noise"), [("fp16", 2.6e-3), ("int8", 0.05)])
def test_noise_of_feature_maps_with_channels_that_hardly_show_is_in_tolerance(precision, noise):
    """256 channels of sizes over a factor of twenty, ReLU, and one scale for all of them."""
    generator = np.random.default_rng(4)
    sizes = np.exp(generator.uniform(-3, 0, (1, 256, 1, 1)))
    sums = sizes * (
        generator.standard_normal((4, 256, 7, 7)) - np.linspace(0, 3, 256)[:, None, None]
    )
    noisy = sums + noise * sums.std() * generator.standard_normal(sums.shape)
    reference, actual = np.maximum(sums, 0), np.maximum(noisy, 0)
    if precision == "int8":
        step = actual.max() / 127
        actual = np.round(actual / step) * step
    assert faults(precision, reference, actual) == ()


@pytest.mark.parametrize(("precision", "noise"), [("fp16", 2.6e-3), ("int8", 0.08)])
@pytest.mark.parametrize("samples", [1, 2, 8])
def test_logits_near_zero_are_in_tolerance(precision, noise, samples):
    generator = np.random.default_rng(5)
    logits = np.tile(generator.standard_normal(1000), (samples, 1))
    assert faults(precision, logits, logits + noise * generator.standard_normal(logits.shape)) == ()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_probabilities_of_classes_that_are_nowhere_may_be_lost(precision):
    reference = np.random.default_rng(6).uniform(0.2, 1, (2, 21, 16, 16)).astype(np.float32)
    reference[:, 3] *= 1e-7
    actual = reference.copy()
    actual[:, 3] = 0
    assert faults(precision, reference, actual) == ()


def test_batches_add_up_to_the_whole():
    tolerance = OUTPUTS["fp16"]
    reference, actual = detector(7), detector(7)
    actual[:, 9] = 0
    parts = ErrorAccumulator("y", tolerance.channels)
    for sample in range(2):
        parts.add(reference[sample : sample + 1], actual[sample : sample + 1])
    assert (
        parts.result().channel == tensor_error("y", reference, actual, tolerance.channels).channel
    )
    assert check(parts.result(), tolerance) == faults("fp16", reference, actual) != ()


def test_labels_and_sizes_that_depend_on_the_data_have_no_channels():
    labels = ErrorAccumulator("y", OUTPUTS["int8"].channels)
    labels.add(np.arange(128).reshape(2, 8, 8), np.arange(128).reshape(2, 8, 8)[::-1])
    found = ErrorAccumulator("y", OUTPUTS["int8"].channels)
    for boxes in (9, 5):
        found.add(np.ones((boxes, 6)), np.eye(boxes, 6))
    assert labels.result().channel is None
    assert found.result().channel.startswith("channel")
    assert found.result().channel.endswith("axis 1")


def test_a_bound_of_ones_own_on_channels_decides():
    reference, actual = detector(8), detector(8)
    actual[:, 4:] *= 0.5
    for bound, holds in ((6.1, False), (5.9, True)):
        own = tolerance_for("int8", OUTPUTS, Tolerance(min_channel_snr_db=bound))
        assert (check(tensor_error("y", reference, actual, own.channels), own) == ()) is holds


def test_the_report_shows_the_worst_channel_where_one_stands_out(capsys):
    from rich.console import Console

    from cbam_deploy.validation.parity_report import BatchParity, OutputParity, ParityReport

    def shown(actual):
        tolerance = OUTPUTS["fp16"]
        error = tensor_error("y", detector(9), actual, tolerance.channels)
        batch = BatchParity(2, 2, 0.0, (OutputParity(error, check(error, tolerance)),))
        report = ParityReport("f", "r", "m", "fp16", "noise", tolerance, (batch,), None, {})
        Console(width=200).print(report)
        assert json.loads(json.dumps(report.to_json(), allow_nan=False))
        return capsys.readouterr().out

    dead = detector(9)
    dead[:, 4:] = 0
    assert "worst channel" not in shown(detector(9))
    assert "worst channel" in shown(dead)
    assert "axis 1 by itself" in shown(dead)
