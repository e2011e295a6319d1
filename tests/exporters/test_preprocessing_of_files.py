"""How pictures are prepared is the person's to say: files are calibrated and stamped with that."""

import json
import logging

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from cbam_deploy import convert, export_onnx
from cbam_deploy.errors import BadInput
from cbam_deploy.graphs.onnx_file import read_provenance
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.preprocessing.text import text_of
from cbam_deploy.provenance import METADATA_KEY, Provenance

SIDE = 16
STEPS = f"letterbox {SIDE}, pad 0, bgr, /255"


def weight(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A file of another program: one convolution, free sizes, opset 17, nothing recorded."""
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, "h", "w"])
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 8, "h", "w"])
    node = helper.make_node("Conv", ["images", "weight"], ["out"], pads=[1, 1, 1, 1])
    weights = [numpy_helper.from_array(weight(8, 3, 3, 3), "weight")]
    graph = helper.make_graph([node], "net", [image], [output], weights)
    path = tmp_path_factory.mktemp("foreign") / "foreign.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    model.ir_version = 9
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures twice as wide as high, white but for one black one."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(4):
        Image.new("RGB", (40, 20), (255, 255, 255) if index else (0, 0, 0)).save(
            folder / f"{index}.png"
        )
    return folder


def scale_of_the_input(path):
    model = onnx.load(path)
    quantize = next(n for n in model.graph.node if n.input[0] == "images")
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return float(constants[quantize.input[1]])


def record(source, path, preprocessing):
    model = onnx.load(source)
    recorded = Provenance(preprocessing=preprocessing).dumps()
    helper.set_model_props(model, {METADATA_KEY: recorded})
    onnx.save(model, path)


def test_a_detector_is_calibrated_on_what_it_will_be_fed(foreign, folder, tmp_path):
    options = {"precision": "int8+fp32", "calibration": str(folder), "method": "minmax"}
    said = convert(foreign, tmp_path / "said.onnx", preprocessing=STEPS, **options)
    assert scale_of_the_input(tmp_path / "said.onnx") == pytest.approx(1 / 127)
    assert text_of(read_provenance(tmp_path / "said.onnx").preprocessing) == STEPS
    assert said.calibration["preprocessing"] == STEPS

    convert(foreign, tmp_path / "guessed.onnx", **options)
    white = (1 - 0.406) / 0.225  # By ImageNet's mean and standard deviation of blue.
    assert scale_of_the_input(tmp_path / "guessed.onnx") == pytest.approx(white / 127)
    assert read_provenance(tmp_path / "guessed.onnx").preprocessing is None  # A guess is no record.


def test_a_guess_is_warned_of(foreign, folder, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        convert(foreign, tmp_path / "a.onnx", calibration=str(folder))
    assert "does not say how its pictures are prepared" in caplog.text


def test_later_commands_prepare_as_recorded_and_inspect_says_it(cli, foreign, folder, tmp_path):
    path = tmp_path / "half.onnx"
    assert cli("convert", foreign, "-o", path, "--preprocess", STEPS).code == 0
    assert STEPS in cli("inspect", path).out
    quantized = tmp_path / "int8.onnx"
    ended = cli("convert", foreign, "-o", quantized, "--preprocess", STEPS, "--calibration", folder,
                "--precision", "int8")  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    assert STEPS in cli("inspect", quantized).out


def test_tensors_need_no_preprocessing(foreign, tmp_path, caplog):
    np.save(tmp_path / "x.npy", np.full((3, 3, 8, 8), 5, np.float32))
    result = convert(
        foreign,
        tmp_path / "a.onnx",
        precision="int8+fp32",
        calibration=str(tmp_path / "x.npy"),
    )
    assert scale_of_the_input(tmp_path / "a.onnx") == pytest.approx(5 / 127, rel=1e-3)
    assert result.calibration["preprocessing"] == "none, tensors"
    assert not caplog.records


def test_several_inputs_are_calibrated_through_a_function(tmp_path):
    infos = [
        helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N", 3, 8, 8]),
        helper.make_tensor_value_info("b", TensorProto.FLOAT, ["N", 8]),
    ]
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 8, 8, 8])
    nodes = [
        helper.make_node("Conv", ["a", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Unsqueeze", ["b", "axes"], ["d"]),
        helper.make_node("Add", ["c", "d"], ["out"]),
    ]
    weights = [
        numpy_helper.from_array(weight(8, 3, 3, 3), "w"),
        numpy_helper.from_array(np.array([2, 3]), "axes"),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "net", infos, [output], weights),
        opset_imports=[helper.make_opsetid("", 19)],
    )
    model.ir_version = 9
    onnx.save(model, tmp_path / "two.onnx")
    (tmp_path / "way.py").write_text(
        "import numpy as np\n"
        "def prepare(picture):\n"
        "    a = picture.transpose(2, 0, 1).astype(np.float32)\n"
        "    return {'a': a, 'b': np.ones(8, np.float32)}\n"
    )
    name = f"{tmp_path / 'way.py'}:prepare"
    options = {"precision": "int8+fp32", "calibration": "digits"}
    convert(tmp_path / "two.onnx", tmp_path / "q.onnx", preprocessing=name, **options)
    assert read_provenance(tmp_path / "q.onnx").preprocessing.function == name
    with pytest.raises(BadInput, match="not take one picture but a, b"):
        convert(
            tmp_path / "two.onnx",
            tmp_path / "q.onnx",
            preprocessing="keep 8, raw",
            **{**options, "calibration": "digits"},
        )


def test_a_recorded_function_is_named_again_or_refused(cli, tmp_path, foreign):
    (tmp_path / "way.py").write_text(
        f"import numpy as np\nopen(r'{tmp_path / 'imported'}', 'a').write('x')\n"
        "def prepare(picture):\n"
        "    return np.resize(picture, (16, 16, 3)).transpose(2, 0, 1).astype(np.float32)\n"
    )
    name = f"{tmp_path / 'way.py'}:prepare"
    half = tmp_path / "half.onnx"
    sizes = ("--size", "h=16", "--size", "w=16")
    assert cli("convert", foreign, "-o", half, "--preprocess", name, *sizes).code == 0
    assert name in "".join(cli("inspect", half).out.split())  # Long names are broken to lines.
    (tmp_path / "imported").unlink()
    ended = cli("evaluate", half, "--data", "digits")
    assert (ended.code, "only you may run" in ended.err) == (2, True)
    assert not (tmp_path / "imported").exists()


def test_export_records_what_is_said(tmp_path):
    from torch import nn

    result = export_onnx(
        nn.Conv2d(1, 2, 3), tmp_path / "a.onnx", preprocessing="letterbox 16x24, grey, /255"
    )
    assert result.provenance.preprocessing.frame == (16, 24)
    assert (
        onnx.load(tmp_path / "a.onnx").graph.input[0].type.tensor_type.shape.dim[3].dim_value == 24
    )
    with pytest.raises(BadInput, match="image size 32 contradicts"):
        export_onnx(
            nn.Conv2d(1, 2, 3),
            tmp_path / "b.onnx",
            image_size=32,
            preprocessing="stretch 16, grey, raw",
        )


def test_a_budget_warns_once_and_of_no_scratch_file(foreign, folder, tmp_path, caplog):
    (tmp_path / "own.py").write_text("def one(outputs, names): return 1")
    options = {"precision": "int8", "calibration": str(folder), "max_accuracy_drop": 0.1}
    metric = f"{tmp_path}/own.py:one"
    convert(foreign, tmp_path / "a.onnx", data=str(folder), metric=metric, **options)
    (warned,) = caplog.messages
    assert warned.startswith(f"{foreign}: does not say how its pictures are prepared")


def test_another_preprocessing_than_recorded_is_warned_of_once(foreign, folder, tmp_path, caplog):
    record(foreign, tmp_path / "a.onnx", Preprocessing.for_size(SIDE))
    both = {"preprocessing": f"stretch {SIDE}, raw", "calibration": str(folder)}
    convert(tmp_path / "a.onnx", tmp_path / "b.onnx", precision="int8", **both)
    assert len(caplog.messages) == 1


def test_a_recorded_frame_beyond_all_memory_is_refused(cli, foreign, folder, tmp_path):
    record(foreign, tmp_path / "a.onnx", Preprocessing(image_size=9_999_999))
    ended = cli("validate", tmp_path / "a.onnx", "--reference", foreign, "--data", folder)
    assert ended.code == 2
    assert "none of 4 pictures can be read" in ended.error


def test_a_preprocessing_too_long_for_a_file_name_is_refused(cli, foreign, tmp_path):
    ended = cli("convert", foreign, "-o", tmp_path / "a.onnx", "--preprocess", "a" * 5000)
    assert ended.code == 2
    assert ended.error == f"--preprocess {'a' * 60}: File name too long"


def test_what_export_says_of_a_conversion_names_the_file_to_write(cli, folder, tmp_path):
    (tmp_path / "own.py").write_text("from torch import nn\ndef net(): return nn.Conv2d(3, 4, 3)\n")
    to_int8 = ["--precision", "int8", "--calibration", folder, "--image-size", 16]
    ended = cli("export", f"{tmp_path}/own.py:net", "-o", tmp_path / "a.onnx", *to_int8)
    assert ended.code == 0
    said = f"warning: {tmp_path}/a.onnx: does not say how its pictures are prepared"
    assert [line.startswith(said) for line in ended.err.splitlines()] == [True]


def test_inspect_lists_the_classes(tmp_path, cli):
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        )
    )
    names = tuple(f"class{number}" for number in range(30))
    entry = model.metadata_props.add()
    entry.key, entry.value = "cbam_deploy.provenance", Provenance(class_names=names).dumps()
    onnx.save(model, tmp_path / "a.onnx")
    assert "class0, class1," in cli("inspect", tmp_path / "a.onnx").out
    data = json.loads(cli("inspect", tmp_path / "a.onnx", "--json").out)
    assert data["provenance"]["class_names"] == list(names)
