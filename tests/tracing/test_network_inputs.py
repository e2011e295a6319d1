"""Inputs as a person writes them, and networks that take several or of several sizes."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cbam_deploy import build_engine, validate
from cbam_deploy.artefacts import open_artefact
from cbam_deploy.benchmarking.sources import PyTorchSource, Source
from cbam_deploy.errors import BadInput
from cbam_deploy.exporters import export_onnx
from cbam_deploy.exporters.convert import convert
from cbam_deploy.graphs.onnx_file import read_provenance
from cbam_deploy.numerics.tensors import TensorSpec
from cbam_deploy.provenance import Provenance
from cbam_deploy.tracing.network_inputs import parse_inputs, pictures

SEGMENTATION = """
import torch
from torch import nn
from torch.nn import functional

from cbam_deploy.models import insert_gates
from cbam_deploy.gates.description import GateSpec


class Matting(nn.Module):
    '''Two inputs, three outputs; height and width are halved, and doubled again.'''

    def __init__(self):
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.leave = nn.Conv2d(16, 1, 1)

    def forward(self, image, trimap):
        first = self.enter(torch.cat([image, trimap], 1))
        inner = self.inner(functional.max_pool2d(first, 2))
        wide = functional.interpolate(inner, scale_factor=2.0)
        alpha = self.leave(torch.cat([first, wide], 1)).sigmoid()
        return {"alpha": alpha, "others": [inner, alpha.mean((1, 2, 3))]}


def matting():
    model = Matting()
    example = torch.zeros(1, 3, 16, 16), torch.zeros(1, 1, 16, 16)
    insert_gates(model, GateSpec(reduction=4), ["enter", "inner"], example=example)
    return model


class Whole(nn.Module):
    def forward(self, x):
        return x + torch.ones(32, 32)


def whole():
    return Whole()
"""
DYNAMIC = ("image:Nx3xH=32xW=32", "trimap:Nx1xHxW")


def shapes(values) -> dict[str, list[object]]:
    return {
        v.name: [size.dim_param or size.dim_value for size in v.type.tensor_type.shape.dim]
        for v in values
    }


def test_letters_are_free_axes_and_the_first_is_the_batch() -> None:
    inputs = parse_inputs(["mask:Nx1xHxW", "image:Nx3xH=640xW=480", "ids:4x16:int64"])
    assert inputs.specs == (
        TensorSpec("mask", ("batch", 1, "H", "W"), "float32"),
        TensorSpec("image", ("batch", 3, "H", "W"), "float32"),
        TensorSpec("ids", (4, 16), "int64"),
    )
    assert inputs.sizes == {"H": 640, "W": 480}
    assert inputs.other_sizes == {"H": 640 + 64, "W": 480 + 2 * 32}
    assert inputs.batch is None
    fixed = parse_inputs(["image:1x3x640x640"])
    assert (fixed.batch, fixed.sizes, fixed.picture_size) == (1, {}, 640)
    assert pictures((3, 32, 32)).specs == parse_inputs(["input:Nx3x32x32"]).specs
    assert parse_inputs(["x:Nx3xH=64xW=32"]).picture_size is None


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["image"], "--input image: is not understood"),
        (["1x3x8x8"], "not understood"),
        (["image:1x3xhx8"], "axis 'h' is not understood"),
        (["image:0x3"], "axis '0'"),
        (["image:1x3:text"], "type text is unknown"),
        (["a:Nx3", "a:Nx4"], "a is given twice"),
        (["a:Nx3xH"], "how large H is"),
        (["a:Nx3xH=8", "b:NxH=9"], "H is 8 and 9"),
        (["a:N=2x3"], "has no typical size"),
        (["a:Nx3", "b:4xN"], "N is the batch"),
        (["a:Nx3", "b:Mx3"], "several letters: M, N"),
    ],
)
def test_what_cannot_be_meant_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse_inputs(texts)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("matting") / "net.py"
    path.write_text(SEGMENTATION)
    return path


@pytest.fixture(scope="module")
def dynamic(source):
    """A network of two inputs, whose batch, height and width are free."""
    path = source.with_name("dynamic.onnx")
    result = export_onnx(f"{source}:matting", path, inputs=DYNAMIC)
    assert result.gates == {"CbamGate": 2}
    return path


def test_axes_bear_the_names_that_were_given(dynamic) -> None:
    graph = onnx.load(dynamic).graph
    assert shapes(graph.input) == {
        "image": ["batch", 3, "H", "W"],
        "trimap": ["batch", 1, "H", "W"],
    }
    alpha, inner, mean = shapes(graph.output).values()
    assert (alpha, mean) == (["batch", 1, "H", "W"], ["batch"])
    assert inner[2:] == ["(H//2)", "(W//2)"]
    provenance = read_provenance(dynamic)
    assert provenance.sizes == {"H": 32, "W": 32}
    assert provenance.preprocessing is None
    assert Provenance.loads(provenance.dumps()) == provenance


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 64, 32), (2, 16, 80)])
def test_one_file_takes_every_batch_height_and_width(dynamic, source, shape) -> None:
    from cbam_deploy.models import load_model

    batch, height, width = shape
    generator = torch.Generator().manual_seed(batch)
    image = torch.randn((batch, 3, height, width), generator=generator)
    trimap = torch.randn((batch, 1, height, width), generator=generator)
    model = load_model(read_provenance(dynamic).model)
    with torch.inference_mode():
        result = model(image, trimap)
    session = onnxruntime.InferenceSession(dynamic, providers=["CPUExecutionProvider"])
    found = session.run(None, {"image": image.numpy(), "trimap": trimap.numpy()})
    for ours, theirs in zip(found, [result["alpha"], *result["others"]], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=0)


def test_validate_compares_all_outputs_and_gates_of_such_a_file(dynamic, source) -> None:
    report = validate(dynamic, reference=f"{source}:matting", layers="all")
    assert report.passed
    assert [len(batch.outputs) for batch in report.batches] == [3, 3, 3]
    assert report.layers.not_comparable == ()


def test_bench_feeds_such_a_file_and_pytorch_beside_it(dynamic, source) -> None:
    opened = open_artefact(dynamic)
    file = Source("file", str(dynamic)).described_by(opened)
    pytorch = PyTorchSource("pytorch", str(dynamic), reference=f"{source}:matting")
    pytorch = pytorch.described_by(opened)
    with file.open(opened) as runner:
        feeds = file.feeds(runner, 2, 0)
        assert [array.shape for array in feeds.values()] == [(2, 3, 32, 32), (2, 1, 32, 32)]
        found = runner.infer(feeds)
        with pytorch.like(runner, feeds).open() as beside:
            expected = beside.infer(feeds)
    assert list(found) == list(expected)
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], atol=1e-5)


def test_fp16_is_checked_at_the_typical_size(dynamic, tmp_path) -> None:
    result = convert(dynamic, tmp_path / "half.onnx", precision="fp16")
    assert result.cosine > 0.999
    assert read_provenance(result.path).sizes == {"H": 32, "W": 32}


def test_an_engine_of_such_a_file_needs_ranges_for_its_sizes(dynamic, tmp_path) -> None:
    output = tmp_path / "net.engine"
    with pytest.raises(BadInput, match="input image is also dynamic in H, W, and nothing says"):
        build_engine(dynamic, output, targets=("sm_89",))
    sizes = ("H=16,32,64", "W=16,48,96")
    result = build_engine(dynamic, output, max_batch=4, sizes=sizes, targets=("sm_89",))
    image, trimap = result.profile["image"], result.profile["trimap"]
    assert (image.min, image.opt, image.max) == ((1, 3, 16, 16), (4, 3, 32, 48), (4, 3, 64, 96))
    assert (trimap.min, trimap.opt, trimap.max) == ((1, 1, 16, 16), (4, 1, 32, 48), (4, 1, 64, 96))
    manifest = json.loads(result.manifest_path.read_text())
    assert "--size H=16,32,64 --size W=16,48,96" in manifest["command"]
    assert open_artefact(output).sizes == {"H": 32, "W": 48}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (("H=1,2",), "--size H=1,2: is not understood"),
        (("H=3,2,4",), "1 <= min <= opt <= max"),
        (("D=1,2,4",), "has no free axis D"),
        (("H=1,2,4", "H=1,2,4"), "H is given twice"),
        (("H=16,32,64",), "dynamic in W, and"),
    ],
)
def test_ranges_that_cannot_be_meant_are_refused(dynamic, tmp_path, sizes, message) -> None:
    with pytest.raises(BadInput, match=message):
        build_engine(dynamic, tmp_path / "net.engine", sizes=sizes)
    assert not list(tmp_path.iterdir())


def test_fixed_sizes_and_batch_are_kept(source, tmp_path, cli) -> None:
    """By the command line; the engine of such a file needs no range."""
    path = tmp_path / "fixed.onnx"
    done = cli(
        *("export", f"{source}:matting", "-o", path),
        *("--input", "image:1x3x16x32", "--input", "trimap:1x1x16x32"),
    )
    assert done.code == 0, done.err
    assert shapes(onnx.load(path).graph.input)["image"] == [1, 3, 16, 32]
    done = cli("validate", path, "--reference", f"{source}:matting")
    assert done.code == 0, done.err
    built = build_engine(path, tmp_path / "net.engine", targets=("sm_89",))
    assert built.profile["image"].max == (1, 3, 16, 32)


class Joined(nn.Module):
    def forward(self, one: Tensor, many: Tensor) -> Tensor:
        return (one + many).mean((2, 3))


def test_one_input_may_be_fixed_beside_a_free_batch(tmp_path) -> None:
    path = tmp_path / "net.onnx"
    export_onnx(Joined(), path, inputs=["anchor:1x3x4x4", "many:Nx3x4x4"])
    assert shapes(onnx.load(path).graph.input)["many"] == ["batch", 3, 4, 4]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    one, many = np.ones((1, 3, 4, 4), np.float32), np.ones((5, 3, 4, 4), np.float32)
    assert session.run(None, {"anchor": one, "many": many})[0].shape == (5, 3)


def test_an_input_is_not_named_like_a_value_within(tmp_path) -> None:
    with pytest.raises(BadInput, match="Joined: a value within it is called mean like an input"):
        export_onnx(Joined(), tmp_path / "net.onnx", inputs=["mean:1x3x4x4", "many:1x3x4x4"])
    assert not list(tmp_path.iterdir())


def test_a_network_that_fixes_its_size_is_refused_as_dynamic(source, tmp_path) -> None:
    with pytest.raises(BadInput, match=r"net\.py:whole: ") as refused:
        export_onnx(f"{source}:whole", tmp_path / "net.onnx", inputs=["x:Nx3xH=32xW=32"])
    assert "\n" not in refused.value.message
    assert not list(tmp_path.iterdir())


class Sum(nn.Module):
    """Takes whole numbers and pictures; its sizes need not be even."""

    def forward(self, tokens: Tensor, image: Tensor) -> Tensor:
        pooled = functional.adaptive_avg_pool2d(image, 1).flatten(1)
        return pooled * tokens.sum(1, keepdim=True)


def test_whole_numbers_and_a_square_picture(tmp_path) -> None:
    result = export_onnx(
        Sum(), tmp_path / "net.onnx", inputs=["tokens:Nx4:int64", "image:Nx3x20x20"]
    )
    assert result.provenance.preprocessing is None
    picture = export_onnx(
        nn.Conv2d(3, 2, 3),
        tmp_path / "one.onnx",
        inputs=["x:Nx3xH=24xW=24"],
        preprocessing="letterbox, /255",
    )
    assert picture.provenance.preprocessing.frame == (24, 24)
    with pytest.raises(BadInput, match="an image size and inputs"):
        export_onnx(Sum(), tmp_path / "no.onnx", image_size=8, inputs=["x:Nx3x8x8"])
