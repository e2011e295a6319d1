"""Gates of which two parts are one value of the graph: map, residual, output, weights."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from spelled_gates import CHANNELS, Spelling, feeds, write

from cbam_deploy.exporters.gates.fusion import fuse_model

SIZES = ["N", CHANNELS, "H", "W"]


def output(name):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, SIZES)


def node_with(model, name):
    """The node that makes the value `name`."""
    return next(node for node in model.graph.node if name in node.output)


def run(model):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return dict(
        zip(
            [value.name for value in session.get_outputs()],
            session.run(None, feeds(Spelling())),
            strict=True,
        )
    )


def assert_fused(model, *ops):
    """Fuse; the outputs are, by name, what they were."""
    fused = ir.from_proto(model)
    report = fuse_model(fused)
    assert [op for _, op in report.fused] == list(ops), report.refused
    proto = ir.to_proto(fused)
    onnx.checker.check_model(proto, full_check=True)
    assert [value.name for value in proto.graph.output] == [v.name for v in model.graph.output]
    before = run(model)
    for name, array in run(proto).items():
        np.testing.assert_allclose(array, before[name], rtol=0, atol=1e-5)
    return proto


@pytest.mark.parametrize("gate", ["cbam", "se"])
def test_a_residual_that_is_the_gates_input_fuses(gate):
    spelling = Spelling(gate=gate, behind="add_relu", residual="map")
    fused = assert_fused(write(spelling), spelling.op())
    node = next(node for node in fused.graph.node if node.op_type == spelling.op())
    assert node.input[0] == node.input[1]


def test_the_network_input_can_be_map_residual_and_output():
    model = write(Spelling(behind="add_relu", residual="map"))
    negated = model.graph.node[0].output[0]
    del model.graph.node[0]
    for node in model.graph.node:
        node.input[:] = ["input" if name == negated else name for name in node.input]
    model.graph.output.append(output("input"))
    assert_fused(model, "CbamGateAddRelu")


def test_map_and_result_can_be_outputs_and_a_result_two_outputs():
    model = write(Spelling(behind="add_relu", residual="map"))
    last = model.graph.node.pop()
    model.graph.output[0].name = last.input[0]
    model.graph.output.extend([output(last.input[0]), output(model.graph.node[0].output[0])])
    fused = ir.from_proto(model)
    assert [op for _, op in fuse_model(fused).fused] == ["CbamGateAddRelu"]
    first, second, _ = ir.to_proto(fused).graph.output
    assert first.name == second.name == last.input[0]


def test_a_gated_map_that_is_an_output_keeps_its_addition_outside():
    model = write(Spelling(behind="add_relu", residual="map"))
    relu = node_with(model, node_with(model, "output").input[0])
    addition = node_with(model, relu.input[0])
    model.graph.output.append(output(addition.input[0]))
    assert_fused(model, "CbamGate")


@pytest.mark.parametrize("layer", ["gemm", "matmul"])
def test_one_array_can_be_both_layers_of_the_mlp(layer):
    """W1 is W0 transposed, and an output of the network besides."""
    model = write(Spelling(layer=layer, bias="none"))
    products = [node for node in model.graph.node if node.op_type in ("Gemm", "MatMul")]
    w0, w1 = products[0].input[1], products[1].input[1]
    first = next(tensor for tensor in model.graph.initializer if tensor.name == w0)
    if layer == "matmul":
        model.graph.node.insert(0, helper.make_node("Transpose", [w0], ["tied"], perm=[1, 0]))
    for node in products:
        if node.input[1] == w1:
            node.input[1] = w0 if layer == "gemm" else "tied"
            if layer == "gemm":
                node.attribute[0].i = 0
    model.graph.output.append(helper.make_tensor_value_info(w0, 1, list(first.dims)))
    fused = assert_fused(model, "CbamGate")
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in fused.graph.initializer}
    inputs = next(node for node in fused.graph.node if node.domain).input
    np.testing.assert_array_equal(arrays[inputs[1]], arrays[inputs[3]].T)


def test_two_gates_of_one_map_with_one_set_of_weights_add_up():
    """relu(gate(x) + gate(x)), computed twice: the first has the second for its residual."""
    model = write(Spelling(behind="add_relu"))
    *gate, addition, _, _ = list(model.graph.node)[1:]
    again = {name: f"{name}_again" for node in gate for name in node.output}
    for index, node in enumerate(gate, start=1):
        inputs = [again.get(name, name) for name in node.input]
        copy = helper.make_node(node.op_type, inputs, [again[name] for name in node.output])
        copy.attribute.extend(node.attribute)
        model.graph.node.insert(index, copy)
    addition.input[1] = again[addition.input[0]]
    assert_fused(model, "CbamGateAddRelu", "CbamGate")
