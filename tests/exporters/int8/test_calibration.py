"""Calibration: what each method keeps, on what, and in how much memory."""

from __future__ import annotations

import weakref

import numpy as np
import onnx_ir as ir
import pytest
from int8_network import QUANTIZED, forward, images, network
from PIL import Image

from cbam_deploy.data import open_source
from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.int8 import calibration
from cbam_deploy.exporters.int8.calibration import (
    BINS,
    LEVELS,
    PERCENTILE,
    TRACE,
    Magnitudes,
    calibrate,
    calibration_batches,
    calibration_inputs,
    entropy_threshold,
)
from cbam_deploy.preprocessing import Preprocessing

TENSORS = [name for name in QUANTIZED if name != "pooled"]


def magnitudes_of(method, *pieces):
    observer = Magnitudes(method)
    for piece in pieces:
        observer.add(np.asarray(piece, np.float32))
    return observer


def test_minmax_gives_the_least_and_the_greatest_value_of_the_float64_network():
    x = images(10)
    found = calibrate(network(), TENSORS, [x[:7], x[7:]], method="minmax")
    expected = forward(x)
    assert found.images == 10
    for name in TENSORS:
        limits = expected[name].min(), expected[name].max()
        np.testing.assert_allclose(found.ranges[name], limits, rtol=1e-5, atol=1e-6)


def test_entropy_clips_an_outlier_that_minmax_keeps():
    values = np.append(np.random.default_rng(0).standard_normal(100_000), 1000.0)
    _, high = magnitudes_of("entropy", values).range()
    assert 3 < high < 100


def test_entropy_keeps_nearly_all_of_a_uniform_distribution():
    values = np.random.default_rng(0).uniform(-1, 1, 100_000)
    _, high = magnitudes_of("entropy", values).range()
    assert high > 0.95


def test_entropy_is_not_misled_by_the_zeros_of_a_relu():
    values = np.abs(np.random.default_rng(0).standard_normal(100_000))
    without = magnitudes_of("entropy", values).range()
    with_zeros = magnitudes_of("entropy", np.append(values, np.zeros(900_000))).range()
    assert with_zeros[1] == pytest.approx(without[1], rel=0.05)


def test_entropy_finds_the_threshold_of_a_search_without_shortcuts():
    counts = np.histogram(np.random.default_rng(1).gamma(2.0, 1.0, 50_000), BINS)[0]
    found = entropy_threshold(counts)
    counts[0] = counts[1]
    used = int(counts.nonzero()[0].max()) + 1
    candidates = [i for i in range(LEVELS, used) if (i - LEVELS) % 16 == 0] + [used]
    best = min(candidates, key=lambda bins: divergence(counts, bins))
    assert found == best


def divergence(counts, bins):
    """The definition, one bin at a time."""
    clipped = [float(count) for count in counts[:bins]]
    clipped[-1] += sum(counts[bins:])
    levels: list[list[int]] = [[] for _ in range(LEVELS)]
    for i in range(bins):
        levels[i * LEVELS // bins].append(i)
    levelled = [0.0] * bins
    for members in levels:
        present = [i for i in members if clipped[i] > 0]
        for i in present:
            levelled[i] = max(sum(counts[j] for j in members) / len(present), TRACE)
    all_p, all_q = sum(clipped), sum(levelled)
    return sum(
        p / all_p * np.log((p / all_p) / (q / all_q))
        for p, q in zip(clipped, levelled, strict=True)
        if p > 0
    )


def test_percentile_leaves_out_the_share_it_says():
    values = np.random.default_rng(0).uniform(-1, 1, 1_000_000)
    low, high = magnitudes_of("percentile", values).range()
    assert high == pytest.approx(PERCENTILE / 100, abs=1.0 / BINS)
    assert low == pytest.approx(-high, abs=1.0 / BINS)


def test_a_threshold_never_exceeds_what_was_seen():
    low, high = magnitudes_of("percentile", [0.0, 0.25, 1.0]).range()
    assert (low, high) == (0.0, 1.0)


def test_a_tensor_of_zeros_has_an_empty_range():
    for method in ("entropy", "percentile"):
        assert magnitudes_of(method, np.zeros(10)).range() == (0.0, 0.0)


@pytest.mark.parametrize("percent", [1, 15, 40, 60, 90, 99])
def test_a_histogram_that_had_to_widen_counts_every_value(percent, monkeypatch):
    monkeypatch.setattr(calibration, "PERCENTILE", percent)
    random = np.random.default_rng(0)
    pieces = [random.uniform(0, limit, 1000) for limit in (0.001, 50.0, 100.0, 3.0, 200.0)]
    _, high = magnitudes_of("percentile", np.zeros(3), *pieces).range()
    values = np.concatenate([np.zeros(3), *pieces])
    # The bins are less than twice as wide as those of one histogram up to the greatest value.
    step = 2 * values.max() / BINS
    assert np.mean(values <= high + step) >= percent / 100 >= np.mean(values <= high - 2 * step)


def test_the_ranges_do_not_depend_on_how_pictures_are_grouped():
    x = images(12)
    for method in ("minmax", "entropy", "percentile"):
        one = calibrate(network(), TENSORS, [x], method=method)
        many = calibrate(network(), TENSORS, [x[:4], x[4:8], x[8:]], method=method)
        assert one == many


@pytest.mark.parametrize(("batch", "pictures"), [(1, 6), (4, 6), (5, 6), (8, 6), (8, 3)])
def test_every_picture_counts_at_a_fixed_batch(batch, pictures):
    given = [images(pictures)[start : start + 4] for start in range(0, pictures, 4)]
    free = calibrate(network(), TENSORS, given, method="minmax")
    model = network()
    model.graph.inputs[0].shape = ir.Shape([batch, 3, 16, 16])
    fixed = calibrate(model, TENSORS, given, method="minmax")
    assert fixed.images == free.images == pictures
    for name in TENSORS:
        assert fixed.ranges[name] == pytest.approx(free.ranges[name], rel=1e-5)


def test_batches_are_let_go_as_soon_as_they_are_used():
    class Pictures(np.ndarray):
        """An array that can be watched: plain ones have no weak references."""

    alive: list[weakref.ref] = []
    most = 0

    def batches():
        nonlocal most
        for index in range(20):
            batch = images(4, seed=index).view(Pictures)
            alive.append(weakref.ref(batch))
            most = max(most, sum(reference() is not None for reference in alive))
            yield batch

    calibrate(network(), TENSORS, batches(), method="entropy")
    assert most <= 2


def test_no_pictures_are_refused():
    with pytest.raises(BadInput, match="no pictures"):
        calibrate(network(), TENSORS, [])


def test_pictures_of_the_wrong_size_are_refused():
    with pytest.raises(BadInput, match=r"its shape is \[1, 3, 17, 17\]") as refused:
        calibrate(network(), TENSORS, [np.zeros((1, 3, 17, 17), np.float32)])
    assert "3, 16, 16]" in refused.value.hint


def test_an_unknown_method_is_refused():
    with pytest.raises(BadInput, match="'median'"):
        calibrate(network(), TENSORS, [images(1)], method="median")


def test_a_network_that_overflows_is_refused_by_the_name_of_the_tensor():
    broken = images(1)
    broken[0, 0, 0, 0] = np.inf
    with pytest.raises(BadInput, match="'input' has NaN or infinite"):
        calibrate(network(), TENSORS, [broken], method="entropy")


def drawn_from(source, model, images, seed=0):
    return calibration_batches(source, calibration_inputs(model), images=images, seed=seed)


def test_unreadable_pictures_among_good_ones_are_skipped_and_noted(tmp_path):
    for index in range(5):
        Image.new("RGB", (20, 20), (index * 40, 0, 0)).save(tmp_path / f"{index}.png")
    (tmp_path / "2.png").write_bytes(b"not a picture")
    source = open_source(str(tmp_path), Preprocessing(image_size=16, resize=16))
    found = calibrate(network(), TENSORS, drawn_from(source, network(), 5))
    assert found.images == 4
    assert [name.endswith("2.png") for name, _ in source.skipped] == [True]


def test_the_seed_draws_the_pictures(tmp_path):
    for index in range(9):
        Image.new("RGB", (20, 20), (index * 20, 0, 0)).save(tmp_path / f"{index}.png")

    def drawn(seed):
        source = open_source(str(tmp_path), Preprocessing(image_size=16, resize=16))
        return np.concatenate([feeds["input"] for feeds in drawn_from(source, network(), 4, seed)])

    np.testing.assert_array_equal(drawn(1), drawn(1))
    assert not np.array_equal(drawn(1), drawn(2))


def test_a_network_of_uint8_pictures_is_calibrated_on_their_levels(tmp_path):
    levels = np.random.default_rng(0).integers(3, 250, (2, 16, 16, 3), np.uint8)
    for index, picture in enumerate(levels):
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    source = open_source(str(tmp_path), Preprocessing(image_size=16, resize=16))
    model = ir.from_onnx_text(
        """<ir_version: 9, opset_import: ["" : 18]>
        net (uint8[batch, 3, 16, 16] image) => (float[batch, 3, 16, 16] out) {
            float = Cast<to = 1>(image)
            out = Sqrt(float)
        }"""
    )
    found = calibrate(model, ["float", "out"], drawn_from(source, model, 2), method="minmax")
    assert found.ranges["float"] == (levels.min(), levels.max())
    assert found.ranges["out"] == pytest.approx([levels.min() ** 0.5, levels.max() ** 0.5])
    with pytest.raises(BadInput, match="its dtype is float32") as refused:
        calibrate(model, ["out"], [np.zeros((2, 3, 16, 16), np.float32)])
    assert "takes image uint8" in refused.value.hint
