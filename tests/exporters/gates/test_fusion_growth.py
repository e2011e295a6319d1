"""What fusing and inspecting a graph takes grows with the graph, and not faster.

Calls are counted, not seconds: the count is the same on any machine.
"""

import sys

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from spelled_gates import CHANNELS, Spelling, write

from cbam_deploy.exporters.gates.fusion import fuse
from cbam_deploy.exporters.gates.search import find_gates
from cbam_deploy.graphs.shapes import Shapes
from cbam_deploy.inspection import inspect

FEW, MANY = 250, 1000


def graph(nodes, initializers=()):
    """A model from ``input`` to the output of the last node; a node is (operator, inputs)."""
    made = []
    for index, (op, *inputs) in enumerate(nodes):
        made.append(helper.make_node(op, inputs, [f"v{index}"], name=f"n{index}"))
    shape = ["N", CHANNELS, "H", "W"]
    result = f"v{len(made) - 1}"
    return helper.make_model(
        helper.make_graph(
            made,
            "long",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(result, TensorProto.FLOAT, shape)],
            list(initializers),
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )


def chain(op, length, start="input"):
    return [(op, f"v{index - 1}" if index else start) for index in range(length)]


def identities(size):
    return graph(chain("Identity", size))


def copies_of_a_weight(size):
    """Each of which scales the map."""
    weight = numpy_helper.from_array(np.ones((1, CHANNELS, 1, 1), np.float32), "weight")
    half = size // 2
    products = [
        ("Mul", "input" if index == 0 else f"v{half + index - 1}", f"v{index}")
        for index in range(half)
    ]
    return graph([*chain("Identity", half, "weight"), *products], [weight])


def attentions_behind_copies(size):
    """One map through many copies, which many attentions scale."""
    half = size // 2
    weight = np.ones((CHANNELS, CHANNELS, 1, 1), np.float32)
    end = f"v{half - 1}"
    nodes = [
        *chain("Identity", half),
        *(("GlobalAveragePool", end), ("Conv", f"v{half}", "weight"), ("Sigmoid", f"v{half + 1}")),
        *(("Mul", end, f"v{half + 2}") for _ in range(half)),
    ]
    return graph(nodes, [numpy_helper.from_array(weight, "weight")])


def sums(size):
    """The attention is of many summands."""
    nodes = [("GlobalAveragePool", "input"), *(("Add", f"v{i}", f"v{i}") for i in range(size))]
    weight = numpy_helper.from_array(np.ones((CHANNELS, CHANNELS, 1, 1), np.float32), "weight")
    nodes += [("Conv", f"v{size}", "weight"), ("Sigmoid", f"v{size + 1}")]
    return graph([*nodes, ("Mul", "input", f"v{size + 2}")], [weight])


def convolutions(size):
    """Each with a weight of its own that is too large to be a shape."""
    array = np.ones((CHANNELS, CHANNELS, 3, 3), np.float32)
    weights = [numpy_helper.from_array(array, f"w{index}") for index in range(size)]
    nodes = [("Conv", source, f"w{i}") for i, (_, source) in enumerate(chain("", size))]
    return graph(nodes, weights)


def calls(function, *arguments):
    """How many calls `function` makes."""
    count = 0

    def note(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    "kind", [identities, copies_of_a_weight, attentions_behind_copies, sums, convolutions]
)
def test_work_grows_with_the_graph_and_no_faster(kind, tmp_path):
    source, fused = tmp_path / "source.onnx", tmp_path / "fused.onnx"
    onnx.save(kind(8), source)
    fuse(source, fused)  # Imports what it needs.
    inspect(fused)
    work = []
    for size in (FEW, MANY):
        onnx.save(kind(size), source)
        work.append((calls(fuse, source, fused), calls(inspect, fused)))
    few, many = work
    assert many[0] < 1.3 * MANY / FEW * few[0]
    assert many[1] < 1.3 * MANY / FEW * few[1]


def gates_in_a_row(count):
    """Blocks of a channel part, a spatial part, a residual addition and SiLU."""
    nodes, x = [], "input"

    def add(*node):
        nodes.append(node)
        return f"v{len(nodes) - 1}"

    for _ in range(count):
        logits = add("Conv", add("GlobalAveragePool", x), "square")
        y = add("Mul", x, add("Sigmoid", logits))
        y = add("Mul", y, add("Sigmoid", add("Conv", y, "point")))
        y = add("Add", y, x)
        x = add("Mul", y, add("Sigmoid", y))
    random = np.random.default_rng(0)
    shapes = {"square": (CHANNELS, CHANNELS, 1, 1), "point": (1, CHANNELS, 1, 1)}
    weights = [
        numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    return ir.from_proto(graph(nodes, weights))


def test_finding_gates_grows_with_their_number():
    work = []
    for count in (10, 40):
        model = gates_in_a_row(count)
        found, refused = find_gates(model.graph, Shapes(model))
        assert (len(found), refused) == (count, [])
        assert {gate.operator.name for gate in found} == {"CbamGateMeanLinearConvMapAddSilu"}
        work.append(calls(find_gates, model.graph, Shapes(model)))
    assert work[1] < 1.3 * 4 * work[0]


def test_a_weight_behind_a_few_copies_is_still_a_weight(fused):
    model = write(Spelling())
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    weight, last = gemm.input[1], gemm.input[1]
    for index in range(5):
        copy = helper.make_node("Identity", [last], [f"copy{index}"], name=f"copy{index}")
        model.graph.node.insert(index, copy)
        last = f"copy{index}"
    for node in model.graph.node:
        if node.op_type == "Gemm":
            node.input[:] = [last if name == weight else name for name in node.input]
    report, _ = fused(model)
    assert [op for _, op in report.fused] == ["CbamGate"]
