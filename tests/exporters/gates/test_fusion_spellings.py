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


def weights_that_are_not_constant(g):
    gemm = g.node("Gemm", 0)
    g.graph.node.insert(0, helper.make_node("Relu", [gemm.input[1]], ["computed"], name="compute"))
    gemm.input[1] = "computed"


CHANNEL, SPATIAL = "SeGateMeanMax", "SpatialGateAddRelu"
# The half that is fused all the same, and why the other is not.
NEAR_MISSES = {
    other_mlp_for_the_maximum: (SPATIAL, "mean and maximum have different weights"),
    hard_sigmoid: (SPATIAL, "its gate function is clip(0.2·z + 0.5, 0, 1)"),
    another_activation_in_the_mlp: (SPATIAL, "tanh lies between its layers"),
    scaled_gemm: (SPATIAL, "a Gemm scales or transposes its input"),
    padding_on_one_side: (CHANNEL, "a 7x7 convolution is not padded by 3 all around"),
    pooled_tensor_is_not_the_gated: (SPATIAL, "computed from another map (a convolution)"),
    mean_over_other_axes: (CHANNEL, "a mean is over axes [1, 2, 3] of [N, C, H, W], not over [1]"),
    maximum_twice: (CHANNEL, "its convolution does not see [max; mean] over channels"),
    mean_in_both_branches: (SPATIAL, "both of its branches pool the mean"),
    weights_that_are_not_constant: (SPATIAL, "a weight is computed (ReLU)"),
}


@pytest.mark.parametrize(
    ("change", "op", "why"), [(one, *told) for one, told in NEAR_MISSES.items()]
)
def test_near_miss_stays_as_it_is(residual_onnx, fused, same_outputs, change, op, why):
    graph = Graph(residual_onnx)
    change(graph)
    onnx.checker.check_model(graph.model, full_check=True)
    report, path = fused(graph.model)
    assert [one for _, one in report.fused] == [op, "SeGateAddRelu", "CbamGateAddRelu"]
    ((where, reason),) = report.refused
    assert where == "blocks.0.gate"
    assert why in reason
    same_outputs(path, path.with_name("source.onnx"))


def refined_map_is_an_output(g):
    g.new_output(g.node("Mul").output[0], MAP)


def refined_map_is_used_elsewhere(g):
    inside = g.node("Mul").output[0]
    g.graph.node.append(helper.make_node("Neg", [inside], ["elsewhere"], name="elsewhere"))
    g.new_output("elsewhere", MAP)


def attention_is_used_elsewhere(g):
    attention = g.node("Sigmoid", 1).output[0]
    g.graph.node.append(helper.make_node("Neg", [attention], ["elsewhere"], name="elsewhere"))
    g.new_output("elsewhere", ["batch", 1, SIZE, SIZE])


def attention_is_an_output(g):
    g.new_output(g.node("Sigmoid", 1).output[0], ["batch", 1, SIZE, SIZE])


def channel_attention_is_an_output(g):
    g.new_output(g.node("Sigmoid").output[0], ["batch", CHANNELS])


def attention_multiplies_another_map(g):
    mul = g.node("Mul", 1)
    mul.input[list(mul.input).index(g.node("Mul").output[0])] = g.addition().input[1]


LEAVING = {
    refined_map_is_an_output: ([CHANNEL, SPATIAL], None),
    refined_map_is_used_elsewhere: ([CHANNEL, SPATIAL], None),
    attention_is_used_elsewhere: (
        [CHANNEL],
        "the spatial part: its attention map is also used outside, by a negation",
    ),
    attention_is_an_output: (
        [CHANNEL],
        "the spatial part: its attention map is an output of the network as well",
    ),
    channel_attention_is_an_output: (
        [SPATIAL],
        "the channel part: its attention map is an output of the network as well",
    ),
    attention_multiplies_another_map: (
        [CHANNEL],
        "the spatial part: it is computed from another map (a product) than the one it multiplies",
    ),
}


@pytest.mark.parametrize(("change", "ops", "why"), [(one, *told) for one, told in LEAVING.items()])
def test_parts_are_fused_where_another_leaves(residual_onnx, fused, same_outputs, change, ops, why):
    graph = Graph(residual_onnx)
    convolutions = len([node for node in graph.graph.node if node.op_type == "Conv"])
    change(graph)
    report, path = fused(graph.model)
    assert [op for where, op in report.fused if where.startswith("blocks.0.gate")] == ops
    assert [reason for _, reason in report.refused] == ([] if why is None else [why])
    left = [node.op_type for node in onnx.load(path).graph.node]
    kept = sum(op.startswith("Spatial") for op in ops)
    assert left.count("Conv") == convolutions - kept - 1  # That of blocks.2.gate is fused too.
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
        dilated_convolution,
        kernel_of_five,
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
    ("change", "op"),
    [
        (sum_is_an_output, "CbamGateAdd"),
        (residual_is_broadcast, "CbamGate"),
        (gate_is_added_to_itself, "CbamGate"),
    ],
)
def test_what_is_not_the_gates_own_stays(residual_onnx, fused, same_outputs, change, op):
    graph = Graph(residual_onnx)
    change(graph)
    report, path = fused(graph.model)
    assert dict(report.fused)["blocks.0.gate"] == op
    same_outputs(path, path.with_name("source.onnx"))
