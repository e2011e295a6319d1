"""Kernels become layers, whatever runs them, and no time is lost on the way."""

import onnx_ir as ir
import pytest

from cbam_deploy.profiling.kernels import Kernel, precision_of
from cbam_deploy.profiling.layers import layers_of
from cbam_deploy.profiling.openvino import counters
from cbam_deploy.profiling.origins import Origins
from cbam_deploy.profiling.tensorrt import kernel, layer_facts


@pytest.fixture(scope="module")
def origins(gated_file):
    return Origins(ir.load(gated_file))


KERNELS = (
    Kernel("k0", "Conv", 4.0, "fp32", ("stem_conv", "rectified")),
    Kernel("k1", "ReorderOutput", 0.5, "fp32", ("rectified",), "reorder"),
    Kernel("k2", "Conv", 2.0, "int8", ("gate/mean",)),
    Kernel("k3", "ReorderOutput", 0.25, "fp32", ("gate/mean",), "reorder"),
    Kernel("k4", "Mul", 1.0, "fp32", ("gate",)),
    Kernel("k5", "Mystery", 8.0),
    Kernel("k6", "Cast", 0.125, "fp16", ("stem_conv",), "cast"),
)


def test_every_kernel_is_in_one_layer(origins):
    layers = layers_of(KERNELS, origins)
    assert sum(layer.seconds for layer in layers) == sum(one.seconds for one in KERNELS)
    assert sum(layer.kernels for layer in layers) == len(KERNELS)


def test_conversions_are_layers_of_their_own_but_those_within_a_gate(origins):
    layers = layers_of(KERNELS, origins)
    found = [(layer.name, layer.operator, layer.kind, layer.seconds) for layer in layers]
    assert found == [
        ("stem_conv", "Conv", "product", 4.0),
        ("rectified", "ReorderOutput", "reorder", 0.5),
        ("gate", "CbamGateAddRelu", "gate", 3.25),
        ("k5", "Mystery", "other", 8.0),
        ("stem_conv", "Cast", "reorder", 0.125),
    ]
    assert [layer.conversion_seconds for layer in layers] == [0, 0.5, 0.25, 0, 0.125]


def test_a_convolution_that_adds_up_a_gates_residual_is_a_convolution(origins):
    kernels = [Kernel("k", "Convolution", 1.0, "fp32", ("gate/sum", "block_conv", "gate/relu"))]
    (layer,) = layers_of(kernels, origins)
    assert (layer.name, layer.kind) == ("block_conv", "product")
    assert "gate/sum" in layer.fused


def test_a_layer_has_the_precision_that_most_of_its_time_has(origins):
    gate = layers_of(KERNELS, origins)[2]
    assert (gate.precision, gate.asked, gate.module) == ("int8", "fp32", "block.gate")


def test_precisions_have_one_name_in_all_runtimes():
    types = [["int64", "float"], ["f16"], ["u8"], ["uint8", "float"], ["half"], []]
    assert [precision_of(one) for one in types] == ["fp32", "fp16", "int8", "int8", "", ""]


def test_counters_of_openvino_are_sums_of_what_was_cut_to_microseconds():
    executed = [{"execTimeMcs": "7", "name": "a"}, {"execTimeMcs": "not_executed"}, {}]
    assert [one.microseconds for one in counters(executed, 4)] == [30.0, 0.0, 0.0]


def test_layers_of_engines_name_the_nodes_that_are_fused_in_them():
    found = kernel("node_a + node_b", 1e-3, {"LayerType": "CaskConvolution"})
    assert (found.nodes, found.operator, found.conversion) == (
        ("node_a", "node_b"), "CaskConvolution", "",
    )  # fmt: skip
    facts = {"Inputs": [{"Format/Datatype": "Int8 NC/32HW32"}]}
    assert kernel("{ForeignNode[a...b]}", 1.0, facts).precision == "int8"
    assert kernel("Reformatting CopyNode for Input Tensor 0 to a", 1.0, {}).conversion == "reorder"


def test_engines_that_record_names_alone_have_no_facts():
    assert layer_facts('{"Layers": ["a", "b"]}') == {}
    assert layer_facts('{"Layers": [{"Name": "a", "LayerType": "Shuffle"}]}') == {
        "a": {"Name": "a", "LayerType": "Shuffle"}
    }
