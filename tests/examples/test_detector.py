"""The detector of the examples: what it is made of, what it learns from, and its way to INT8."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cbam_deploy import evaluate
from cbam_deploy.data.objects import open_objects
from cbam_deploy.gates.operators import operator_of
from cbam_deploy.graphs.onnx_file import read_model
from cbam_deploy.preprocessing import Preprocessing

FOLDER = Path(__file__).parents[2] / "examples" / "detector"
MODULES = ("network", "pictures", "training", "run")


@pytest.fixture(scope="module")
def example() -> Iterator[SimpleNamespace]:
    """Its modules, which import one another by their own names."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    finally:
        sys.path.remove(str(FOLDER))
        for name in MODULES:
            sys.modules.pop(name, None)


def test_labels_are_read_as_the_boxes_that_were_drawn(example, tmp_path):
    drawn = example.pictures.draw(3, held_out=True, seed=1)
    example.pictures.save(drawn, tmp_path)
    read = open_objects(str(tmp_path), Preprocessing())
    assert read.class_names == example.network.CLASSES
    for index, picture in enumerate(drawn):
        objects, _ = read.objects(index)
        np.testing.assert_allclose(objects.boxes, picture.boxes, atol=1e-3)
        assert objects.classes.tolist() == picture.classes.tolist()


def test_boxes_enclose_what_was_drawn(example):
    """Between two pictures of one background only what lies in boxes differs."""
    plain = example.pictures.draw(1, held_out=False, seed=4)[0]
    left, top, right, bottom = plain.boxes[0]
    assert 0 <= left < right <= 128
    assert 0 <= top < bottom <= 128
    middle = plain.pixels[int((top + bottom) / 2), int((left + right) / 2)].astype(int)
    inside = np.abs(plain.pixels.astype(int) - middle).max(-1) == 0
    rows, columns = np.nonzero(inside)
    assert np.abs([columns.min() - left, columns.max() + 1 - right]).max() <= 2
    assert np.abs([rows.min() - top, rows.max() + 1 - bottom]).max() <= 2


def test_outputs_are_the_corners_that_were_trained(example):
    network = example.network.detector_tiny().eval()
    x = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        found, corners = network(x), network.corners(network.raw(x))
    sides = found[:, 2:4] / 2
    both = torch.cat([found[:, :2] - sides, found[:, :2] + sides], 1)
    torch.testing.assert_close(both, corners, atol=1e-3, rtol=1e-4)
    assert found.shape == (1, 4 + len(example.network.CLASSES), 320)


@pytest.mark.slow
def test_it_learns_and_keeps_its_map_in_fp16_and_int8(example, tmp_path):
    """A few steps are enough to see that every part is there, and nothing lost on the way."""
    tiny = {"factory": "detector_tiny", "batch": 8}
    example.run.trained(tmp_path, epochs=6, pictures=96, held_out=12, **tiny)
    report = example.run.judged(tmp_path, factory="detector_tiny", most_drop=0.05)
    assert report.passed
    fp32, *_ = report.networks
    assert fp32.value > 0.02
    assert list(fp32.score.per_class) == list(example.network.CLASSES)
    gates = [node.op_type for node in read_model(tmp_path / "int8.onnx").graph if operator_of(node)]
    assert sorted(gates) == ["CbamGateMeanLinear", *["CbamGateMeanLinearAdd"] * 4]
    assert "<image" in (tmp_path / "report.html").read_text()
    factory, weights = f"{FOLDER}/network.py:detector_tiny", tmp_path / "detector.pt"
    pytorch, exported = evaluate(
        tmp_path / "fp32.onnx",
        data=str(tmp_path / "val"),
        metric="map",
        reference=factory,
        weights=weights,
    ).networks
    assert (pytorch.name, exported.value) == ("pytorch", fp32.value)
    assert exported.drop == pytest.approx(0, abs=1e-3)
