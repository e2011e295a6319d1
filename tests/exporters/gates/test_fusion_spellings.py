"""Changes to the graph of a gate: near misses, which must not be fused, and mere respellings."""

import ast

import numpy as np
import onnx
import pytest
from gated_networks import CHANNELS, SIZE
from onnx import helper, numpy_helper

from cbam_deploy.graphs.name_scopes import NAME_SCOPES


def scopes(node):
    entries = {entry.key: entry.value for entry in node.metadata_props}
    return ast.literal_eval(entries.get(NAME_SCOPES, "[]"))


class Graph:
    """The graph of the residual network, with ways to change its first block's gate (CBAM)."""

    def __init__(self, path):
        self.model = onnx.load(path)
        self.graph = self.model.graph
        self.gate = [node for node in self.graph.node if "blocks.0.gate" in scopes(node)]

    def node(self, op, index=0):
        """Node number `index` of operator `op` in the gate."""
        return [node for node in self.gate if node.op_type == op][index]

    def addition(self):
        """The residual addition behind the gate."""
        gated = self.node("Mul", 1).output[0]
        return next(node for node in self.graph.node if gated in node.input)

    def array(self, name):
        (tensor,) = (tensor for tensor in self.graph.initializer if tensor.name == name)
        return numpy_helper.to_array(tensor)

    def new_weight(self, array):
        """Add a weight; return its name."""
        name = f"new_{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def insert_after(self, node, new):
        self.graph.node.insert(list(self.graph.node).index(node) + 1, new)

    def new_output(self, name, shape):
        kind = onnx.TensorProto.FLOAT
        self.graph.output.append(helper.make_tensor_value_info(name, kind, shape))


def set_attribute(node, name, value):
    kept = [entry for entry in node.attribute if entry.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


MAP = ["batch", CHANNELS, SIZE, SIZE]


def other_mlp_for_the_maximum(g):
    gemm = g.node("Gemm", 2)
    gemm.input[1] = g.new_weight(g.array(gemm.input[1]) + np.float32(0.1))


def hard_sigmoid(g):
    g.node("Sigmoid").op_type = "HardSigmoid"


def another_activation_in_the_mlp(g):
    g.node("Relu").op_type = "Tanh"


def scaled_gemm(g):
    set_attribute(g.node("Gemm"), "alpha", 0.5)


def dilated_convolution(g):
    conv = g.node("Conv")
    conv.input[1] = g.new_weight(g.array(conv.input[1])[:, :, 2:5, 2:5])
    set_attribute(conv, "kernel_shape", [3, 3])
    set_attribute(conv, "dilations", [3, 3])


def kernel_of_five(g):
    conv = g.node("Conv")
    conv.input[1] = g.new_weight(g.array(conv.input[1])[:, :, 1:6, 1:6])
    set_attribute(conv, "kernel_shape", [5, 5])
    set_attribute(conv, "pads", [2] * 4)


def padding_on_one_side(g):
    set_attribute(g.node("Conv"), "pads", [0, 0, 6, 6])


def pooled_tensor_is_not_the_gated(g):
    g.node("ReduceMax").input[0] = g.addition().input[1]


def mean_over_other_axes(g):
    mean = g.node("ReduceMean", 1)
    mean.input[1] = g.new_weight(np.array([1, 2, 3]))
    size = g.new_weight(np.array([1, 1, SIZE, SIZE]))
    g.insert_after(mean, helper.make_node("Expand", [mean.output[0], size], ["wide"], name="wide"))
    g.node("Concat").input[1] = "wide"
    (known,) = (value for value in g.graph.value_info if value.name == mean.output[0])
    g.graph.value_info.remove(known)


def maximum_twice(g):
    concat = g.node("Concat")
    concat.input[1] = concat.input[0]


def mean_in_both_branches(g):
    g.node("ReduceMax").op_type = "ReduceMean"


def value_inside_is_an_output(g):
    g.new_output(g.node("Mul").output[0], MAP)


def value_inside_is_used_elsewhere(g):
    inside = g.node("Mul").output[0]
    g.graph.node.append(helper.make_node("Neg", [inside], ["elsewhere"], name="elsewhere"))
    g.new_output("elsewhere", MAP)


def weights_that_are_not_constant(g):
    gemm = g.node("Gemm", 0)
    g.graph.node.insert(0, helper.make_node("Relu", [gemm.input[1]], ["computed"], name="compute"))
    gemm.input[1] = "computed"


NEAR_MISSES = {
    other_mlp_for_the_maximum: "have different MLPs",
    hard_sigmoid: "is made by HardSigmoid, not by Sigmoid",
    another_activation_in_the_mlp: "is made by Tanh, not by Relu",
    scaled_gemm: "scales or transposes",
    dilated_convolution: "is a dilated convolution",
    kernel_of_five: "[1, 2, 5, 5]",
    padding_on_one_side: "is not padded by 3 all around",
    pooled_tensor_is_not_the_gated: "is scaled",
    mean_over_other_axes: "pools over axes [1, 2, 3], not [1]",
    maximum_twice: "is not the maximum and the mean",
    mean_in_both_branches: "both branches",
    value_inside_is_an_output: "is an output of the graph",
    value_inside_is_used_elsewhere: "is also used by elsewhere (Neg)",
    weights_that_are_not_constant: "computed is not constant",
}


@pytest.mark.parametrize(("change", "why"), NEAR_MISSES.items())
def test_near_miss_stays_as_it_is(residual_onnx, fused, same_outputs, change, why):
    graph = Graph(residual_onnx)
    change(graph)
    onnx.checker.check_model(graph.model, full_check=True)
    report, path = fused(graph.model)
    assert why in dict(report.refused)["blocks.0.gate"]
    assert len(report.fused) == 2
    left = {node.SerializeToString() for node in onnx.load(path).graph.node}
    assert {node.SerializeToString() for node in graph.gate} <= left
    same_outputs(path, path.with_name("source.onnx"))


def mean_before_maximum(g):
    concat, conv = g.node("Concat"), g.node("Conv")
    concat.input[0], concat.input[1] = concat.input[1], concat.input[0]
    conv.input[1] = g.new_weight(np.ascontiguousarray(g.array(conv.input[1])[:, ::-1]))


def batch_norm_behind_the_convolution(g):
    conv = g.node("Conv")
    values = {"gamma": 0.7, "beta": -0.2, "mean": 0.3, "variance": 0.5}
    weights = [g.new_weight(np.array([value], np.float32)) for value in values.values()]
    norm = helper.make_node(
        "BatchNormalization", [conv.output[0], *weights], ["norm"], name="norm", epsilon=0.25
    )
    g.insert_after(conv, norm)
    g.node("Sigmoid", 1).input[0] = "norm"


def weights_the_other_way_round(g):
    gemm = g.node("Gemm")
    set_attribute(gemm, "transB", 0)
    gemm.input[1] = g.new_weight(g.array(gemm.input[1]).T.copy())


def operands_swapped(g):
    for node in (g.node("Mul", 0), g.node("Mul", 1), g.node("Add"), g.addition()):
        node.input[0], node.input[1] = node.input[1], node.input[0]


def axes_counted_from_behind(g):
    for node in g.gate:
        if node.op_type in ("ReduceMean", "ReduceMax"):
            node.input[1] = g.new_weight(g.array(node.input[1]) - 4)


def convolution_that_pads_by_itself(g):
    conv = g.node("Conv")
    kept = [entry for entry in conv.attribute if entry.name not in ("pads", "auto_pad")]
    del conv.attribute[:]
    conv.attribute.extend([*kept, helper.make_attribute("auto_pad", "SAME_UPPER")])


def convolution_without_bias(g):
    conv = g.node("Conv")
    del conv.input[2:]


def weights_from_constant_nodes(g):
    gemm = g.node("Gemm")
    value = numpy_helper.from_array(g.array(gemm.input[1]))
    g.graph.node.insert(0, helper.make_node("Constant", [], ["stated"], value=value))
    gemm.input[1] = "stated"


@pytest.mark.parametrize(
    "change",
    [
        mean_before_maximum,
        batch_norm_behind_the_convolution,
        weights_the_other_way_round,
        operands_swapped,
        axes_counted_from_behind,
        convolution_that_pads_by_itself,
        convolution_without_bias,
        weights_from_constant_nodes,
    ],
)
def test_other_spelling_of_a_gate_is_fused(residual_onnx, fused, same_outputs, change):
    graph = Graph(residual_onnx)
    change(graph)
    report, path = fused(graph.model)
    assert len(report.fused) == 3, report.refused
    same_outputs(path, path.with_name("source.onnx"))


def sum_is_an_output(g):
    g.new_output(g.addition().output[0], MAP)


def residual_is_broadcast(g):
    g.addition().input[1] = g.new_weight(np.ones((1, CHANNELS, 1, 1), np.float32))


def gate_is_added_to_itself(g):
    g.addition().input[1] = g.addition().input[0]


@pytest.mark.parametrize(
    "change", [sum_is_an_output, residual_is_broadcast, gate_is_added_to_itself]
)
def test_addition_that_is_not_the_gates_own_stays(residual_onnx, fused, same_outputs, change):
    graph = Graph(residual_onnx)
    change(graph)
    report, path = fused(graph.model)
    assert dict(report.fused)["blocks.0.gate"] == "CbamGate"
    same_outputs(path, path.with_name("source.onnx"))
