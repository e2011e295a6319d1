"""The accuracy budget: which layers go back to float, and when to give up."""

from __future__ import annotations

import io
import json

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from rich.console import Console

from cbam_deploy.errors import BadInput, CheckFailed
from cbam_deploy.exporters.int8.budget import meet_budget, rank_layers
from cbam_deploy.exporters.int8.calibration import calibrate
from cbam_deploy.exporters.int8.placement import calibrated_tensors, quantized_nodes
from cbam_deploy.exporters.int8.quantization import insert, prepare

CLASSES = 5
CHANNELS = 16
OUTLIER = 1e4

_GRAPH = f"""
<ir_version: 10, opset_import: ["" : 18]>
plain (float[n, 3, 8, 8] input) => (float[n, {CLASSES}] logits)
{{
  c1 = Conv <pads = [1, 1, 1, 1]> (input, w1)
  r1 = Relu (c1)
  p1 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r1)
  c2 = Conv <pads = [1, 1, 1, 1]> (p1, w2)
  r2 = Relu (c2)
  c3 = Conv <pads = [1, 1, 1, 1]> (r2, w3)
  r3 = Relu (c3)
  c4 = Conv <pads = [1, 1, 1, 1]> (r3, w4)
  r4 = Relu (c4)
  mean = ReduceMean <keepdims = 0> (r4, axes)
  logits = MatMul (mean, fc)
}}
"""


def pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy copies of one picture for each class, with their labels."""
    classes = np.random.default_rng(99).standard_normal((CLASSES, 3, 8, 8)) * 2
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, count)
    x = classes[labels] + 0.3 * random.standard_normal((count, 3, 8, 8))
    return x.astype(np.float32), labels


def session_of(model: ir.Model) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())


def network(outlier: float = 1.0) -> ir.Model:
    """Random convolutions under a classifier fitted to the pictures.

    One channel that `c2` writes is `outlier` times larger than it would be, and what `c3` makes of
    it as much smaller: in float, the network computes the same.
    """
    random = np.random.default_rng(0)
    arrays = {"axes": np.array([2, 3]), "fc": np.eye(CHANNELS, CLASSES, dtype=np.float32)}
    for index, inputs in enumerate((3, CHANNELS, CHANNELS, CHANNELS), start=1):
        kernel = random.standard_normal((CHANNELS, inputs, 3, 3)) * np.sqrt(2 / (9 * inputs))
        arrays[f"w{index}"] = kernel.astype(np.float32)
    arrays["w2"][5] *= outlier
    arrays["w3"][:, 5] /= outlier
    proto = onnx.parser.parse_model(_GRAPH)
    for name, value in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    for node in proto.graph.node:
        node.name = node.output[0]
    model = prepare(ir.from_proto(proto))
    model.graph.initializers["fc"].const_value = ir.tensor(_fitted(model))
    return model


def _fitted(model: ir.Model) -> np.ndarray:
    """The classifier, by least squares on what the convolutions make of the pictures."""
    x, labels = pictures(200, seed=1)
    proto = ir.to_proto(model)
    proto.graph.output.append(
        onnx.helper.make_tensor_value_info("mean", onnx.TensorProto.FLOAT, None)
    )
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    (features,) = session.run(["mean"], {"input": x})
    wanted = np.eye(CLASSES)[labels] - 1 / CLASSES
    return np.linalg.lstsq(features, wanted, rcond=None)[0].astype(np.float32)


def top1(model: ir.Model) -> float:
    x, labels = pictures(400, seed=2)
    (logits,) = session_of(model).run(None, {"input": x})
    return float((logits.argmax(axis=1) == labels).mean())


def sample():
    return [pictures(16, seed=3)[0]]


def calibrated(model):
    return calibrate(model, calibrated_tensors(quantized_nodes(model)), sample(), method="minmax")


def top1_in_int8(model: ir.Model, kept: frozenset[str] = frozenset()) -> float:
    return top1(insert(model, calibrated(model), keep_float=kept)[0])


def meet(model, *, evaluate=None, max_accuracy_drop=0.005, sample=sample):
    return meet_budget(
        model,
        calibrated(model),
        baseline=top1(model),
        max_accuracy_drop=max_accuracy_drop,
        evaluate=evaluate or (lambda kept: top1_in_int8(model, kept)),
        sample=sample,
    )


def test_exactly_the_layer_that_reads_an_outlier_channel_is_given_back():
    model = network(OUTLIER)
    assert top1(model) >= 0.99
    budget = meet(model)
    assert budget.given_back == ("c3",)
    assert [step.given_back for step in budget.steps] == [(), ("c3",)]
    assert budget.steps[0].accuracy < 0.9
    assert budget.steps[1].accuracy >= budget.baseline - 0.005
    assert budget.passed


def test_without_the_outlier_nothing_is_given_back_or_measured():
    def unexpected():
        raise AssertionError("noise is measured only when layers must be given back")

    budget = meet(network(), sample=unexpected)
    assert budget.passed
    assert budget.given_back == budget.ranking == ()


def test_the_noise_of_a_layer_is_that_of_its_output_with_only_it_quantized():
    model = network(OUTLIER)
    ranking = rank_layers(model, calibrated(model), sample())
    noise = {layer.node: layer.snr_db for layer in ranking}
    assert list(noise) == sorted(noise, key=noise.__getitem__)
    assert set(noise) == {"c1", "p1", "c2", "c3", "c4", "mean", "logits"}
    assert ranking[0].node == "c3"
    weight = model.graph.initializers["w1"].const_value.numpy().astype(np.float64)
    x = sample()[0].astype(np.float64)
    exact = convolution(x, weight)
    by_channel = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127
    error = convolution(rounded(x, np.abs(x).max() / 127), rounded(weight, by_channel)) - exact
    expected = 10 * np.log10((exact**2).sum() / (error**2).sum())
    assert noise["c1"] == pytest.approx(expected, abs=0.05)


def rounded(values, scale):
    return np.clip(np.round(values / scale), -128, 127) * scale


def convolution(x, weight):
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, weight)


def test_the_noisiest_layers_go_back_until_the_budget_holds_and_no_more_of_them():
    model = network()
    order = [layer.node for layer in rank_layers(model, calibrated(model), sample())]
    needed = {order[0], order[2]}
    budget = meet(model, evaluate=lambda kept: len(needed & kept) / 2)
    assert budget.given_back == (order[0], order[2])
    tried = [step.given_back for step in budget.steps]
    assert tried[:5] == [(), *(tuple(order[:count]) for count in (1, 2, 4, 3))]


def test_a_budget_that_cannot_be_met_names_the_best_that_was_achieved():
    model = network()
    measured = iter([0.1, 0.3, 0.9, 0.2, 0.2])
    with pytest.raises(CheckFailed, match=r"0\.50% below .* the best is 90\.00%, with 2 of 7"):
        meet(model, evaluate=lambda _: next(measured))


def test_a_budget_beyond_all_accuracies_is_refused():
    with pytest.raises(BadInput, match="50"):
        meet(network(), max_accuracy_drop=50)


def test_the_report_says_all_in_json_and_as_a_table():
    budget = meet(network(OUTLIER))
    data = json.loads(json.dumps(budget.to_json()))
    assert data["given_back"] == ["c3"]
    assert data["passed"] is True
    assert len(data["ranking"]) == 7
    shown = io.StringIO()
    Console(width=80, file=shown).print(budget)
    assert "c3" in shown.getvalue()
