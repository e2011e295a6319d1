"""The layer-by-layer comparison names the place of a planted fault, and only a real one."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from cbam_deploy import create_model, export_onnx, validate
from cbam_deploy.artefacts import open_onnx
from cbam_deploy.comparison.layers import ReferenceProgram, compare_layers
from cbam_deploy.comparison.reference import Reference
from cbam_deploy.data.feeds import noise
from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.half.rounded_runner import open_rounded
from cbam_deploy.gates.description import CBAM
from cbam_deploy.models.gate import AttentionGate
from cbam_deploy.numerics.tensors import TensorSpec
from cbam_deploy.numerics.tolerances import LAYERS

GATES_OF_RESNET8 = 3


@pytest.fixture(scope="module")
def compare():
    """Compare the layers of a file with those of the network's model."""
    reference = Reference(create_model("resnet8", num_classes=10, seed=0).eval(), "resnet8")
    image = TensorSpec("input", ("batch", 3, 32, 32), "float32")
    program = ReferenceProgram(reference, noise([image], 2, seed=0, image_size=None), [image])

    def run(artefact, layers):
        opened = open_onnx(artefact, to_run=False)
        return compare_layers(
            opened.model,
            program,
            title=str(artefact),
            layers=layers,
            tolerance=LAYERS["fp32"],
            open_runner=lambda values: open_rounded(opened, extra_outputs=values),
        )

    return run


def conv_weights(path):
    """Weights of the convolutions of the graph, in its order."""
    nodes = onnx.load(path).graph.node
    return [node.input[1] for node in nodes if node.op_type == "Conv"]


def gate_inputs(path, index):
    """Names of what the gate of that index reads: X, (R,) W0, B0, W1, B1, WS, BS."""
    gates = [node for node in onnx.load(path).graph.node if node.domain == "cbam_deploy"]
    return list(gates[index].input)


@pytest.mark.parametrize("layers", ["gates", "all"])
def test_an_intact_file_has_every_layer_in_parity(compare, network_onnx, layers):
    report = compare(network_onnx, layers)
    assert report.passed
    assert report.first_fault is None
    assert report.not_comparable == ()
    compared = [entry.place for entry in report.compared]
    assert sum(place.is_gate for place in compared) == GATES_OF_RESNET8
    assert compared[-1].value == "logits"
    nodes = onnx.load(network_onnx).graph.node
    if layers == "all":
        assert [place.value for place in compared] == [out for n in nodes for out in n.output]


@pytest.mark.parametrize("layers", ["gates", "all"])
@pytest.mark.parametrize("convolution", [0, 7, -1])
def test_a_convolution_weight_off_by_one_percent_is_named(
    compare, network_onnx, with_weight, convolution, layers
):
    weight = conv_weights(network_onnx)[convolution]
    damaged = with_weight(weight, lambda array: array * 1.01)
    report = compare(damaged, layers)
    assert not report.passed
    fault = report.first_fault
    assert fault.place.op == "Conv"
    assert weight in fault.place.weights
    (sentence,) = report.failures
    assert weight in sentence


@pytest.mark.parametrize("layers", ["gates", "all"])
def test_a_weight_inside_a_gate_off_by_one_percent_is_named(
    compare, network_onnx, with_weight, layers
):
    # The last gate: its four hidden units are not all zero for the seeded noise.
    w1 = gate_inputs(network_onnx, -1)[-4]
    damaged = with_weight(w1, lambda array: array * 1.01)
    report = compare(damaged, layers)
    fault = report.first_fault
    assert fault.place.is_gate
    assert w1 in fault.place.weights
    assert report.first_gate is fault


@pytest.mark.parametrize("convolution", [0, 7, -1])
def test_a_single_entry_off_by_one_percent_is_named(
    compare, network_onnx, with_weight, convolution
):
    weight = conv_weights(network_onnx)[convolution]

    def change(array):
        # An entry of median magnitude: neither the easiest nor the hardest to see.
        order = np.argsort(np.abs(array), axis=None)
        array.flat[order[array.size // 2]] *= 1.01
        return array

    report = compare(with_weight(weight, change), "all")
    assert weight in report.first_fault.place.weights


def test_most_single_entries_off_by_one_percent_are_named_and_no_other_place(
    compare, network_onnx, with_weight
):
    generator = np.random.default_rng(0)
    weights = conv_weights(network_onnx)
    named = 0
    for _ in range(8):
        weight = weights[generator.integers(len(weights))]

        def change(array):
            array.flat[generator.integers(array.size)] *= 1.01
            return array

        fault = compare(with_weight(weight, change), "all").first_fault
        assert fault is None or weight in fault.place.weights
        named += fault is not None
    assert named >= 6


def test_the_classifier_behind_the_last_gate_is_named_too(compare, network_onnx, with_weight):
    weight = onnx.load(network_onnx).graph.node[-1].input[1]
    damaged = with_weight(weight, lambda array: array * 1.01)
    fault = compare(damaged, "gates").first_fault
    assert fault.place.value == "logits"


def test_of_two_faults_the_first_is_named(compare, network_onnx, altered):
    first, second = (conv_weights(network_onnx)[index] for index in (4, 6))

    def change(model):
        for tensor in model.graph.initializer:
            if tensor.name in (first, second):
                array = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))

    fault = compare(altered(change), "gates").first_fault
    assert first in fault.place.weights


def test_a_nan_is_traced_to_where_it_enters(compare, network_onnx, with_weight):
    weight = conv_weights(network_onnx)[5]
    # Products beyond FP32's range of both signs: their sum is infinity less infinity.
    damaged = with_weight(weight, lambda array: np.copysign(np.float32(3e38), array))
    fault = compare(damaged, "all").first_fault
    assert weight in fault.place.weights
    assert "NaN" in fault.failures[0]


def rename(model, names):
    for node in model.graph.node:
        for values in (node.input, node.output):
            for index, value in enumerate(values):
                values[index] = names.get(value, value)
    del model.graph.value_info[:]


def test_a_value_without_counterpart_is_reported_never_passed_over(compare, network_onnx, altered):
    value = onnx.load(network_onnx).graph.node[3].output[0]
    damaged = altered(lambda model: rename(model, {value: "nobody"}))
    report = compare(damaged, "all")
    ((place, reason),) = report.not_comparable
    assert place.value == "nobody"
    assert reason == "not in the reference"
    assert report.to_json()["not_comparable"][0]["value"] == "nobody"


def test_a_value_of_another_shape_is_not_comparable(compare, network_onnx, altered):
    nodes = onnx.load(network_onnx).graph.node
    image, vector = nodes[0].output[0], nodes[-2].output[0]
    damaged = altered(lambda model: rename(model, {image: vector, vector: image}))
    reasons = [reason for _, reason in compare(damaged, "all").not_comparable]
    assert len(reasons) == 2
    assert all("of shape" in reason for reason in reasons)


def test_a_file_with_no_name_in_common_is_refused(compare, network_onnx, altered):
    outputs = [name for node in onnx.load(network_onnx).graph.node for name in node.output]
    names = {name: f"other_{name}" for name in outputs if name != "logits"}
    damaged = altered(lambda model: rename(model, names))
    for layers in ("gates", "all"):
        with pytest.raises(BadInput, match="none of the values inside it"):
            compare(damaged, layers)


def test_in_a_file_without_gates_outputs_lead_to_the_fault(compare, altered):
    def strip(model):
        for node in model.graph.node:
            if node.domain == "cbam_deploy":
                node.CopyFrom(onnx.helper.make_node("Relu", [node.input[1]], [node.output[0]]))

    fault = compare(altered(strip), "gates").first_fault
    assert fault.place.op == "Relu"


def test_validate_names_the_place_and_says_so_in_one_sentence(tmp_path):
    convolution = nn.Conv2d(3, 16, 1)
    network = nn.Sequential(convolution, AttentionGate(16, CBAM)).eval()
    export_onnx(network, tmp_path / "altered.onnx", image_size=8)
    with torch.no_grad():
        convolution.weight *= 1.01
    report = validate(tmp_path / "altered.onnx", reference=network, layers="gates", batch_sizes=[1])
    assert not report.passed
    message, _ = report.failure()
    assert "first fault at Conv" in message
    assert "0.weight" in message
    *_, case = report.junit_cases()
    assert case.name == "altered.onnx layers (gates)"
    assert "0.weight" in case.message


def test_an_engine_has_no_layers_to_compare(compare, engine_like):
    with pytest.raises(BadInput, match=r"model\.engine: an engine does not give out"):
        validate(engine_like, layers="gates")
