"""PyTorch rounded like a file: what it rounds, and which faults it finds that FP32 cannot."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from cbam_deploy import export_onnx
from cbam_deploy.artefacts import open_artefact
from cbam_deploy.comparison.reference import open_reference
from cbam_deploy.data.feeds import InputStream
from cbam_deploy.exporters.convert import convert
from cbam_deploy.exporters.half.rounded_runner import open_rounded
from cbam_deploy.numerics.metrics import tensor_error
from cbam_deploy.numerics.tolerances import OUTPUTS, check, check_rounded_alike
from cbam_deploy.validation import rounded_reference, validate
from cbam_deploy.validation.pair import held_to_rounding
from cbam_deploy.validation.parity_report import BatchParity, OutputParity
from cbam_deploy.validation.rounded_reference import RoundedReference

IMAGES = 8


@pytest.fixture(scope="module")
def fp8(network_onnx, tmp_path_factory):
    path = tmp_path_factory.mktemp("fp8") / "network.onnx"
    convert(network_onnx, path, precision="fp8", calibration="digits", images=16)
    return path


def outputs_of(path, feeds):
    with open_rounded(open_artefact(path)) as runner:
        return runner.infer(feeds)["logits"]


@pytest.fixture(scope="module")
def feeds(fp8):
    file = open_artefact(fp8)
    stream = InputStream(file.inputs, file.samples("digits"), 0, IMAGES, None, file.sizes)
    return next(stream.batches(IMAGES))


@pytest.fixture(scope="module")
def rounded(fp8, feeds):
    file = open_artefact(fp8)
    return RoundedReference(open_reference(fp8, file.provenance), file.model, feeds, file.inputs)


@pytest.fixture(scope="module")
def sides(fp8, feeds, rounded):
    """What PyTorch makes of the feeds in FP32, rounded alike, and so with sums in FP64."""
    arrays = list(feeds.values())
    reference = open_reference(fp8, open_artefact(fp8).provenance)
    runs = (reference.run(arrays), rounded.run(arrays), rounded.run(arrays, wide=True))
    return tuple(found[0] for found in runs)


def scaled(path, factor, output):
    """A copy in which the scales of one weight, that of the last block, are off."""
    model = onnx.load(path)
    weights = [one for one in model.graph.initializer if one.name.endswith("conv1.weight_scale")]
    tensor = max(weights, key=lambda one: one.name)
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((array * factor).astype(array.dtype), tensor.name))
    onnx.save(model, output)
    return output


def test_a_fault_that_hides_in_the_noise_of_fp8_is_found(fp8, feeds, sides, tmp_path):
    exact, alike, wide = sides
    own, spread = tensor_error("own", exact, alike), tensor_error("spread", wide, alike)
    faulty = scaled(fp8, 1.3, tmp_path / "faulty.onnx")
    for path, found in ((fp8, False), (faulty, True)):
        actual = outputs_of(path, feeds)
        assert check(tensor_error("logits", exact, actual), OUTPUTS["fp8"]) == ()
        failures = check_rounded_alike(tensor_error("logits", alike, actual), own, spread)
        assert bool(failures) is found


def test_pytorch_rounded_alike_is_where_the_file_is(fp8, feeds, sides):
    exact, alike, _ = sides
    actual = outputs_of(fp8, feeds)
    near, far = tensor_error("near", alike, actual), tensor_error("far", exact, actual)
    assert near.snr_db > far.snr_db + 12
    assert abs(tensor_error("own", exact, alike).snr_db - far.snr_db) < 1


def test_the_report_says_how_far_the_same_rounding_is(fp8, rounded, cli, monkeypatch):
    # Exporting the reference takes seconds; it is the same one.
    monkeypatch.setattr(rounded_reference, "RoundedReference", lambda *_: rounded)
    shown = cli("validate", fp8, "--data", "digits", "--limit", "2", "--batch", "2")
    assert shown.code == 0
    assert "PyTorch rounded to FP8 wherever the file is" in shown.out


def test_another_model_is_not_rounded_and_says_so(fp8):
    layers = (nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    options = {"data": "digits", "limit": 2, "batch_sizes": [2]}
    report = validate(fp8, reference=nn.Sequential(*layers), **options)
    assert not report.passed
    assert report.remark.startswith("not held against PyTorch rounded the same way: ")
    assert report.batches[0].outputs[0].alike is None


def error(snr_db):
    exact = np.ones(4)
    return dataclasses.replace(tensor_error("y", exact, exact), snr_db=snr_db)


@pytest.mark.parametrize(
    ("own", "spread", "bound"),
    [
        (27.0, 40.0, 40 - 20 * np.log10(5)),  # Five times the noise of sums in another order.
        (27.0, np.inf, 33.0),  # Half the noise of the rounding itself.
        (200.0, 200.0, 80.0),  # What FP32 programs may differ by.
    ],
)
def test_the_bound_follows_from_pytorch_s_own_noise(own, spread, bound):
    assert check_rounded_alike(error(bound + 0.1), error(own), error(spread)) == ()
    (sentence,) = check_rounded_alike(error(bound - 0.1), error(own), error(spread))
    assert f"below {bound:.1f}" in sentence


def batch(samples, alike, own, spread):
    output = OutputParity(error(own), (), alike=error(alike), own=error(own), spread=error(spread))
    return BatchParity(batch=samples, samples=samples, seconds=0.0, outputs=(output,))


def failures(*batches):
    held = held_to_rounding(batches, beyond=False)
    return [one.outputs[0].failures for one in held]


def test_a_single_sample_in_which_pytorch_chanced_on_no_half_fails_nothing():
    one = (1, 48.1, 47.8, np.inf)
    assert failures(batch(*one)) == [()]
    assert failures(batch(*one), batch(8, 56.8, 41.0, 50.5)) == [(), ()]
    first, second = failures(batch(1, 36.4, 47.8, np.inf), batch(8, 56.8, 41.0, 50.5))
    assert first != ()
    assert second == ()
    assert failures(batch(8, 48.1, 47.8, np.inf)) != [()]


def test_roundings_that_pytorch_has_not_are_allowed_for():
    own, spread = error(50.0), error(np.inf)
    assert check_rounded_alike(error(53.0), own, spread) != ()
    assert check_rounded_alike(error(53.0), own, spread, beyond=True) == ()
    assert check_rounded_alike(error(43.9), own, spread, beyond=True) != ()


class Activated(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.conv, self.activation, self.head = nn.Conv2d(3, 8, 3), activation, nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.head(self.activation(self.conv(x)))


def test_values_that_the_file_rounds_and_pytorch_has_not_are_named(tmp_path):
    torch.manual_seed(0)
    module = Activated(nn.SiLU()).eval()
    export_onnx(module, tmp_path / "net.onnx", image_size=8)
    convert(tmp_path / "net.onnx", tmp_path / "bf16.onnx", precision="bf16")
    report = validate(tmp_path / "bf16.onnx", reference=module, batch_sizes=[2])
    assert report.passed, report.failure()
    assert "the file rounds 1 value more" in report.remark
