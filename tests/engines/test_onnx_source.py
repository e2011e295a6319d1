"""What `build-engine` reads of an ONNX file."""

from __future__ import annotations

import contextlib
import os

import onnx
import pytest
from onnx import helper, parser

from cbam_deploy.engines.build import build_engine
from cbam_deploy.engines.source import read_source
from cbam_deploy.errors import BadInput
from cbam_deploy.graphs.onnx_file import read_model
from cbam_deploy.provenance import METADATA_KEY, ModelIdentity, Provenance

RECURSIVE = """
<ir_version: 10, opset_import: ["" : 18, "cbam_deploy" : 1]>
recursive (float[batch, 3] input) => (float[batch, 3] output)
{
  output = cbam_deploy.Again (input)
}
<domain: "cbam_deploy", opset_import: ["" : 18, "cbam_deploy" : 1]>
Again (X) => (Y)
{
  Z = Relu (X)
  Y = cbam_deploy.Again (Z)
}
"""


def test_model_cut_off_anywhere_is_told_apart_from_a_whole_one(convolution):
    path = convolution()
    whole = path.read_bytes()
    outputs = read_source(path).outputs
    for length in range(0, len(whole), 11):
        path.write_bytes(whole[:length])
        with contextlib.suppress(BadInput):
            found = read_source(path)
            assert (found.gates, found.outputs) != ({}, outputs)


def test_function_that_calls_itself_is_refused_before_it_crashes_the_parser(tmp_path):
    path = tmp_path / "recursive.onnx"
    path.write_bytes(parser.parse_model(RECURSIVE).SerializeToString())
    with pytest.raises(BadInput, match="must not be recursive"):
        build_engine(path, tmp_path / "net.engine")


def test_weights_of_the_wrong_size_are_refused(convolution, tmp_path):
    path = convolution()
    model = onnx.load(path)
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BadInput, match="weight has 860 bytes, its shape needs 864"):
        build_engine(path, tmp_path / "net.engine")


@pytest.mark.parametrize(
    ("text", "fault"),
    [('{"schema_version": 99}', "provenance of schema 99"), ("{", "provenance is not JSON")],
)
def test_damaged_provenance_is_said_of_its_file(convolution, tmp_path, text, fault):
    model = onnx.load(convolution())
    helper.set_model_props(model, {METADATA_KEY: text})
    path = tmp_path / "damaged.onnx"
    onnx.save(model, path)
    with pytest.raises(BadInput) as refused:
        read_source(path)
    assert refused.value.message.startswith(f"{path}: {fault}")


def test_sparse_weights_are_refused(convolution, tmp_path):
    model = onnx.load(convolution())
    model.graph.sparse_initializer.add()
    onnx.save(model, tmp_path / "sparse.onnx")
    for read in (read_source, read_model):
        with pytest.raises(BadInput, match=r"sparse\.onnx: .*sparse weights"):
            read(tmp_path / "sparse.onnx")


def test_summary_of_a_model(gated):
    model = onnx.load(gated)
    provenance = Provenance(model=ModelIdentity("resnet20"), precision="fp32")
    helper.set_model_props(model, {METADATA_KEY: provenance.dumps()})
    onnx.save(model, gated)
    source = read_source(gated)
    assert source.gates == {"node_first": "SeGate", "node_output": "SeGate"}
    assert [spec.name for spec in source.inputs] == ["input"]
    assert source.provenance == provenance
    assert source.precision == "fp32"


def test_quantization_nodes_make_a_model_int8(convolution):
    path = convolution()
    assert read_source(path).precision == "fp32"
    model = parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 18]>
        quantized (float[batch, 3] input) => (float[batch, 3] output)
        {
          scale = Constant <value_float = 0.5> ()
          small = QuantizeLinear (input, scale)
          output = DequantizeLinear (small, scale)
        }
        """
    )
    onnx.save(model, path)
    assert read_source(path).precision == "int8"


@pytest.mark.parametrize("location", ["/etc/hostname", "../secret.bin", "missing.bin"])
def test_external_data_outside_the_folder_is_refused(convolution, tmp_path, location):
    path = convolution()
    model = onnx.load(path)
    (tmp_path.parent / "secret.bin").write_bytes(os.urandom(864))
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BadInput, match=r"net.onnx: (weight weight lies outside|missing.bin)"):
        read_source(path)
