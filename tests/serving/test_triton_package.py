"""A model repository says of an artefact what is true of it, in Triton's own words."""

import json

import numpy as np
import onnx
import pytest
from google.protobuf import text_format  # type: ignore[import-untyped]
from onnx import TensorProto, helper, numpy_helper

from cbam_deploy import convert, package
from cbam_deploy.engines.manifest import ShapeRange
from cbam_deploy.errors import BadInput
from cbam_deploy.numerics.tensors import TensorSpec
from cbam_deploy.plugins import native_library

model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2")


def config_of(folder, model):
    """What Triton's parser makes of a configuration, as plain data."""
    text = (folder / model / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def dims(tensors):
    return {one.name: list(one.dims) for one in tensors}


def test_an_onnx_file_is_served_by_onnx_runtime_with_labels_and_a_warm_up(
    classifier_onnx, tmp_path
):
    made = package([classifier_onnx], triton=tmp_path / "models", instances=2, threads=3)
    config = config_of(tmp_path / "models", "net")
    assert (config.platform, config.max_batch_size) == ("onnxruntime_onnx", 64)
    assert dims(config.input) == {"image": [3, 8, 8]}
    assert dims(config.output) == {"logits": [5]}
    assert config.input[0].data_type == model_config_pb2.TYPE_FP32
    assert config.HasField("dynamic_batching")
    assert config.instance_group[0].count == 2
    assert config.parameters["intra_op_thread_count"].string_value == "3"
    assert config.version_policy.latest.num_versions == 1
    (warmup,) = config.model_warmup
    assert (warmup.batch_size, list(warmup.inputs["image"].dims)) == (1, [3, 8, 8])
    assert warmup.inputs["image"].random_data
    folder = tmp_path / "models" / "net"
    assert (folder / config.output[0].label_filename).read_text().split("\n") == [
        *("cat", "black dog", "fish", "bird", "horse", ""),
    ]
    assert (folder / "1" / "model.onnx").read_bytes() == classifier_onnx.read_bytes()
    assert made.command == ("tritonserver", f"--model-repository={tmp_path / 'models'}")


def test_an_engine_brings_the_batches_of_its_profile(engine, tmp_path):
    made = package([engine()], triton=tmp_path / "models", model_version=7)
    config = config_of(tmp_path / "models", "net")
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 16)
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 16]
    assert [one.batch_size for one in config.model_warmup] == [1, 4, 16]
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert (tmp_path / "models/net/7/model.plan").read_bytes() == b"a plan"
    assert len(made.command) == 2


def test_one_file_needs_no_list_and_a_backend_that_there_is(classifier_onnx, tmp_path):
    package(classifier_onnx, triton=tmp_path / "models")
    assert config_of(tmp_path / "models", "net").name == "net"
    with pytest.raises(BadInput, match="backend 'tensorrt' is unknown"):
        package(classifier_onnx, triton=tmp_path / "models", backend="tensorrt")


def test_threads_that_an_engine_would_not_have_are_refused(engine, tmp_path):
    with pytest.raises(BadInput, match="--threads is for ONNX files"):
        package(engine(), triton=tmp_path / "models", threads=2)
    assert not (tmp_path / "models").exists()


def test_a_bf16_file_is_for_gpus(classifier_onnx, tmp_path):
    convert(classifier_onnx, tmp_path / "net.onnx", precision="bf16")
    for asked in ({"backend": "python"}, {"device": "cpu"}):
        with pytest.raises(BadInput, match="runs no BF16 files on CPUs"):
            package(tmp_path / "net.onnx", triton=tmp_path / "models", **asked)
    package(tmp_path / "net.onnx", triton=tmp_path / "models")


def test_an_fp8_file_is_served_without_what_onnx_runtime_does_wrongly(network_onnx, tmp_path):
    fp8 = tmp_path / "net.onnx"
    convert(network_onnx, fp8, precision="fp8", calibration="digits", images=4)
    with pytest.raises(BadInput, match="computes FP8 files wrongly"):
        package(fp8, triton=tmp_path / "models")
    package(fp8, triton=tmp_path / "models", backend="python")
    config = config_of(tmp_path / "models", "net")
    wrong = config.parameters["disabled_optimizers"].string_value
    assert wrong == "ReluQuantRewrite WeightBiasQuantization"


def test_file_and_engine_become_two_models(classifier_onnx, engine, tmp_path):
    made = package([engine(), classifier_onnx], triton=tmp_path / "models")
    assert [model.name for model in made.models] == ["net-onnx", "net-engine"]
    for name, platform in (("net-onnx", "onnxruntime_onnx"), ("net-engine", "tensorrt_plan")):
        assert config_of(tmp_path / "models", name).platform == platform


def test_an_engine_without_its_plugin_has_the_library_beside_it(engine, tmp_path, monkeypatch):
    library = tmp_path / native_library.LIBRARY
    library.write_bytes(b"a library")
    monkeypatch.setattr("cbam_deploy.serving.packaging.plugin_library", lambda: library)
    made = package([engine(plugin=False)], triton=tmp_path / "models")
    beside = tmp_path / "models" / "net" / native_library.LIBRARY
    assert beside.read_bytes() == b"a library"
    assert made.command[2:] == (f"--backend-config=tensorrt,plugins={beside}",)
    assert "was built with another" in made.notes[1]
    (tmp_path / "other.so").write_bytes(b"another")
    package([tmp_path / "net.engine"], triton=tmp_path / "models", plugin=tmp_path / "other.so")
    assert beside.read_bytes() == b"another"


def test_code_inside_an_engine_is_allowed_where_it_has_some(engine, tmp_path):
    allowed = ("--backend-config=tensorrt,version-compatible=true",)
    carries, lean = engine("a.engine", plugin=True), engine("b.engine", options={
        "version_compatible": True
    })  # fmt: skip
    for path in (carries, lean):
        assert package([path], triton=tmp_path / "models").command[2:] == allowed


@pytest.mark.parametrize(
    ("changes", "asked", "reason"),
    [
        ({"runtime": "tensorrt-rtx"}, {}, "TensorRT-RTX built it"),
        ({}, {"tensorrt": "10.8"}, "the server has 10.8"),
        ({}, {"container": "25.08"}, "the server has 10.13.2"),
        ({}, {"container": "99.99"}, "its TensorRT is not known here"),
        ({}, {"tensorrt": "ten"}, "is no version"),
        ({}, {"container": "25.08", "tensorrt": "10.9"}, "both say the TensorRT"),
        ({"options": {"strip_weights": True}}, {}, "holds no weights"),
        ({"options": {"version_compatible": True}}, {"tensorrt": "10.8"}, "the server has 10.8"),
        ({"options": {"version_compatible": True}}, {"tensorrt": "11.0"}, "the server has 11.0"),
        ({}, {"max_batch": 17}, "batches up to 16, not 17"),
        ({}, {"backend": "python"}, "runs ONNX files, not engines"),
        ({}, {"device": "cpu"}, "runs it on cuda, not on cpu"),
        ({}, {"plugin": "a.so"}, "no artefact needs a plugin library"),
        ({}, {"model_name": "../net"}, "is no name for a model"),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_written(engine, tmp_path, changes, asked, reason):
    with pytest.raises(BadInput, match=reason):
        package([engine(**changes)], triton=tmp_path / "models", **asked)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("version", ["10.9", "10.9.0", "10.9.0.34"])
def test_the_same_tensorrt_is_served(engine, tmp_path, version):
    package([engine()], triton=tmp_path / "models", tensorrt=version)


def test_a_later_tensorrt_runs_a_version_compatible_engine(engine, tmp_path):
    path = engine(options={"version_compatible": True})
    package([path], triton=tmp_path / "models", container="25.08")


def test_a_profile_without_single_samples_is_refused(engine, tmp_path):
    path = engine(profile={"image": ShapeRange((2, 3, 8, 8), (4, 3, 8, 8), (16, 3, 8, 8))})
    with pytest.raises(BadInput, match="takes batches from 2 on"):
        package([path], triton=tmp_path / "models")


def test_a_fixed_batch_is_part_of_the_shape(engine, tmp_path):
    path = engine(profile={"image": ShapeRange(*([(4, 3, 8, 8)] * 3))})
    package([path], triton=tmp_path / "models")
    config = config_of(tmp_path / "models", "net")
    assert config.max_batch_size == 0
    assert dims(config.input) == {"image": [-1, 3, 8, 8]}
    assert not config.HasField("dynamic_batching")
    assert list(config.model_warmup[0].inputs["image"].dims) == [4, 3, 8, 8]


def test_types_and_free_axes_and_outputs_without_axes(engine, tmp_path):
    types = ("float16", "bfloat16", "float64", "bool", "int8", "uint8", "int32", "int64")
    named = {"float16": "FP16", "bfloat16": "BF16", "float64": "FP64"}
    outputs = [TensorSpec(dtype, ("batch", "H"), dtype) for dtype in types]
    path = engine(outputs=(*outputs, TensorSpec("loss", ("batch",), "float32")))
    package([path], triton=tmp_path / "models")
    *described, loss = config_of(tmp_path / "models", "net").output
    for one in described:
        assert list(one.dims) == [-1]
        name = model_config_pb2.DataType.Name(one.data_type)
        assert name == f"TYPE_{named.get(one.name, one.name.upper())}"
    assert (list(loss.dims), loss.HasField("reshape"), list(loss.reshape.shape)) == ([1], True, [])


def test_names_of_tensors_lead_nowhere(tmp_path):
    """A file's word is data: an input called like a path is no path of the package."""
    name = "../../../outside"
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])]
    graph = helper.make_graph([helper.make_node("Identity", [name], ["y"])], "g", inputs, outputs)
    onnx.save(helper.make_model(graph, ir_version=9), tmp_path / "net.onnx")
    np.save(tmp_path / "data.npy", np.ones((3, 2), np.float32))
    package(
        [tmp_path / "net.onnx"],
        triton=tmp_path / "a/b/models",
        data=str(tmp_path / "data.npy"),
    )
    assert {path.name for path in tmp_path.iterdir()} == {"net.onnx", "data.npy", "a"}
    (warmup,) = config_of(tmp_path / "a/b/models", "net").model_warmup
    file = tmp_path / "a/b/models/net/warmup" / warmup.inputs[name].input_data_file
    assert np.frombuffer(file.read_bytes(), np.float32).tolist() == [1.0, 1.0]


def test_weights_beside_a_graph_come_along(tmp_path):
    weight = numpy_helper.from_array(np.arange(1024, dtype=np.float32).reshape(2, 512), "w")
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 512])]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", inputs, outputs, [weight])
    (tmp_path / "weights").mkdir()
    onnx.save(
        helper.make_model(graph, ir_version=9),
        tmp_path / "net.onnx",
        save_as_external_data=True,
        location="weights/net.bin",
        size_threshold=0,
    )
    package([tmp_path / "net.onnx"], triton=tmp_path / "models")
    read = onnx.load(tmp_path / "models/net/1/model.onnx").graph.initializer[0]
    assert numpy_helper.to_array(read).tolist() == numpy_helper.to_array(weight).tolist()


def test_a_size_that_nothing_says_leaves_the_warm_up_out(tmp_path):
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, "H", "W"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3, "H", "W"])]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", inputs, outputs)
    onnx.save(helper.make_model(graph, ir_version=9), tmp_path / "net.onnx")
    made = package([tmp_path / "net.onnx"], triton=tmp_path / "models")
    assert "--size H=640" in made.notes[0]
    config = config_of(tmp_path / "models", "net")
    assert (len(config.model_warmup), dims(config.input)) == (0, {"x": [3, -1, -1]})
    package([tmp_path / "net.onnx"], triton=tmp_path / "models", sizes=("H=4", "W=6"))
    (warmup,) = config_of(tmp_path / "models", "net").model_warmup
    assert list(warmup.inputs["x"].dims) == [3, 4, 6]


def test_the_command_shows_the_line_that_serves_it(classifier_onnx, tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = cli("package", classifier_onnx, "--triton", "models", "--pictures")
    assert (ended.code, ended.err) == (0, "")
    assert "\ntritonserver --model-repository=models\n" in ended.out
    shown = json.loads(cli("package", classifier_onnx, "--triton", "models", "--json").out)
    assert shown["models"][0]["runs"] == "onnxruntime"
    steps = json.loads((tmp_path / "models/net-preprocessing/1/preprocessing.json").read_text())
    assert (steps["fit"], steps["std"]) == ("stretch", [0.25] * 3)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("", "a package is for one server"),
        ("--triton a --deepstream b", "a package is for one server"),
        ("--triton net.onnx", "net.onnx"),
        ("--check localhost:1 --triton a", "asks a server that runs already"),
        ("--triton a --preprocess nonsense", "no pictures are read"),
        ("--check localhost:8000 --preprocess raw", "no pictures are read"),
        ("--check http:/x", "is no address"),
        ("--deepstream b --pictures", "--pictures is for Triton"),
        ("--deepstream b --instances 2", "--instances is for Triton"),
        ("--triton a --backend tensorrt", "'tensorrt' is not one of"),
        ("--triton a --grpc localhost:1", "--grpc says how --check asks a server"),
        ("--check localhost:1 --max-batch 2", "--max-batch says how a package is made"),
        ("--check localhost:8000 --pictures", "--pictures sends pictures"),
    ],
)
def test_what_the_command_cannot_do_is_said(
    classifier_onnx, tmp_path, cli, monkeypatch, words, reason
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.onnx").write_bytes(classifier_onnx.read_bytes())
    ended = cli("package", "net.onnx", *words.split())
    assert ended.code == 2
    assert reason in ended.error
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_a_server_that_is_not_there_is_said(classifier_onnx, cli):
    ended = cli("package", classifier_onnx, "--check", "127.0.0.1:1")
    assert ended.code == 2
    assert "127.0.0.1:1: no Triton server answers HTTP there" in ended.error
