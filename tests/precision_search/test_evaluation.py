"""What a trial is judged by: the value that `evaluate` gives, or what outputs keep."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from planted_networks import write_network, write_pictures

from cbam_deploy import evaluate
from cbam_deploy.artefacts import open_onnx
from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.half.conversion import to_half
from cbam_deploy.precision_search.evaluation import Evaluation


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    write_pictures(folder / "pictures.npy", 40)
    return open_onnx(write_network(folder / "network.onnx", cancels=(3,), classes=10))


def evaluation(file, data="digits", metric=None, limit=None):
    return Evaluation(file, data, metric=metric, preprocessing=None, limit=limit)


def in_fp16(file):
    half = file.model.clone()
    to_half(half)
    return half


def test_top1_is_that_of_evaluate(file, tmp_path):
    judged = evaluation(file, limit=355)
    half = in_fp16(file)
    ir.save(half, tmp_path / "half.onnx")
    original, converted = evaluate([file.path, tmp_path / "half.onnx"], data="digits").networks
    assert (judged.metric, judged.images) == ("top1", 355)
    assert judged.baseline == original.value
    assert judged.judge(half).value == converted.value != original.value


def test_fidelity_is_one_less_the_error_over_the_energy_of_the_outputs(file):
    pictures = file.path.with_name("pictures.npy")
    judged = evaluation(file, str(pictures), limit=40)
    assert (judged.metric, judged.baseline, judged.images) == ("fidelity", 1.0, 40)
    broken = file.model.clone()
    weight = broken.graph.initializers["fc.weight"]
    changed = weight.const_value.numpy().copy()
    changed[:, 3] = 0
    weight.const_value = ir.tensor(changed, name=weight.name)
    x = np.load(pictures)
    (logits,) = onnxruntime.InferenceSession(str(file.path)).run(None, {"input": x})
    energy = np.square(logits.astype(np.float64)).sum(axis=0)
    assert judged.judge(broken).value == pytest.approx(1 - energy[3] / energy.sum(), rel=1e-6)


def test_an_output_that_is_not_finite_keeps_nothing(file):
    broken = file.model.clone()
    weight = broken.graph.initializers["fc.weight"]
    changed = weight.const_value.numpy().copy()
    changed[0, 0] = np.inf
    weight.const_value = ir.tensor(changed, name=weight.name)
    outcome = evaluation(file, metric="fidelity").judge(broken)
    assert (outcome.value, outcome.noise) == (0.0, 1.0)


def test_on_few_pictures_the_fall_is_that_on_those(file):
    judged = evaluation(file)
    few = evaluation(file, limit=16)
    fall = few.baseline - few.judge(in_fp16(file)).value
    probed = judged.judge(in_fp16(file), few=True)
    assert judged.images == 256
    assert judged.baseline - probed.value == pytest.approx(fall)
    assert fall != 0


def test_fingerprints_differ_by_pictures_and_metric(file):
    judged = [evaluation(file, limit=8), evaluation(file, limit=16)]
    judged.append(evaluation(file, metric="fidelity", limit=16))
    assert len({one.fingerprint() for one in judged}) == 3
    assert evaluation(file, limit=8).fingerprint() == judged[0].fingerprint()


def test_a_metric_that_nothing_can_fall_below_is_refused(file, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "cbam_deploy.validation.metrics.top1.ranks", lambda x, _: np.full(len(x), 9)
    )
    with pytest.raises(BadInput, match=r"top-1 on digits is 0\.00%"):
        evaluation(file, metric="top1")
    assert evaluation(file).metric == "fidelity"
