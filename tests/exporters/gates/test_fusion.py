"""Gates become nodes, where and only where the node computes the same; all else stays as it is."""

import gated_networks
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from gated_networks import CHANNELS, FUSED, SIZE, VARIANTS
from onnx import helper

from cbam_deploy.errors import BadInput
from cbam_deploy.exporters import fuse
from cbam_deploy.exporters.gates import spatial
from cbam_deploy.exporters.gates.fusion import fuse_model
from cbam_deploy.exporters.gates.layers import dense_kernel
from cbam_deploy.graphs.onnx_file import (
    read_model,
    read_provenance,
    set_provenance,
    write_model,
)
from cbam_deploy.provenance import Provenance


def test_every_variant_of_the_table_is_fused(variants_onnx, fused, same_outputs):
    report, path = fused(variants_onnx)
    assert dict(report.fused) == {f"gates.{name}": op for name, op in FUSED.items()}
    assert report.refused == ()
    assert report.found == len(VARIANTS)
    same_outputs(path, variants_onnx)


def test_residual_addition_and_relu_belong_to_the_gate(residual_onnx, fused, same_outputs):
    report, path = fused(residual_onnx)
    assert report.fused == (
        ("blocks.0.gate", "CbamGateAddRelu"),
        ("blocks.1.gate", "SeGateAddRelu"),
        ("blocks.2.gate", "CbamGateAddRelu"),
    )
    graph = onnx.load(path).graph
    assert [node.op_type for node in graph.node if node.op_type in ("Add", "Relu", "Mul")] == []
    gates = [node for node in graph.node if node.domain == "cbam_deploy"]
    assert gates[1].input[1] == gates[0].output[0]
    same_outputs(path, residual_onnx)


def test_residual_of_a_gate_is_the_output_of_the_gate_before_it(residual_onnx):
    model = read_model(residual_onnx)
    fuse_model(model)
    first, second, third = (node for node in model.graph if node.domain == "cbam_deploy")
    assert second.inputs[1] is first.outputs[0]
    assert third.inputs[1] is second.outputs[0]


def test_node_is_what_plugins_and_people_expect(residual_onnx, fused):
    _, path = fused(residual_onnx)
    gate = next(node for node in onnx.load(path).graph.node if node.name == "blocks.0.gate")
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in gate.attribute}
    assert attributes == {"plugin_namespace": b"cbam_deploy", "plugin_version": b"1"}
    weights = ("W0", "B0", "W1", "B1", "WS", "BS")
    assert list(gate.input[2:]) == [f"blocks.0.gate.{name}" for name in weights]
    value = next(v for v in read_model(path).graph if v.name == gate.name).outputs[0]
    assert value.dtype == ir.DataType.FLOAT
    assert list(value.shape)[1:] == [CHANNELS, SIZE, SIZE]


def test_all_else_stays_as_it_was(variants_onnx, fused):
    _, path = fused(variants_onnx)
    before, after = onnx.load(variants_onnx).graph, onnx.load(path).graph
    gates = [node for node in after.node if node.domain == "cbam_deploy"]
    old = {node.name: node.SerializeToString() for node in before.node}
    for node in after.node:
        assert node in gates or old[node.name] == node.SerializeToString()
    made = {output for node in before.node for output in node.output}
    assert {gate.output[0] for gate in gates} <= made
    weights = {tensor.name: tensor.SerializeToString() for tensor in before.initializer}
    new = {name for gate in gates for name in gate.input}
    for tensor in after.initializer:
        assert tensor.name in new or weights[tensor.name] == tensor.SerializeToString()
    used = {name for node in after.node for name in node.input}
    assert {tensor.name for tensor in after.initializer} <= used


def test_fusing_twice_changes_nothing(residual_onnx, fused, tmp_path):
    _, path = fused(residual_onnx)
    report = fuse(path, tmp_path / "again.onnx")
    assert (report.found, report.fused, report.present) == (0, (), 3)
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


def test_fusing_a_file_onto_itself(residual_onnx, fused, tmp_path):
    _, path = fused(residual_onnx)
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(residual_onnx.read_bytes())
    fuse(copy, copy)
    assert copy.read_bytes() == path.read_bytes()


def test_provenance_counts_the_gates(residual_onnx, fused, tmp_path):
    model = read_model(residual_onnx)
    set_provenance(model, Provenance(class_names=("a", "b")))
    write_model(model, tmp_path / "told.onnx")
    _, path = fused(tmp_path / "told.onnx")
    provenance = read_provenance(path)
    assert provenance.gates == {"CbamGateAddRelu": 2, "SeGateAddRelu": 1}
    assert provenance.class_names == ("a", "b")


def test_gate_that_computes_something_else_is_not_kept(
    residual_onnx, fused, same_outputs, monkeypatch
):
    """A reader that mistakes a weight by one part in a thousand: the check must notice."""

    def mistaken(layer, matched):
        return dense_kernel(layer, matched) * np.float32(1.001)

    monkeypatch.setattr(spatial, "dense_kernel", mistaken)
    report, path = fused(residual_onnx)
    assert [op for _, op in report.fused] == ["SeGateMeanMax", "SeGateAddRelu", "SeGateMeanMax"]
    assert all("its replacement differs" in reason for _, reason in report.refused)
    same_outputs(path, residual_onnx)


def test_older_opset_is_left_alone_and_said_so(residual_onnx, fused):
    model = read_model(residual_onnx)
    model.opset_imports[""] = 10
    report = fuse_model(model)
    assert report.fused == ()
    assert {reason for _, reason in report.refused} == {
        "the model is of opset 10; gates are fused from 11 on"
    }


def test_graph_without_gates_is_copied(tmp_path):
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4])
    result = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [result])
    onnx.save(helper.make_model(graph), tmp_path / "plain.onnx")
    report = fuse(tmp_path / "plain.onnx", tmp_path / "out.onnx")
    assert (report.found, report.fused, report.refused) == (0, (), ())
    assert [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node] == ["Relu"]


def test_node_named_like_ours_with_other_inputs_is_refused(residual_onnx, fused, tmp_path):
    _, path = fused(residual_onnx)
    model = read_model(path)
    gate = next(node for node in model.graph if node.domain == "cbam_deploy")
    gate.resize_inputs(3)
    with pytest.raises(BadInput, match="has 3 inputs, not 8"):
        fuse_model(model)


def test_report_is_ready_for_json(variants_onnx):
    report = fuse_model(read_model(variants_onnx)).to_json()
    assert report["found"] == len(gated_networks.VARIANTS)
    assert {"node": "gates.se", "op": "SeGate"} in report["fused"]
    assert report["refused"] == []
