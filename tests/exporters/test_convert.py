"""Claims about the conversion of files: what is written, what is refused, what stays untouched."""

import json

import int8_network
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import rich
from half_networks import network, nodes, normal
from PIL import Image

from cbam_deploy import convert
from cbam_deploy.errors import BadInput, CheckFailed
from cbam_deploy.exporters.half.rounding import round_in_fp32
from cbam_deploy.graphs.onnx_file import (
    read_model,
    read_provenance,
    set_provenance,
    write_model,
)
from cbam_deploy.provenance import ModelIdentity, Provenance
from cbam_deploy.validation import conversion

GATE = {"CbamGateAddRelu": 1}

# 1e5 in the middle, on pictures whose pixels are about 1; logits about 1 again.
OVERFLOWING = """(float[batch, 3, 16, 16] input) => (float[batch, 4] logits)
{
  up = Conv (input, w1)
  relu = Relu (up)
  down = Conv (relu, w2)
  mean = ReduceMean <keepdims = 0> (down, axes)
  logits = Gemm (mean, fc)
}"""

JOINED = """(float[batch, 3, 16, 16] input) => (float[batch, 4, 16, 16] y)
{
  a = Conv (input, w)
  b = MaxPool <kernel_shape = [1, 1]> (a)
  e = Conv (input, u)
  c = MaxPool <kernel_shape = [1, 1]> (e)
  d = Concat <axis = 1> (b, c)
  y = Conv (d, v)
}"""


@pytest.fixture(scope="module")
def fp32(tmp_path_factory):
    path = tmp_path_factory.mktemp("fp32") / "net.onnx"
    model = int8_network.network()
    set_provenance(model, Provenance(ModelIdentity("mine"), gates=GATE, versions={"torch": "2"}))
    write_model(model, path)
    return path


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory):
    path = tmp_path_factory.mktemp("overflowing") / "net.onnx"
    model = network(
        OVERFLOWING,
        w1=normal(4, 3, 1, 1, scale=6e4),
        w2=normal(4, 4, 1, 1, seed=1, scale=1e-5) + np.sign(normal(4, 4, 1, 1, seed=1)) * 1e-4,
        fc=normal(4, 4, seed=2),
        axes=np.array([2, 3]),
    )
    write_model(model, path)
    return path


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Ten classes of two pictures."""
    folder = tmp_path_factory.mktemp("labelled")
    random = np.random.default_rng(0)
    for label in range(10):
        (folder / str(label)).mkdir()
        for index in range(2):
            pixels = random.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folder / str(label) / f"{index}.png")
    return folder


def weight_types(path):
    return {value.dtype.name for value in read_model(path).graph.initializers.values()}


def test_fp16_is_recorded_with_the_rest_of_the_history(fp32, tmp_path):
    result = convert(fp32, tmp_path / "half.onnx", precision="fp16")
    provenance = read_provenance(result.path)
    assert provenance == result.provenance
    assert provenance.precision == "fp16"
    assert provenance.gates == GATE
    assert provenance.model == ModelIdentity("mine")
    assert provenance.calibration == {}
    assert {"torch", "onnxruntime"} <= set(provenance.versions)
    assert result.bytes == result.path.stat().st_size < result.source_bytes
    assert result.cosine > 0.99999
    assert weight_types(result.path) == {"FLOAT", "FLOAT16", "INT64"}


def test_the_result_is_json_and_a_table(fp32, tmp_path, capsys):
    result = convert(fp32, tmp_path / "a.onnx", precision="int8", calibration="photos", images=2)
    data = json.loads(json.dumps(result.to_json()))
    assert data["schema"] == "cbam_deploy.conversion"
    assert data["calibration"] == {
        "source": "photos",
        "images": 2,
        "seed": 0,
        "method": "percentile",
        "preprocessing": "resize 16, crop 16, rgb, imagenet",
    }
    rich.print(result)
    assert "method percentile" in capsys.readouterr().out


def test_overflow_is_noticed_before_a_file_is_written(overflowing, tmp_path):
    output = tmp_path / "half.onnx"
    output.write_bytes(b"earlier")
    with pytest.raises(CheckFailed, match=r"output logits has \d+ NaN or infinite") as failure:
        convert(overflowing, output)
    assert "--calibration" in failure.value.hint
    assert output.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_file_that_computes_something_else_is_not_written(fp32, tmp_path, precision, monkeypatch):
    from cbam_deploy.exporters import convert as module
    from cbam_deploy.graphs.onnx_file import write_model as write

    def write_wrong(model, path, verify=None):
        bias = model.graph.initializers["fc_bias"]
        bias.const_value = ir.Tensor(-30 * bias.const_value.numpy(), name="fc_bias")
        write(model, path, verify)

    monkeypatch.setattr(module, "write_model", write_wrong)
    with pytest.raises(CheckFailed, match=f"in {precision}, output logits has a cosine of"):
        convert(fp32, tmp_path / "a.onnx", precision=precision, calibration="photos", images=2)
    assert not list(tmp_path.iterdir())


def test_a_file_that_onnx_runtime_does_not_load_is_not_written(tmp_path, monkeypatch):
    from cbam_deploy.exporters.half import conversion as half

    weights = {"w": normal(4, 3, 1, 1), "u": normal(4, 3, 1, 1, seed=1), "v": normal(4, 8, 1, 1)}
    write_model(network(JOINED, **weights), tmp_path / "net.onnx")
    options = {"precision": "int8", "calibration": "photos", "images": 2}
    convert(tmp_path / "net.onnx", tmp_path / "good.onnx", **options)
    monkeypatch.setattr(half, "int8_nodes", lambda graph: frozenset())
    with pytest.raises(CheckFailed, match=r"in int8, ONNX Runtime cannot load it .*QLinearConcat"):
        convert(tmp_path / "net.onnx", tmp_path / "bad.onnx", **options)
    assert {path.name for path in tmp_path.iterdir()} == {"net.onnx", "good.onnx"}


def test_calibration_finds_what_overflows_and_keeps_it_in_fp32(overflowing, tmp_path):
    result = convert(overflowing, tmp_path / "half.onnx", calibration="photos", images=2)
    assert [(kept.op, kept.tensor) for kept in result.kept_fp32] == [
        ("Conv", "up"),
        ("Relu", "relu"),
        ("Conv", "relu"),
    ]
    low, high = result.kept_fp32[0].range
    assert max(-low, high) > 65504
    assert result.cosine > 0.9999
    assert result.provenance.calibration["images"] == 2


def test_int8_has_quantized_weights_and_the_rest_in_fp16(fp32, tmp_path):
    result = convert(fp32, tmp_path / "a.onnx", precision="int8", calibration="photos", images=2)
    assert result.provenance.precision == "int8"
    assert {"INT8", "FLOAT16"} <= weight_types(result.path)
    assert result.quantization.images == 2
    assert result.half.int8_nodes > 0


def test_int8_fp32_has_no_fp16(fp32, tmp_path):
    output = tmp_path / "a.onnx"
    result = convert(fp32, output, precision="int8+fp32", calibration="photos", images=2)
    assert result.half is None
    assert weight_types(output) == {"INT8", "FLOAT", "INT64"}


def test_fp16_io(fp32, tmp_path):
    result = convert(fp32, tmp_path / "half.onnx", io_dtype="fp16")
    graph = read_model(result.path).graph
    ends = {value.dtype for value in (*graph.inputs, *graph.outputs)}
    assert ends == {ir.DataType.FLOAT16}


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_same_call_gives_the_same_bytes(fp32, tmp_path, precision):
    options = {"precision": precision, "calibration": "photos", "images": 2}
    first = convert(fp32, tmp_path / "a.onnx", **options)
    second = convert(fp32, tmp_path / "b.onnx", **options)
    assert first.sha256 == second.sha256
    assert first.path.read_bytes() == second.path.read_bytes()


@pytest.mark.parametrize("shape", ["batch, 3, 16, 8", "2, 1, 16, 16", "batch, 1, 8, width"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_pictures_are_made_for_the_networks_input(tmp_path, shape, precision):
    channels = int(shape.split(", ")[1])
    text = f"(float[{shape}] input) => (float[batch, 4, h, w] y) {{ y = Conv (input, w) }}"
    model = network(text, w=normal(4, channels, 1, 1))
    set_provenance(model, Provenance(sizes={"width": 12}))
    write_model(model, tmp_path / "net.onnx")
    options = {"precision": precision, "calibration": "photos", "images": 3}
    result = convert(tmp_path / "net.onnx", tmp_path / "a.onnx", **options)
    assert result.calibration["images"] == 3
    assert result.cosine > 0.99


def test_an_accuracy_budget_is_measured_on_the_final_form(fp32, labelled, tmp_path):
    result = conversion.convert(
        fp32,
        tmp_path / "a.onnx",
        precision="int8",
        calibration=str(labelled),
        images=4,
        max_accuracy_drop=0.9,
        data=str(labelled),
    )
    from cbam_deploy.validation import evaluate

    (measured,) = evaluate(result.path, data=str(labelled)).networks
    assert result.budget.steps[-1].accuracy == measured.value


def test_unreadable_pictures_are_skipped_and_named(fp32, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(3):
        pixels = random.integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    (folder / "1.png").write_bytes(b"no picture")
    result = convert(fp32, tmp_path / "a.onnx", precision="int8", calibration=str(folder))
    assert [name.endswith("1.png") for name, _ in result.skipped] == [True]
    assert result.calibration["images"] == 2


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("made", ["fp16", "int8"])
def test_a_converted_file_is_refused(fp32, tmp_path, made, precision):
    path = tmp_path / "converted.onnx"
    convert(fp32, path, precision=made, calibration="photos", images=2)
    with pytest.raises(BadInput, match=r"converted\.onnx: .* already"):
        convert(path, tmp_path / "again.onnx", precision=precision, calibration="photos")


def test_a_file_recorded_as_converted_is_refused(fp32, tmp_path):
    model = read_model(fp32)
    set_provenance(model, Provenance(precision="fp16"))
    write_model(model, tmp_path / "odd.onnx")
    with pytest.raises(BadInput, match=r"odd\.onnx: is recorded as fp16 already"):
        convert(tmp_path / "odd.onnx", tmp_path / "again.onnx")


def test_a_network_without_weights_is_refused(tmp_path):
    model = network("(float[batch, 3, 4, 4] x) => (float[batch, 3, 4, 4] y) {y = Relu (x)}")
    write_model(model, tmp_path / "relu.onnx")
    with pytest.raises(BadInput, match=r"relu\.onnx: has no convolution or matrix product"):
        convert(tmp_path / "relu.onnx", tmp_path / "half.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp4"}, "precision 'fp4' is unknown"),
        ({"io_dtype": "int8"}, "I/O type 'int8' is unknown"),
        ({"precision": "int8"}, "int8 needs pictures to calibrate on"),
        ({"calibration": "nowhere"}, "nowhere: no such folder"),
        ({"calibration": "photos", "images": 0}, "give positive numbers|limit 0"),
        ({"max_accuracy_drop": 0.01, "data": "digits"}, "an accuracy budget is for INT8"),
        (
            {"precision": "int8", "calibration": "photos", "max_accuracy_drop": 0.01},
            "needs both the drop and the data",
        ),
        (
            {"precision": "int8+fp32", "calibration": "photos", "io_dtype": "fp16"},
            r"int8\+fp32 has no FP16",
        ),
    ],
)
def test_options_that_cannot_work_are_refused(fp32, tmp_path, options, message):
    with pytest.raises(BadInput, match=message):
        conversion.convert(fp32, tmp_path / "half.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_refused(fp32, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="empty"):
        convert(fp32, tmp_path / "half.onnx", calibration=str(tmp_path / "empty"))


def test_a_network_of_the_zoo_keeps_its_outputs(network_onnx, tmp_path):
    options = {"calibration": "photos", "images": 4}
    half = convert(network_onnx, tmp_path / "fp16.onnx", **options)
    int8 = convert(
        network_onnx, tmp_path / "int8.onnx", precision="int8", method="minmax", **options
    )
    assert half.kept_fp32 == int8.kept_fp32 == ()
    assert half.cosine >= 0.9999
    # A signal-to-noise ratio of 20 dB.
    assert int8.cosine >= 0.995
    assert len(nodes(read_model(half.path), "Cast")) == 4
    onnx.checker.check_model(half.path, full_check=True)


def test_engines_shrink_with_the_precision_of_their_weights(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    from cbam_deploy import build_engine

    text = """(float[batch, 3, 16, 16] input) => (float[batch, 512, h, w] y)
    {
      a = Conv <strides = [4, 4]> (input, w1)
      b = Relu (a)
      c = Conv <pads = [1, 1, 1, 1]> (b, w2)
      y = Relu (c)
    }"""
    weights = {"w1": normal(512, 3, 4, 4), "w2": normal(512, 512, 3, 3, scale=0.02)}
    write_model(network(text, **weights), tmp_path / "fp32.onnx")
    for precision in ("fp16", "int8"):
        options = {"precision": precision, "calibration": "photos", "images": 2}
        convert(tmp_path / "fp32.onnx", tmp_path / f"{precision}.onnx", **options)
    sizes = {
        name: build_engine(
            tmp_path / f"{name}.onnx",
            tmp_path / f"{name}.engine",
            runtime="tensorrt-rtx",
            targets=("sm_89",),
        ).bytes
        for name in ("fp32", "fp16", "int8")
    }
    assert sizes["fp16"] <= 0.56 * sizes["fp32"]
    assert sizes["int8"] <= 0.45 * sizes["fp32"]


@pytest.mark.slow
def test_the_digits_network_in_fp16_predicts_the_same(digits_onnx, tmp_path):
    from cbam_deploy.validation import evaluate

    convert(digits_onnx, tmp_path / "fp16.onnx", calibration="digits")
    # On a CPU, ONNX Runtime does not round what it hands from node to node.
    rounding = read_model(tmp_path / "fp16.onnx")
    round_in_fp32(rounding)
    write_model(rounding, tmp_path / "rounding.onnx")
    paths = [tmp_path / "fp16.onnx", tmp_path / "rounding.onnx"]
    report = evaluate([digits_onnx, *paths], data="digits")
    before, *half = report.networks
    assert before.value >= 0.98
    for network_in_half in half:
        assert abs(network_in_half.drop) <= 0.001
        assert network_in_half.disagreements <= 0.001 * report.images
