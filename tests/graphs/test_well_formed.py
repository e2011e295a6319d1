"""What a checked model promises: names, tensors, types and ranks that go together."""

import resource
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from cbam_deploy.engines.source import read_source
from cbam_deploy.errors import BadInput
from cbam_deploy.graphs.onnx_file import read_model
from cbam_deploy.graphs.well_formed import check_model

TEXT = """
<ir_version: 10, opset_import: ["" : 18, "own" : 1]>
network (float[batch, 4, 6] image, float[5] bias) => (float[batch, 5] logits)
<float[6, 5] weight, int64[1] axes, float[5] bias>
{
  mean = ReduceMean <keepdims = 0> (image, axes)
  scores = Gemm (mean, weight, bias)
  logits = own.Double (scores)
}
<domain: "own", opset_import: ["" : 18]>
Double (X) => (Y)
{
  Y = Add (X, X)
}
"""


def network():
    model = parser.parse_model(TEXT)
    values = np.ones((6, 5), np.float32), np.array([1]), np.arange(5, dtype=np.float32)
    names = ["weight", "axes", "bias"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(map(numpy_helper.from_array, values, names))
    return model


def weight(model, name="weight"):
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def scalar(name, dims=(), **fields):
    return TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims, **fields)


def set_weight(model, values):
    weight(model).CopyFrom(numpy_helper.from_array(np.asarray(values), "weight"))


FAULTS = {
    "computes 'mean' a second time": lambda m: m.graph.node.append(m.graph.node[0]),
    "computes 'axes' a second time": lambda m: m.graph.node[0].output.__setitem__(0, "axes"),
    "computes 'X' a second time": lambda m: m.functions[0].node[0].output.__setitem__(0, "X"),
    "reads 'scores', which nothing computes yet": lambda m: m.graph.node.pop(1),
    "reads 'Z', which nothing": lambda m: m.functions[0].node[0].input.__setitem__(1, "Z"),
    "nothing computes the output 'gone'": lambda m: m.graph.output[0].__setattr__("name", "gone"),
    "nothing computes the output 'Z' of D": lambda m: m.functions[0].output.__setitem__(0, "Z"),
    "two have the name 'logits' (output)": lambda m: m.graph.output.append(m.graph.output[0]),
    "two have the name 'image' (input)": lambda m: m.graph.input.append(m.graph.input[0]),
    "two have the name 'axes' (weight)": lambda m: m.graph.initializer.append(weight(m, "axes")),
    "one has no name (weight)": lambda m: weight(m).__setattr__("name", ""),
    "has 119 bytes, its shape needs 120": lambda m: weight(m).__setattr__(
        "raw_data", weight(m).raw_data[:-1]
    ),
    "has 8 bytes, its shape needs 16": lambda m: weight(m, "axes").dims.append(2),
    "has 1 values, its shape needs 0": lambda m: m.graph.initializer.append(
        scalar("s", [0], float_data=[1])
    ),
    "has 0 values, its shape needs 1": lambda m: m.graph.initializer.append(scalar("s")),
    "has values that are not of its type": lambda m: m.graph.initializer.append(
        scalar("s", int64_data=[1])
    ),
    "is a segment": lambda m: weight(m).segment.__setattr__("begin", 0),
    "has the shape [-1]": lambda m: m.graph.initializer.append(scalar("s", [-1])),
    "is of no known type": lambda m: weight(m).__setattr__("data_type", 99),
    "elements of no known type": lambda m: m.graph.output[0].type.tensor_type.__setattr__(
        "elem_type", 0
    ),
    "is no tensor but sequence_type": lambda m: m.graph.input[0].type.CopyFrom(
        helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, [1]))
    ),
    "has an axis of size 1099511627776": lambda m: (
        m.graph.input[0].type.tensor_type.shape.dim[1].__setattr__("dim_value", 2**40)
    ),
    "sparse weights": lambda m: m.graph.sparse_initializer.add(),
    # What onnx's own checks say, of types, ranks and sizes, of functions too.
    "expected to have rank 2": lambda m: m.graph.node[1].input.__setitem__(0, "bias"),
    "tensor(string)": lambda m: weight(m).CopyFrom(
        TensorProto(name="weight", data_type=8, dims=[6, 5], string_data=[b"a"] * 30)
    ),
    "tensor(int64)": lambda m: set_weight(m, np.ones((6, 5), np.int64)),
    "no op registered for Mean3": lambda m: m.graph.node[0].__setattr__("op_type", "Mean3"),
    "must not be recursive": lambda m: m.functions[0].node.append(
        helper.make_node("Double", ["Y"], ["W"], domain="own")
    ),
}


def change(model, fault):
    """Make `fault`, whichever way protobuf lets it be made."""
    FAULTS[fault](model)
    return model


@pytest.fixture
def saved(tmp_path):
    def save(model) -> Path:
        path = tmp_path / "m.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return save


@pytest.mark.parametrize("read", [read_model, read_source])
def test_a_sound_model_is_read(saved, read):
    read(saved(network()))


@pytest.mark.parametrize("fault", FAULTS)
def test_every_reader_refuses_a_model_that_means_nothing(saved, fault):
    path = saved(change(network(), fault))
    for read in (read_model, read_source):
        with pytest.raises(BadInput) as refused:
            read(path)
        assert fault.lower() in refused.value.message.lower()
        assert str(path) in refused.value.message


def test_texts_that_are_not_utf8_are_refused(saved):
    path = saved(network())
    data = path.read_bytes()
    for name in (b"image", b"scores", b"Double"):
        path.write_bytes(data.replace(name, b"\xff" * len(name)))
        with pytest.raises(BadInput):
            read_model(path)


def test_weights_may_lie_in_typed_fields(saved):
    model = network()
    packed = helper.make_tensor("packed", TensorProto.INT4, [3], [1, 2, 3])
    halves = helper.make_tensor("halves", TensorProto.FLOAT16, [2], [1.0, 2.0])
    model.graph.initializer.extend([packed, halves])
    model.graph.initializer.append(numpy_helper.from_array(np.array([1j], np.complex64), "c"))
    model.opset_import[0].version = 21
    read_model(saved(model))


def test_a_branch_sees_the_values_around_it_and_is_checked_like_its_graph():
    text = """
    <ir_version: 10, opset_import: ["" : 18]>
    branches (bool which, float[2] x) => (float[2] y)
    {
      twice = Add (x, x)
      y = If (which) <
        then_branch = one () => (float[2] a) { a = Neg (twice) },
        else_branch = two () => (float[2] b) { b = Neg (x) }
      >
    }
    """
    model = parser.parse_model(text)
    check_model(model)
    branch = model.graph.node[1].attribute[0].g
    branch.node[0].input[0] = "y"
    with pytest.raises(ValueError, match="reads 'y', which nothing computes yet"):
        check_model(model)


def test_the_time_of_checking_is_linear_in_the_nodes():
    def seconds(count):
        names = ["x", *(f"v{index}" for index in range(count))]
        nodes = [helper.make_node("Neg", [a], [b]) for a, b in pairwise(names)]
        ends = [helper.make_tensor_value_info(name, 1, [1]) for name in (names[0], names[-1])]
        graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        start = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        check_model(model)
        return resource.getrusage(resource.RUSAGE_SELF).ru_utime - start

    assert seconds(16_000) < 12 * max(seconds(4_000), 0.05)


def test_types_that_are_out_of_date_are_replaced_by_inferred_ones():
    model = network()
    stale = [("mean", 1, [7, 7, 7]), ("scores", 10, ["batch", 5]), ("weight", 1, [6, 9])]
    model.graph.value_info.extend(helper.make_tensor_value_info(*one) for one in stale)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 9
    check_model(model)
    values = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    for name, sizes in (("mean", ["batch", 6]), ("scores", ["batch", 5]), ("weight", [6, 5])):
        assert values[name] == helper.make_tensor_value_info(name, 1, sizes)
    assert values["logits"].type.tensor_type.shape.dim[1].dim_value == 5
