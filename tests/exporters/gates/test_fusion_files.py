"""What fusion does around a gate: the rest of the file, its weights on disk, and its neighbours."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from spelled_gates import CHANNELS, HEIGHT, WIDTH, Spelling, write

from cbam_deploy.engines import build_engine
from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.gates.fusion import fuse, fuse_model
from cbam_deploy.exporters.half.conversion import to_half
from cbam_deploy.graphs import onnx_file

OLD = Spelling(opset=11, behind="add_relu", spread="expand_shape", weights="transposed")

ROUNDED_BY_AUTOCAST = ("ReduceMean", "ReduceMax", "Conv", "Relu", "Sigmoid", "Concat")


def fuse_proto(model):
    fused = ir.from_proto(model)
    report = fuse_model(fused)
    proto = ir.to_proto(fused)
    onnx.checker.check_model(proto)
    return report, proto


def insert(model, index, *nodes):
    for node in reversed(nodes):
        model.graph.node.insert(index, node)


def with_neighbours():
    """A gate between nodes that have nothing to do with it."""
    model = write(OLD)
    first = model.graph.node[0]
    array = np.arange(CHANNELS, dtype=np.float32).reshape(1, CHANNELS, 1, 1)
    model.graph.initializer.append(numpy_helper.from_array(array, "slope"))
    first.input[0] = "before"
    insert(model, 0, helper.make_node("PRelu", ["input", "slope"], ["before"], name="before"))
    for node in model.graph.node:
        if node.op_type == "Add" and "input" in node.input:
            node.input[list(node.input).index("input")] = "before"
    model.graph.node.append(helper.make_node("Abs", ["output"], ["after"], name="after"))
    model.graph.output[0].name = "after"
    size = ["N", CHANNELS, "H", "W"]
    model.graph.value_info.append(helper.make_tensor_value_info("before", TensorProto.FLOAT, size))
    model.graph.doc_string = "kept"
    helper.set_model_props(model, {"owner": "someone"})
    return model


def test_the_rest_of_the_file_is_byte_for_byte_what_it_was():
    model = with_neighbours()
    report, fused = fuse_proto(model)
    assert [op for _, op in report.fused] == ["CbamGateAddRelu"]
    gate = next(node for node in fused.graph.node if node.domain == "cbam_deploy")
    # The gate's own parts are taken out of both files; what is left must be the same bytes. onnx-ir
    # also states the shapes of weights, which ONNX leaves open.
    kept = {node.name for node in fused.graph.node} - {gate.name}
    weights = set(gate.input[2:])
    known = {"slope"}, {info.name for info in model.graph.value_info}
    rest, other = onnx.ModelProto(), onnx.ModelProto()
    for copy, source in ((rest, model), (other, fused)):
        copy.CopyFrom(source)
        for field, names in (("node", kept), ("initializer", known[0]), ("value_info", known[1])):
            copy.graph.ClearField(field)
            entries = getattr(source.graph, field)
            getattr(copy.graph, field).extend(entry for entry in entries if entry.name in names)
    del other.functions[:]
    other.opset_import.pop()
    assert {t.name for t in fused.graph.initializer} == {"slope", *weights}
    assert (rest.ir_version, other.ir_version) == (6, 8)
    other.ir_version = 6
    assert rest.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


def test_weights_beside_the_file_stay_there(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "MAX_EMBEDDED_BYTES", 8)
    onnx.save(
        with_neighbours(),
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    report = fuse(tmp_path / "model.onnx", tmp_path / "fused.onnx")
    assert len(report.fused) == 1
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"model.onnx", "weights.bin", "fused.onnx", "fused.onnx.data"}
    assert fuse(tmp_path / "fused.onnx", tmp_path / "fused.onnx").fused == ()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_gate_behind_an_operator_that_nobody_knows_is_fused(half):
    """Nothing is known of the map's shape or type then."""
    model = write(replace(OLD, half=half, behind="nothing"))
    model.graph.node[0].domain = "someone"
    model.opset_import.append(helper.make_opsetid("someone", 1))
    report, fused = fuse_proto(model)
    assert [op for _, op in report.fused] == ["CbamGate"]
    casts = [node for node in fused.functions[0].node if node.op_type == "Cast"]
    assert casts[-1].attribute[0].i == (TensorProto.FLOAT16 if half else TensorProto.FLOAT)


def test_sum_of_two_gates_belongs_to_the_first():
    model = write(Spelling(behind="add_relu"))
    second = write(Spelling(), seed=1).graph
    for node in second.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = name if name == "input" else f"second_{name}"
        node.name = f"second_{node.name}"
    for tensor in second.initializer:
        tensor.name = f"second_{tensor.name}"
    model.graph.initializer.extend(second.initializer)
    for node in model.graph.node:
        if node.op_type == "Add" and "input" in node.input:
            node.input[1] = "second_output"
    insert(model, 0, *second.node)
    report, _ = fuse_proto(model)
    assert sorted(op for _, op in report.fused) == ["CbamGate", "CbamGateAddRelu"]
    assert report.refused == ()


def test_unused_position_of_a_maximum_goes_with_the_gate():
    model = write(Spelling())
    refined = next(node for node in model.graph.node if node.op_type == "Mul").output[0]
    last = len(model.graph.node)
    insert(model, last, helper.make_node("ArgMax", [refined], ["where"], name="where", axis=1))
    report, fused = fuse_proto(model)
    assert len(report.fused) == 1
    assert [node.op_type for node in fused.graph.node] == ["Neg", "CbamGate", "Identity"]


def test_refined_map_that_a_subgraph_uses_is_still_made():
    model = write(Spelling())
    refined = next(node for node in model.graph.node if node.op_type == "Mul").output[0]
    size = ["N", CHANNELS, "H", "W"]
    branches = {}
    for name, op in (("then_branch", "Abs"), ("else_branch", "Neg")):
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, size)
        node = helper.make_node(op, [refined], [name], name=name)
        branches[name] = helper.make_graph([node], name, [], [output])
    condition = helper.make_tensor_value_info("condition", TensorProto.BOOL, [])
    model.graph.input.append(condition)
    node = helper.make_node("If", ["condition"], ["chosen"], name="choice", **branches)
    model.graph.node.append(node)
    model.graph.output.append(helper.make_tensor_value_info("chosen", TensorProto.FLOAT, size))
    report, _ = fuse_proto(model)
    assert [op for _, op in report.fused] == ["SeGateMeanMax", "SpatialGate"]
    assert report.refused == ()


def test_weights_of_a_gate_get_names_that_are_free():
    model = write(Spelling())
    first = model.graph.node[0]
    taken = f"{model.graph.node[-2].output[0]}.W0"
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = taken if name == first.output[0] else name
    first.output[0] = taken
    report, fused = fuse_proto(model)
    assert len(report.fused) == 1
    onnx.checker.check_model(fused, full_check=True)


def test_weights_of_a_gate_get_names_that_no_subgraph_bears():
    model = write(Spelling())
    taken = f"{model.graph.node[-2].output[0]}.W0"
    size = ["N", CHANNELS, "H", "W"]
    branches = {}
    for name in ("then_branch", "else_branch"):
        inner = [
            helper.make_node("Neg", [model.graph.input[0].name], [taken], name=f"{name}_neg"),
            helper.make_node("Abs", [taken], [name], name=f"{name}_abs"),
        ]
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, size)
        branches[name] = helper.make_graph(inner, name, [], [output])
    condition = helper.make_tensor_value_info("condition", TensorProto.BOOL, [])
    model.graph.input.append(condition)
    choice = helper.make_node("If", ["condition"], ["chosen"], name="choice", **branches)
    model.graph.node.append(choice)
    model.graph.output.append(helper.make_tensor_value_info("chosen", TensorProto.FLOAT, size))
    report, fused = fuse_proto(model)
    assert len(report.fused) == 1
    assert taken not in {tensor.name for tensor in fused.graph.initializer}
    onnx.checker.check_model(fused, full_check=True)


def mixed(opset):
    """One gate on an FP32 map, then one on an FP16 map."""
    model = write(Spelling(opset=opset))
    second = write(Spelling(opset=opset, half=True)).graph
    for node in second.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = f"second_{name}"
        node.name = f"second_{node.name}"
    for tensor in second.initializer:
        tensor.name = f"second_{tensor.name}"
    model.graph.initializer.extend(second.initializer)
    cast = helper.make_node("Cast", ["output"], ["second_input"], name="c", to=TensorProto.FLOAT16)
    insert(model, len(model.graph.node), cast, *second.node)
    model.graph.output[0].CopyFrom(second.output[0])
    model.graph.output[0].name = "second_output"
    return model


def test_body_takes_any_type_from_opset_15_on_and_one_before():
    report, fused = fuse_proto(mixed(15))
    assert len(report.fused) == 2
    onnx.checker.check_model(fused, full_check=True)
    report, fused = fuse_proto(mixed(14))
    assert len(report.fused) == 1
    (reason,) = (reason for _, reason in report.refused)
    assert "is FLOAT16, and in opset 14 all gates are of one type" in reason
    onnx.checker.check_model(fused, full_check=True)


@pytest.mark.parametrize(("opset", "half"), [(11, False), (12, True), (17, False)])
def test_bodies_of_old_opsets_are_built_into_engines(opset, half, tmp_path):
    model = write(Spelling(opset=opset, half=half, behind="add_relu", fixed="map"))
    onnx.save(fuse_proto(model)[1], tmp_path / "fused.onnx")
    built = build_engine(tmp_path / "fused.onnx", tmp_path / "gate.engine", targets=["sm_89"])
    assert built.path.stat().st_size > 0


def test_gate_of_doubles_is_refused():
    model = write(Spelling())
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float64), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    report, _ = fuse_proto(model)
    assert "is DOUBLE; gates of FLOAT and FLOAT16 maps are fused" in report.refused[0][1]


def test_gate_of_volumes_is_refused():
    model = write(Spelling(gate="se", pool="global", spread="reshape"))
    sizes = ["N", CHANNELS, "D", "H", "W"]
    for value in (*model.graph.input, *model.graph.output):
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, sizes))
    for node in model.graph.node:
        if node.op_type == "Reshape":
            tensor = next(t for t in model.graph.initializer if t.name == node.input[1])
            tensor.CopyFrom(numpy_helper.from_array(np.array([0, 0, 1, 1, 1]), tensor.name))
    report, _ = fuse_proto(model)
    assert report.fused == ()


def test_window_smaller_than_the_map_is_named():
    model = write(Spelling(pool="window", fixed="map", layer="conv"))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in ("kernel_shape", "strides"):
                attribute.ints[:] = [HEIGHT, WIDTH - 1]
    report, _ = fuse_proto(model)
    assert "pools windows of 6x4 from a map of 6x5" in report.refused[0][1]


def test_grouped_convolution_in_the_mlp_is_named():
    model = write(Spelling(gate="se", layer="conv"))
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    conv.attribute.append(helper.make_attribute("group", 2))
    tensor = next(t for t in model.graph.initializer if t.name == conv.input[1])
    halved = numpy_helper.to_array(tensor)[:, : CHANNELS // 2].copy()
    tensor.CopyFrom(numpy_helper.from_array(halved, tensor.name))
    report, _ = fuse_proto(model)
    assert report.refused[0][1] == "the channel part: a convolution has 2 groups"


def test_network_converted_before_it_was_fused_is_fused_too():
    """FP16 conversion leaves reductions in FP32, between Casts."""
    model = ir.from_proto(write(Spelling(opset=13, behind="add_relu", layer="conv")))
    to_half(model)
    report, fused = fuse_proto(ir.to_proto(model))
    assert [op for _, op in report.fused] == ["CbamGateAddRelu"]
    onnx.checker.check_model(fused, full_check=True)


@pytest.mark.parametrize("gate", ["cbam", "se"])
def test_fp32_gate_that_rounds_to_fp16_anywhere_inside_is_left(gate):
    """As autocast writes it; the node would not round there."""
    plain = write(Spelling(gate=gate, layer="conv", behind="add_relu"))
    *inside, _, _, _ = plain.graph.node
    gate_parts = [node for node in inside if node.op_type in ROUNDED_BY_AUTOCAST]
    assert len(gate_parts) > 4
    for name in (node.output[0] for node in gate_parts):
        model = write(Spelling(gate=gate, layer="conv", behind="add_relu"))
        for node in model.graph.node:
            node.input[:] = ["wide" if value == name else value for value in node.input]
        index = next(i for i, node in enumerate(model.graph.node) if name in node.output)
        for source, result, to in (("half", "wide", 1), (name, "half", 10)):
            cast = helper.make_node("Cast", [source], [result], name=result, to=to)
            model.graph.node.insert(index + 1, cast)
        report, fused = fuse_proto(model)
        assert len(report.fused) == (gate == "cbam")  # The other half, which does not round.
        assert "a value inside is rounded to FLOAT16, as autocast does" in report.refused[0][1]
        assert report.fused or fused == ir.to_proto(ir.from_proto(model))


def test_fused_gates_of_an_old_opset_are_not_converted():
    model = ir.from_proto(write(Spelling(opset=13)))
    fuse_model(model)
    with pytest.raises(BadInput, match="opset 13; gates take FP16 from opset 15 on"):
        to_half(model)


def cyclic(model):
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


def without_a_weight(model):
    del model.graph.initializer[0]


def with_a_node_named_like_ours(model):
    model.graph.node[0].op_type, model.graph.node[0].domain = "CbamGate", "cbam_deploy"
    model.opset_import.append(helper.make_opsetid("cbam_deploy", 1))


def without_the_weights_axes(model):
    next(t for t in model.graph.initializer if len(t.dims) == 2).dims.pop()


@pytest.mark.parametrize(
    "damage",
    [cyclic, without_a_weight, with_a_node_named_like_ours, without_the_weights_axes],
    ids=lambda damage: damage.__name__,
)
def test_malformed_file_is_refused_and_nothing_written(damage, tmp_path):
    model = write(Spelling())
    damage(model)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BadInput, match=str(tmp_path / "model.onnx")):
        fuse(tmp_path / "model.onnx", tmp_path / "fused.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_mlp_whose_layers_do_not_fit_is_refused():
    model = write(Spelling())
    gemm = [node for node in model.graph.node if node.op_type == "Gemm"][1]
    tensor = next(t for t in model.graph.initializer if t.name == gemm.input[1])
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(array[:, :2].copy(), tensor.name))
    report, _ = fuse_proto(model)
    assert "its layers are [4, 8] and [8, 2], not [h, C] and [C, h]" in report.refused[0][1]
