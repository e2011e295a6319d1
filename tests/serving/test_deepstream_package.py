"""What nvinfer computes by our configuration is what the recorded preprocessing computes."""

import configparser

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from cbam_deploy import convert, package
from cbam_deploy.data.pictures import normalize
from cbam_deploy.engines.manifest import ShapeRange
from cbam_deploy.errors import BadInput
from cbam_deploy.gates.operators import PLUGIN, PLUGIN_DOMAIN
from cbam_deploy.numerics.tensors import TensorSpec
from cbam_deploy.plugins import native_library
from cbam_deploy.preprocessing.text import parse
from cbam_deploy.provenance import METADATA_KEY, Lowering, Provenance


def keys_of(folder):
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.read(folder / "config_infer.txt")
    assert parser.sections() == ["property"]
    return dict(parser["property"])


@pytest.mark.parametrize(
    ("steps", "colour"),
    [
        ("stretch 8, rgb, /255, mean 0.485 0.456 0.406, std 0.226", "0"),
        ("letterbox 8, pad 0, bgr, mean 103.94 116.78 123.68", "1"),
        ("stretch 8, rgb, /255", "0"),
        ("stretch 8, bgr, raw", "1"),
    ],
)
def test_its_formula_gives_the_network_s_input(classifier_onnx, tmp_path, steps, colour):
    package([classifier_onnx], deepstream=tmp_path / "ds", preprocessing=steps)
    keys = keys_of(tmp_path / "ds")
    assert keys["model-color-format"] == colour
    letterbox = "1" if "letterbox" in steps else "0"
    assert keys["maintain-aspect-ratio"] == keys["symmetric-padding"] == letterbox
    assert keys["infer-dims"] == "3;8;8"
    levels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    in_order = levels[..., ::-1] if colour == "1" else levels
    offsets = np.array([float(one) for one in keys.get("offsets", "0;0;0").split(";")])
    theirs = float(keys["net-scale-factor"]) * (in_order.astype(np.float64) - offsets)
    ours = normalize(Image.fromarray(levels), parse(steps))
    np.testing.assert_allclose(theirs.transpose(2, 0, 1), ours, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("steps", "reason", "instead"),
    [
        ("stretch 8, imagenet", "its own std .* off by up to 1.3%", "std 0.226"),
        ("resize 9, crop 8, /255", "cuts the middle out", "stretch 8, rgb, /255"),
        ("letterbox 8, /255", "with level 114, and nvinfer fills it with 0", "pad 0"),
        ("stretch 8, rgba, /255", "four channels", "Triton"),
    ],
)
def test_what_it_cannot_prepare_is_refused_with_what_to_measure(
    engine, tmp_path, steps, reason, instead
):
    channels = 4 if "rgba" in steps else 3
    shape = (channels, 8, 8)
    path = engine(
        inputs=(TensorSpec("image", ("batch", *shape), "float32"),),
        profile={"image": ShapeRange((1, *shape), (4, *shape), (16, *shape))},
    )
    with pytest.raises(BadInput, match=reason) as refused:
        package([path], deepstream=tmp_path / "ds", preprocessing=steps)
    assert instead in refused.value.hint
    assert not (tmp_path / "ds").exists()


def test_file_and_engine_go_together_and_classes_in_one_line(classifier_onnx, engine, tmp_path):
    made = package([classifier_onnx, engine()], deepstream=tmp_path / "ds", tensorrt="10.9")
    keys = keys_of(tmp_path / "ds")
    assert (keys["onnx-file"], keys["model-engine-file"]) == ("model.onnx", "model.engine")
    assert (keys["batch-size"], keys["network-mode"], keys["network-type"]) == ("16", "2", "1")
    labels = (tmp_path / "ds" / keys["labelfile-path"]).read_text()
    assert labels == "cat;black dog;fish;bird;horse\n"
    assert {path.name for path in (tmp_path / "ds").iterdir()} == set(made.files)


def test_outputs_say_what_kind_of_network_it_is(engine, tmp_path):
    kinds = {
        "1": (TensorSpec("logits", ("batch", 5), "float32"),),
        "2": (TensorSpec("mask", ("batch", 5, 8, 8), "float32"),),
        "100": tuple(TensorSpec(name, ("batch", 5), "float32") for name in ("boxes", "scores")),
    }
    for kind, outputs in kinds.items():
        package([engine(outputs=outputs)], deepstream=tmp_path / kind)
        keys = keys_of(tmp_path / kind)
        assert keys["network-type"] == kind
        assert keys.get("output-tensor-meta") == ("1" if kind == "100" else None)


def test_a_plugin_is_loaded_by_nvinfer(engine, tmp_path, monkeypatch):
    library = tmp_path / native_library.LIBRARY
    library.write_bytes(b"a library")
    monkeypatch.setattr("cbam_deploy.serving.packaging.plugin_library", lambda: library)
    package([engine(plugin=False)], deepstream=tmp_path / "ds")
    assert (tmp_path / "ds" / keys_of(tmp_path / "ds")["custom-lib-path"]).read_bytes() == (
        b"a library"
    )


def test_a_lowered_file_needs_the_library_and_no_earlier_tensorrt(tmp_path, monkeypatch):
    library = tmp_path / "lib.so"
    library.write_bytes(b"a library")
    node = helper.make_node(PLUGIN, ["image"], ["logits"], domain=PLUGIN_DOMAIN)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, 8, 8])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(PLUGIN_DOMAIN, 1)]
    graph = helper.make_graph([node], "g", [image], [logits])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    history = Provenance(
        preprocessing=parse("stretch 8, /255"),
        lowered=Lowering("net.onnx", "0" * 64, ("sm_87",), "10.3"),
    )
    helper.set_model_props(model, {METADATA_KEY: history.dumps()})
    onnx.save(model, tmp_path / "low.onnx")
    with pytest.raises(BadInput, match=r"lowered for TensorRT 10\.3 and later"):
        package([tmp_path / "low.onnx"], deepstream=tmp_path / "ds", tensorrt="10.0")
    package([tmp_path / "low.onnx"], deepstream=tmp_path / "ds", tensorrt="10.3", plugin=library)
    assert keys_of(tmp_path / "ds")["custom-lib-path"] == native_library.LIBRARY
    assert (tmp_path / "ds" / native_library.LIBRARY).read_bytes() == b"a library"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"runtime": "tensorrt-rtx"}, "nvinfer loads engines of TensorRT alone"),
        ({"inputs": (TensorSpec("image", ("batch", 3, 8, 8), "float16"),)}, "takes float16"),
    ],
)
def test_networks_that_it_cannot_run_are_refused(engine, tmp_path, changes, reason):
    with pytest.raises(BadInput, match=reason):
        package([engine(**changes)], deepstream=tmp_path / "ds")


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_it_builds_no_engine_of_a_type_that_it_has_no_word_for(
    classifier_onnx, engine, tmp_path, precision
):
    file = tmp_path / "net.onnx"
    convert(classifier_onnx, file, precision=precision, calibration="digits", images=2)
    with pytest.raises(BadInput, match=f"this one is {precision.upper()} by its own nodes"):
        package([file], deepstream=tmp_path / "ds")
    package([file, engine(precision=precision)], deepstream=tmp_path / "ds")
    assert "network-mode" not in keys_of(tmp_path / "ds")
