"""What export cannot write right is refused with its cause, and the remedy that it names works."""

import re

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cbam_deploy import validate
from cbam_deploy.comparison.rounding import rounding_errors
from cbam_deploy.errors import BadInput, CheckFailed, DeployError
from cbam_deploy.exporters import export_onnx
from cbam_deploy.exporters.export_check import check_export
from cbam_deploy.graphs.onnx_file import read_provenance
from cbam_deploy.tracing.network_inputs import parse_inputs, pictures

SIZE = 8


class Head(nn.Module):
    """Logits of pictures' means, with a last step that is given."""

    def __init__(self, last):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.drop, self.last = nn.Linear(3, 5), nn.Dropout(0.5), last
        self.register_buffer("calls", torch.zeros(1))
        self.scale = nn.Parameter(torch.rand(2, 5))

    def forward(self, x):
        return self.last(self, self.linear(x.mean((2, 3))), x)


def dropout_by_module(net, y, x):
    net.drop.train()
    return net.drop(y)


def counting(net, y, x):
    net.calls += 1
    return y + net.calls


FREE_BATCH = {
    "mixes samples": lambda net, y, x: y - y.mean(0),
    "normalizes by the batch": lambda net, y, x: (
        y - F.batch_norm(x, None, None, training=True)[:, :1, 0, 0]
    ),
    "squeezes": lambda net, y, x: y.squeeze(),
    "sorts the batch": lambda net, y, x: y.sort(0)[0],
    "size by the data": lambda net, y, x: y[y[:, 0] > y.mean()],
    "numbers and texts": lambda net, y, x: (y, 3.5, {"label": "cat", "none": None}),
    "half": lambda net, y, x: y.half(),
    "NaN and infinity in places": lambda net, y, x: (y.log(), y.masked_fill(y > 0, -torch.inf)),
}
FIXED_BATCH = {
    "loop": lambda net, y, x: torch.cat([y[i : i + 1] for i in range(x.size(0))]),
    "int": lambda net, y, x: y.reshape(int(x.size(0)), 5),
    "weight of that size": lambda net, y, x: y * net.scale,
    "squeeze": lambda net, y, x: net.linear(x.mean((2, 3)).squeeze()),
    "more than one value": lambda net, y, x: F.batch_norm(y, None, None, training=True),
    "if one": lambda net, y, x: y if x.size(0) > 1 else 2 * y,
    "if few": lambda net, y, x: y if x.size(0) < 3 else 2 * y,
    "NaN of one sample": lambda net, y, x: y / y.std(0, keepdim=True).sum(),
}
RANDOM = {
    "dropout": (lambda net, y, x: F.dropout(y, 0.5, True), r"random numbers .*aten\.\w*"),
    "dropout_by_module": (dropout_by_module, r"random numbers .* in drop\b"),
    "rand": (lambda net, y, x: y + torch.rand(5), r"aten\.rand\b"),
    "small noise": (lambda net, y, x: y + 1e-3 * torch.randn(5), r"aten\.randn\b"),
    "numpy": (lambda net, y, x: y * float(np.random.rand()), "another result each time"),
    "counter": (counting, "another result each time"),
}


def outputs(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})


def expected(net, x):
    with torch.inference_mode():
        leaves = torch.utils._pytree.tree_leaves(net.eval()(x.clone()))
    return [leaf.numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("name", FREE_BATCH)
def test_the_file_computes_what_pytorch_computes_at_other_batches(name, tmp_path):
    net, path = Head(FREE_BATCH[name]), tmp_path / "net.onnx"
    export_onnx(net, path, image_size=SIZE)
    for batch in (2, 5):
        x = torch.randn((batch, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(batch))
        for found, wanted in zip(outputs(path, x), expected(net, x), strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-3 if name == "half" else 1e-5)


@pytest.mark.parametrize("name", FIXED_BATCH)
def test_the_remedy_for_a_batch_that_the_code_fixes_works(name, tmp_path):
    net, path = Head(FIXED_BATCH[name]), tmp_path / "net.onnx"
    with pytest.raises(DeployError, match=r"the batch|at batch 1") as refused:
        export_onnx(net, path, image_size=SIZE)
    assert not path.exists()
    (option,) = re.findall(r"--input (\S+?)(?:\)|$)", refused.value.hint)
    export_onnx(net, path, inputs=[option])
    x = torch.randn((int(option.split(":")[1].split("x")[0]), 3, SIZE, SIZE))
    for found, wanted in zip(outputs(path, x), expected(net, x), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "last",
    [
        lambda net, y, x: y if x.size(2) < 12 else 2 * y,
        lambda net, y, x: y + x.reshape(x.size(0), 3, 64).sum((1, 2))[:, None],
        lambda net, y, x: y + sum(x[:, 0, i, 0].sum() for i in range(0, x.size(2), 4)),
    ],
)
def test_the_remedy_for_a_size_that_the_code_fixes_works(last, tmp_path):
    with pytest.raises(DeployError) as refused:
        export_onnx(Head(last), tmp_path / "net.onnx", inputs=["image:Nx3xH=8xW=8"])
    (option,) = re.findall(r"--input (\S+?)(?:\)|$)", refused.value.hint)
    assert option == "image:Nx3x8x8"
    export_onnx(Head(last), tmp_path / "net.onnx", inputs=[option])


@pytest.mark.parametrize("name", RANDOM)
def test_a_network_that_is_random_in_evaluation_mode_is_refused_with_what_draws(name, tmp_path):
    last, cause = RANDOM[name]
    with pytest.raises(CheckFailed, match=cause) as refused:
        export_onnx(Head(last), tmp_path / "net.onnx", image_size=SIZE)
    assert "forward" in refused.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("last", "message", "hint"),
    [
        (lambda net, y, x: y if x.sum() > 0 else 2 * y, "cannot export", "values of tensors"),
        (lambda net, y, x: y.bfloat16(), "is bfloat16", "float32"),
        (lambda net, y, x: y * torch.nan, "nothing but NaN", "weights"),
        (lambda net, y, x: y.masked_select(y > 0), "masked_select.* no counterpart", "other"),
    ],
)
def test_what_has_no_onnx_file_is_refused_with_its_cause(last, message, hint, tmp_path):
    with pytest.raises(DeployError, match=message) as refused:
        export_onnx(Head(last), tmp_path / "net.onnx", image_size=SIZE)
    assert hint in refused.value.hint


def test_a_wrong_operator_is_named(tmp_path):
    """The file of a network that doubles, checked as if it were that of one that triples."""
    path = tmp_path / "net.onnx"
    export_onnx(Head(lambda net, y, x: y * 2.0), path, image_size=SIZE)
    other = Head(lambda net, y, x: y * 3.0).eval()
    with pytest.raises(CheckFailed, match="it begins at Mul") as refused:
        check_export(path, other, pictures((3, SIZE, SIZE)), "net")
    assert "--tolerance" in refused.value.hint
    assert check_export(
        path, other, pictures((3, SIZE, SIZE)), "net", 0.5
    ).max_relative == pytest.approx(1 / 3)


def test_the_bound_follows_from_what_fp64_says_of_the_network(tmp_path):
    """Means of large numbers, of which a small difference is left: a matter of the order."""
    net = Head(lambda net, y, x: (x + 2e3).mean((1, 2, 3)) - 2e3)
    result = export_onnx(net, tmp_path / "net.onnx", image_size=32)
    noise = np.random.default_rng(0).standard_normal((64, 3, 32, 32)).astype(np.float32)
    exact = noise.astype(np.float64).mean((1, 2, 3))
    (rounded,) = expected(net, torch.from_numpy(noise))
    own = np.abs(rounded - exact).max() / np.abs(exact).max()
    assert own > 1e-4
    assert 1e-4 < result.max_relative_error < result.error.allowed <= 1e-2
    assert result.error.rounding < 10 * own


def test_pytorchs_own_error_is_found_where_a_network_names_float32():
    class Naming(nn.Module):
        def forward(self, x):
            third = torch.full((1,), 1 / 3, dtype=torch.float32)
            return (x.float() * third + 1e4).to(torch.float32) - 1e4

    x = np.random.default_rng(0).standard_normal((4, 9)).astype(np.float32)
    rounded = expected(Naming(), torch.from_numpy(x))
    wide = (x.astype(np.float64) / 3 + 1e4) - 1e4
    (error,) = rounding_errors(Naming(), [x], rounded)
    assert error == pytest.approx(np.abs(rounded[0] - wide).max() / np.abs(wide).max(), rel=1e-3)
    assert torch.get_default_dtype() is torch.float32


def test_a_tolerance_of_ones_own_is_recorded_and_shown(tmp_path, capsys):
    from rich.console import Console

    path = tmp_path / "net.onnx"
    result = export_onnx(Head(lambda net, y, x: y), path, image_size=SIZE, tolerance=0.25)
    assert read_provenance(path).tolerance == result.provenance.tolerance == 0.25
    Console(width=100).print(result)
    assert re.search(r"2\.5e-01.*--tolerance", capsys.readouterr().out)
    with pytest.raises(BadInput, match="is not a tolerance"):
        export_onnx(Head(lambda net, y, x: y), path, image_size=SIZE, tolerance=-1.0)


def test_inputs_are_written_as_they_are_read():
    texts = ["image:Nx3xH=64xW=32", "mask:Nx1xHxW:uint8", "tokens:2x16:int64"]
    inputs = parse_inputs(texts)
    again = inputs.as_options().removeprefix("--input ").split(" --input ")
    assert parse_inputs(again) == inputs
    assert inputs.as_options(batch=4, sizes_free=False) == (
        "--input image:4x3x64x32 --input mask:4x1x64x32:uint8 --input tokens:2x16:int64"
    )


def test_a_factorys_weights_are_called_its_own(tmp_path):
    (tmp_path / "own.py").write_text("from torch import nn\n\ndef f():\n    return nn.Flatten()\n")
    path = tmp_path / "net.onnx"
    result = export_onnx(f"{tmp_path / 'own.py'}:f", path, image_size=4)
    assert result.provenance.model.weights_origin == "as the factory made them, seed 0"
    report = validate(path, reference=f"{tmp_path / 'own.py'}:f", batch_sizes=[1])
    assert "(as the factory made it)" in report.reference
