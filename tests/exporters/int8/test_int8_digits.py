"""The trained digits network in INT8: its accuracy, and that of the same integers in PyTorch."""

import numpy as np
import pytest
import torch
from fake_quantized import FakeQuantized, dequantize

from cbam_deploy.data import open_source
from cbam_deploy.exporters.convert import convert
from cbam_deploy.graphs.onnx_file import read_provenance
from cbam_deploy.validation import evaluate, validate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def int8(digits_onnx, tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "digits.onnx"
    convert(digits_onnx, path, precision="int8", calibration="digits")
    return path


def test_int8_is_as_accurate_as_fp32(digits_onnx, int8):
    report = evaluate([digits_onnx, int8], data="digits")
    before, after = report.networks
    assert before.value >= 0.98
    assert after.drop <= 0.005
    assert after.disagreements <= 0.01 * report.images


def classifier_step(network):
    """What one step in every element of the classifier's input changes a logit by, at most."""
    gemm = next(node for node in network.nodes if node.op_type == "Gemm")
    maker = {node.output[0]: node for node in network.nodes}
    activation, weight = (maker[name] for name in gemm.input[:2])
    rows = dequantize(*(network.constants[name] for name in weight.input))
    return float(network.constants[activation.input[1]] * rows.abs().sum(1).max())


def test_validate_finds_the_fake_quantized_pytorch_network_within_one_step(int8):
    reference = FakeQuantized(int8)
    parity = validate(
        int8, reference=reference, data="digits", max_abs=classifier_step(reference), limit=64
    )
    assert parity.passed, parity.failure()


def test_evaluate_finds_the_accuracy_of_the_fake_quantized_pytorch_network(int8):
    source = open_source("digits", read_provenance(int8).preprocessing, split="test")
    reference, right, count = FakeQuantized(int8), 0, 0
    for batch in source.batches(64):
        with torch.inference_mode():
            found = reference(torch.from_numpy(batch.images)).argmax(1).numpy()
        right += int(np.sum(found == batch.labels))
        count += len(batch.labels)
    report = evaluate([int8], data="digits")
    assert report.images == count
    # A picture on the border between two digits may fall to either side.
    assert abs(report.networks[0].value - right / count) <= 1 / count
