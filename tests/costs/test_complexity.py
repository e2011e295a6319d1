"""Parameters and multiply-adds are those of the formulas, in modules and in graphs alike."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from cbam_deploy import complexity, create_model
from cbam_deploy.errors import BadInput
from cbam_deploy.gates.description import GateSpec
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.provenance import METADATA_KEY, Provenance


def products(model: nn.Module, size: int) -> int:
    """Multiply-adds by the textbook, from the shapes that each layer really gives."""
    total = 0

    def count(layer, inputs, output):
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            terms = layer.in_channels // layer.groups * math.prod(layer.kernel_size)
            total += output.numel() * terms
        else:
            total += output.numel() * layer.in_features

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    return total


@pytest.mark.parametrize(
    ("name", "attention"), [("mobilenet", "cbam"), ("resnet18", "se"), ("resnet18", "none")]
)
def test_a_modules_count_is_the_formulas(name, attention):
    counted = complexity(name, attention=attention, image_size=64)
    model = create_model(name, attention=attention).eval()
    assert counted.multiply_adds == products(model, 64)
    assert counted.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert counted.inputs == ((1, 3, 64, 64),)


def test_a_gate_is_one_part_with_all_that_is_in_it():
    counted = complexity("resnet20", num_classes=10)
    channels, hidden, side = 64, 4, 8
    last = counted.gates[-1]
    assert len(counted.gates) == 9
    assert last.name == "layer3.2.gate"
    assert last.parameters == (2 * channels * hidden + channels + hidden) + (2 * 49 + 2)
    assert last.multiply_adds == 2 * (2 * channels * hidden) + 2 * 49 * side * side


def test_a_variant_of_the_gate_is_counted_as_such():
    small = GateSpec(kernel_size=3, channel_pool="avg")
    assert complexity("resnet20", gate=small).gates[0].multiply_adds == 2 * 16 + 2 * 9 * 32 * 32


def test_parameters_that_modules_share_count_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
            self.right.weight = self.left.weight

        def forward(self, x):
            return self.right(self.left(self.conv(x).mean((2, 3))))

    counted = complexity(Tied(), image_size=8)
    assert counted.parameters == (4 * 27 + 4) + (16 + 4)
    assert counted.multiply_adds == 4 * 27 * 6 * 6 + 16 + 16


class Called(nn.Module):
    """Layers in containers, called by others than their parents, and by their weights alone."""

    def __init__(self):
        super().__init__()
        self.rows = nn.ModuleList([nn.ModuleList([nn.Conv2d(3, 4, 1)]), nn.Conv2d(4, 4, 1)])
        self.store = nn.ModuleDict({"last": nn.Linear(4, 2)})
        self.head = Head(self.store["last"])
        self.again = self.head

    def forward(self, x):
        x = self.rows.get_submodule("0.0")(x)
        for _ in range(2):
            x = self.rows[1](x)
        x = nn.functional.conv2d(x, self.rows[1].weight)
        return self.head(x.mean((2, 3)))


class Head(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.stored = [last]

    def forward(self, x):
        return self.stored[0](x)


def test_each_product_is_of_the_module_that_makes_it_and_none_is_negative():
    counted = complexity(Called(), image_size=5)
    assert {part.name: part.multiply_adds for part in counted.parts} == {
        "Called": 4 * 4 * 25,
        "rows.0.0": 3 * 4 * 25,
        "rows.1": 2 * 4 * 4 * 25,
        "store.last": 4 * 2,
    }
    (section,) = counted.sections()
    assert any("no modules of cbam_deploy's" in said for _, said in section.tables[0].rows)


def test_a_file_counts_as_its_module_but_for_what_export_folds(digits_run, digits_onnx):
    module = complexity("resnet20", weights=digits_run / "best.safetensors")
    file = complexity(digits_onnx)
    model = create_model("resnet20", num_classes=10)
    folded = sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    once = sum(c * (c // 16) for c in (16, 32, 64) for _ in range(3))  # W1, per gate
    assert module.parameters - file.parameters == folded
    assert module.multiply_adds - file.multiply_adds == once
    assert file.inputs == module.inputs == ((1, 3, 16, 16),)
    layers = {part.name for part in module.parts if part.multiply_adds}
    assert {part.name for part in file.parts} == layers
    assert [gate.name for gate in file.gates] == [gate.name for gate in module.gates]


def graph(nodes, shape, weights, opset=18):
    """A model of one input `x` and one output `y`; weights by name."""
    free = [f"axis{axis}" if size is None else size for axis, size in enumerate(shape)]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, free)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(shape))]
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    model = helper.make_graph(nodes, "g", inputs, outputs, stored)
    return helper.make_model(model, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def counted_graph(tmp_path, *arguments, **options):
    path = tmp_path / "graph.onnx"
    onnx.save(graph(*arguments), path)
    return complexity(path, **options)


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("node", "shape", "weights", "expected"),
    [
        (("Conv", {"group": 2, "strides": [2, 2]}), (1, 4, 9, 9), (6, 2, 3, 3), 6 * 16 * 18),
        (("ConvTranspose", {"strides": [2, 2]}), (1, 4, 5, 5), (4, 6, 2, 2), 4 * 25 * 24),
        (("Gemm", {"transB": 1}), (1, 7), (5, 7), 35),
        (("Gemm", {"transA": 1}), (1, 7), (1, 5), 35),
        (("MatMul", {}), (1, 3, 4, 7), (7, 5), 3 * 4 * 7 * 5),
    ],
)
def test_each_operator_is_counted_by_its_definition(tmp_path, node, shape, weights, expected):
    kind, attributes = node
    made = helper.make_node(kind, ["x", "w"], ["y"], **attributes)
    counted = counted_graph(tmp_path, [made], shape, {"w": zeros(*weights)})
    assert counted.multiply_adds == expected
    assert counted.parameters == math.prod(weights)


def test_a_batch_is_counted_as_one_picture_be_it_free_or_fixed(tmp_path):
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    weights = {"w": zeros(2, 3, 1, 1)}
    for batch in (None, 8):
        counted = counted_graph(tmp_path, [node], (batch, 3, 4, 4), weights)
        assert counted.multiply_adds == 2 * 3 * 16


def test_integer_weights_count_and_their_scales_do_not(tmp_path):
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wf"], axis=0),
        helper.make_node("Conv", ["x", "wf"], ["y"]),
    ]
    weights = {
        "w": zeros(2, 3, 1, 1, dtype=np.int8),
        "s": zeros(2) + 1,
        "z": zeros(2, dtype=np.int8),
    }
    counted = counted_graph(tmp_path, nodes, (1, 3, 4, 4), weights)
    assert [(part.kind, part.parameters) for part in counted.parts] == [("Conv", 6)]


def test_products_of_another_kind_are_named_as_not_counted(tmp_path):
    node = helper.make_node("Einsum", ["x", "w"], ["y"], equation="nc,cd->nd")
    counted = counted_graph(tmp_path, [node], (1, 3), {"w": zeros(3, 4)})
    assert counted.uncounted == {"Einsum": 1}
    assert counted.multiply_adds == 0


def test_free_sides_need_the_image_size(tmp_path):
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    arguments = ([node], (None, 3, None, None), {"w": zeros(2, 3, 1, 1)})
    assert counted_graph(tmp_path, *arguments, image_size=5).multiply_adds == 2 * 3 * 25
    with pytest.raises(BadInput, match="leaves sizes free") as caught:
        counted_graph(tmp_path, *arguments)
    assert "--image-size" in caught.value.hint


def test_free_sides_are_those_that_the_file_records(tmp_path):
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    model = graph([node], (None, 3, None, None), {"w": zeros(2, 3, 1, 1)})
    entry = model.metadata_props.add(key=METADATA_KEY)
    for recorded, options, positions in (
        (Provenance(sizes={"axis2": 4, "axis3": 6}), {}, 24),
        (Provenance(sizes={"axis2": 4, "axis3": 6}), {"image_size": 5}, 25),
        (Provenance(preprocessing=Preprocessing.for_size(7)), {}, 49),
    ):
        entry.value = recorded.dumps()
        onnx.save(model, tmp_path / "free.onnx")
        assert complexity(tmp_path / "free.onnx", **options).multiply_adds == 6 * positions


def test_what_cannot_be_counted_is_refused(tmp_path):
    with pytest.raises(BadInput, match="fused gates"):
        complexity(create_model("resnet20", fused=True).eval(), image_size=32)
    with pytest.raises(BadInput, match="--attention cannot change"):
        complexity(tmp_path / "x.onnx", attention="se")
    with pytest.raises(BadInput, match="image size 0"):
        complexity("resnet18", image_size=0)
    with pytest.raises(BadInput, match="running it on 1x3x224x224 failed") as caught:
        complexity(nn.Linear(5, 5))
    assert "--image-size" in caught.value.hint


def test_the_command_prints_and_writes_what_the_function_counts(cli, tmp_path):
    shown = cli("complexity", "resnet20", "--attention", "se", "--by-module")
    assert shown.code == 0
    assert "layer3.2.gate" in shown.out
    report = tmp_path / "counts.json"
    shown = cli("complexity", "resnet20", "--attention", "se", "--json", "--report", report)
    counted = complexity("resnet20", attention="se")
    assert json.loads(shown.out) == json.loads(report.read_text())
    assert json.loads(shown.out)["multiply_adds"] == counted.multiply_adds
    assert sum(part["parameters"] for part in json.loads(shown.out)["parts"]) == counted.parameters
