"""Parity holds for what `export` writes, fails for what differs, refuses what cannot compare."""

import importlib.util
import io
import json
from dataclasses import replace

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from cbam_deploy import create_model, export_onnx, validate
from cbam_deploy.engines.manifest import dumps, manifest_path, read_manifest
from cbam_deploy.errors import BadInput
from cbam_deploy.graphs.weights import check_weights
from cbam_deploy.graphs.well_formed import check_model
from cbam_deploy.numerics.tolerances import OUTPUTS
from cbam_deploy.provenance import METADATA_KEY, ModelIdentity, Provenance


def without_provenance(model):
    kept = [entry for entry in model.metadata_props if entry.key != METADATA_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)


def test_an_exported_file_is_in_parity_with_its_model(network_onnx):
    report = validate(network_onnx)
    assert report.passed
    assert report.precision == "fp32"
    assert report.tolerance == OUTPUTS["fp32"]
    assert [batch.batch for batch in report.batches] == [1, 2, 8]
    for batch in report.batches:
        (output,) = batch.outputs
        assert output.error.name == "logits"
        assert output.error.elements == batch.samples * 10
        assert output.error.max_relative < 1e-4
        assert output.error.top1_agreement == 1
        # Equal to the last bit would mean that something was compared with itself.
        assert output.error.max_abs > 0


def test_openvino_is_in_parity_too_with_every_gate(network_onnx):
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("needs the package openvino")
    report = validate(network_onnx, runtime="openvino", batch_sizes=[2], layers="gates")
    assert report.passed
    assert report.runtime == "openvino-cpu"
    assert [entry.place.is_gate for entry in report.layers.compared] == [True] * 3 + [False]


def test_pictures_go_through_the_recorded_preprocessing(network_onnx):
    report = validate(network_onnx, data="digits", batch_sizes=[8], limit=20)
    assert report.passed
    assert report.inputs == "pictures of digits"
    assert report.batches[0].samples == 24


def test_the_same_seed_gives_the_same_figures_and_another_seed_others(network_onnx):
    def figures(seed):
        return validate(network_onnx, batch_sizes=[2], seed=seed).batches[0].outputs

    assert figures(1) == figures(1)
    assert figures(1) != figures(2)


def test_another_model_of_the_same_shape_is_not_in_parity(network_onnx):
    other = create_model("resnet8", num_classes=10, seed=1)
    report = validate(network_onnx, reference=other)
    assert not report.passed
    assert len(report.failures) == 4
    assert report.failures[0].startswith("batch 1, logits: maximum error")
    message, hint = report.failure()
    assert str(network_onnx) in message
    assert report.failures[3].startswith("batch 8, logits: channel")
    assert "(and 3 more)" in message
    assert "--layers" in hint


def test_a_reference_module_is_left_as_it_was(network_onnx):
    module = create_model("resnet8", num_classes=10, seed=0).double().train()
    assert validate(network_onnx, reference=module, batch_sizes=[2]).passed
    assert module.training
    assert next(module.parameters()).dtype == torch.float64


def test_a_file_without_provenance_needs_a_reference(altered):
    stripped = altered(without_provenance)
    with pytest.raises(BadInput, match="does not say which PyTorch model") as refused:
        validate(stripped)
    assert "--reference" in refused.value.hint
    module = create_model("resnet8", num_classes=10, seed=0)
    assert validate(stripped, reference=module, batch_sizes=[1]).passed


def test_a_model_name_is_a_reference_with_weights_of_its_own(altered, tmp_path):
    state = create_model("resnet8", num_classes=1000, seed=3).state_dict()
    torch.save(state, tmp_path / "other.pt")
    stripped = altered(without_provenance)
    with pytest.raises(BadInput, match=r"outputs of shape \[\[1, 10\]\].*of \[\[1, 1000\]\]"):
        validate(stripped, reference="resnet8", weights=tmp_path / "other.pt", batch_sizes=[1])


def test_other_weights_for_the_recorded_model_are_another_model(network_onnx, tmp_path):
    for seed, passed in ((0, True), (3, False)):
        path = tmp_path / f"{seed}.pt"
        torch.save(create_model("resnet8", num_classes=10, seed=seed).state_dict(), path)
        assert validate(network_onnx, weights=path, batch_sizes=[1]).passed is passed


def test_a_reference_that_takes_other_inputs_is_refused(network_onnx):
    with pytest.raises(BadInput, match="running it on inputs of shape"):
        validate(network_onnx, reference=nn.Linear(5, 5), batch_sizes=[1])


def test_a_factory_that_only_a_manifest_names_is_not_called(engine_like, tmp_path):
    source = tmp_path / "net.py"
    source.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    named = Provenance(ModelIdentity(f"{source}:f"))
    manifest = replace(read_manifest(engine_like), provenance=named)
    manifest_path(engine_like).write_text(dumps(manifest))
    with pytest.raises(BadInput, match="which only you") as refused:
        validate(engine_like)
    assert refused.value.hint.endswith(f"--reference {source}:f")
    assert not (tmp_path / "ran").exists()


def test_samples_swapped_within_a_batch_are_noticed(altered):
    def reverse_samples(model):
        graph = model.graph
        graph.node[-1].output[0] = "straight"
        ends = {"from": [-1], "to": [-100], "axis": [0], "step": [-1]}
        for name, value in ends.items():
            graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], value))
        graph.node.append(helper.make_node("Slice", ["straight", *ends], ["logits"]))

    report = validate(altered(reverse_samples))
    failed = [batch.batch for batch in report.batches if batch.outputs[0].failures]
    assert failed == [2, 8]


class TwoByTwo(nn.Module):
    """Two inputs, two outputs of different ranks."""

    def forward(self, x, y):
        return {"sum": x + y.sum(dim=(1, 2))[:, None], "product": y * 2}


def two_by_two(path, *, dtype=TensorProto.FLOAT, swap=False):
    """The same by hand in ONNX, outputs in the same or the opposite order."""
    x = helper.make_tensor_value_info("x", dtype, ["n", 3])
    y = helper.make_tensor_value_info("y", dtype, ["n", 4, 5])
    one = helper.make_tensor_value_info("one", dtype, ["n", 3])
    other = helper.make_tensor_value_info("other", dtype, ["n", 4, 5])
    nodes = [
        helper.make_node("ReduceSum", ["y", "axes"], ["total"], keepdims=0),
        helper.make_node("Unsqueeze", ["total", "last"], ["column"]),
        helper.make_node("Add", ["x", "column"], ["one"]),
        helper.make_node("Add", ["y", "y"], ["other"]),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2])
    last = helper.make_tensor("last", TensorProto.INT64, [1], [1])
    outputs = [other, one] if swap else [one, other]
    graph = helper.make_graph(nodes, "g", [x, y], outputs, [axes, last])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def test_several_inputs_and_outputs_are_matched_in_order(tmp_path):
    report = validate(two_by_two(tmp_path / "m.onnx"), reference=TwoByTwo())
    assert report.passed
    assert [output.error.name for output in report.batches[0].outputs] == ["one", "other"]
    with pytest.raises(BadInput, match="outputs of shape"):
        validate(two_by_two(tmp_path / "m.onnx", swap=True), reference=TwoByTwo())


def test_half_precision_inputs_reach_the_reference_rounded_alike(tmp_path):
    path = two_by_two(tmp_path / "half.onnx", dtype=TensorProto.FLOAT16)
    report = validate(path, reference=TwoByTwo(), batch_sizes=[2])
    product = report.batches[0].outputs[1]
    # Doubling is exact in float16, so any difference would come from the inputs.
    assert product.error.max_abs == 0


def test_a_fixed_batch_is_the_only_one_compared(altered):
    def fix(model):
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 3

    fixed = altered(fix)
    assert [batch.batch for batch in validate(fixed).batches] == [3]
    with pytest.raises(BadInput, match=r"batch 4 is outside its range \(3 only\)"):
        validate(fixed, batch_sizes=[4])


def test_a_batch_outside_the_profile_is_refused_before_anything_runs(engine_like):
    with pytest.raises(BadInput, match=r"batch 5 is outside its range \(1 to 4\)"):
        validate(engine_like, batch_sizes=[1, 5])


def test_a_bound_of_ones_own_decides(network_onnx, with_weight):
    bias = onnx.load(network_onnx).graph.node[-1].input[2]
    damaged = with_weight(bias, lambda array: array + 1e-3)
    assert not validate(damaged, batch_sizes=[1]).passed
    loose = validate(damaged, batch_sizes=[1], max_relative=0.5, max_abs=2e-3)
    assert loose.passed
    assert loose.tolerance == replace(OUTPUTS["fp32"], max_relative=0.5, max_abs=2e-3)
    assert not validate(damaged, batch_sizes=[1], max_relative=0.5, max_abs=5e-4).passed


def test_a_top1_bound_needs_classes(tmp_path):
    path = two_by_two(tmp_path / "m.onnx")
    assert validate(path, reference=TwoByTwo(), min_top1=1.0).passed
    graph = onnx.load(path)
    del graph.graph.output[0]
    onnx.save(graph, path)

    class Product(nn.Module):
        def forward(self, x, y):
            return y * 2

    with pytest.raises(BadInput, match="no output \\[N, classes\\]"):
        validate(path, reference=Product(), min_top1=1.0)


def test_the_report_is_json_and_junit_and_a_table(network_onnx):
    from rich.console import Console

    report = validate(network_onnx, reference=create_model("resnet8", num_classes=10, seed=1))
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert data["passed"] is False
    assert data["batches"][2]["outputs"][0]["failures"]
    assert data["environment"]["packages"]["onnxruntime"]
    cases = report.junit_cases()
    assert [case.name for case in cases] == [
        f"network.onnx batch {batch} logits" for batch in (1, 2, 8)
    ]
    assert not any(case.passed for case in cases)
    assert "maximum error" in cases[0].message
    shown = io.StringIO()
    Console(width=120, file=shown).print(report)
    assert "Parity with PyTorch: failed" in shown.getvalue()
    assert "onnxruntime-cpu" in shown.getvalue()


@pytest.mark.parametrize(
    ("limits", "allowed"),
    [
        ({}, {"max rel": "≤1.0e-04", "NaN": "0"}),
        (
            {"max_relative": 2.0, "min_cosine": -0.5, "min_snr_db": -9, "min_top1": 0.25},
            {
                "max rel": "≤2.0e+00",
                "cosine": "≥-0.5000000",
                "SNR in dB": "≥-9.0",
                "top-1": "≥25.00%",
            },
        ),
    ],
)
def test_the_table_ends_with_what_is_allowed(network_onnx, limits, allowed):
    report = validate(network_onnx, batch_sizes=[1], limit=1, **limits)
    (table,) = report.sections()[0].tables
    row = dict(zip(table.columns, table.rows[-1], strict=True))
    assert row["output"] == "allowed"
    assert row.items() >= allowed.items()


class Difference(nn.Module):
    """Means of large numbers, of which a small difference is left."""

    def forward(self, x):
        return (x + 2e3).mean((2, 3)) - 2e3


def test_a_network_that_magnifies_rounding_is_held_to_what_fp64_says_of_it(tmp_path):
    path = tmp_path / "net.onnx"
    export_onnx(Difference(), path, image_size=32)
    report = validate(path, reference=Difference())
    assert report.passed
    loose = [b.outputs[0] for b in report.batches if b.outputs[0].allowed is not None]
    assert loose
    assert all(1e-4 < output.error.max_relative < output.allowed <= 1e-2 for output in loose)
    assert not validate(path, reference=Difference(), max_relative=1e-4).passed

    class Another(Difference):
        def forward(self, x):
            return super().forward(x) * 1.1

    assert not validate(path, reference=Another()).passed


def test_a_file_is_parsed_and_checked_once(network_onnx, monkeypatch):
    seen = []

    def counted(function):
        def call(*arguments):
            seen.append(function.__name__)
            return function(*arguments)

        return call

    monkeypatch.setattr("cbam_deploy.graphs.onnx_file.check_model", counted(check_model))
    monkeypatch.setattr("cbam_deploy.graphs.weights.check_weights", counted(check_weights))
    assert validate(network_onnx, batch_sizes=[1], layers="gates").passed
    assert seen == ["check_model", "check_weights"]
