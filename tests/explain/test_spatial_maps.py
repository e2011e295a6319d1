"""The maps read from a file are those that it multiplies by, and correlation is Pearson's."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from cbam_deploy import convert
from cbam_deploy.data import open_source
from cbam_deploy.errors import BadInput
from cbam_deploy.explain.spatial_maps import correlation, spatial_maps
from cbam_deploy.graphs.session import open_session
from cbam_deploy.models import load_model, resolve_identity, resolve_preprocessing
from cbam_deploy.models.gate import AttentionGate
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.provenance import ModelIdentity

AT_16 = Preprocessing.for_size(16)


@pytest.fixture(scope="module")
def trained(digits_run):
    """The network and eight pictures of its test set."""
    weights = str(digits_run / "best.safetensors")
    identity, provenance = resolve_identity(ModelIdentity("resnet20", weights=weights))
    source = open_source("digits", resolve_preprocessing(identity, provenance), split="test")
    return load_model(identity), next(source.batches(8)).images


def test_a_files_maps_are_those_of_the_pytorch_gates(digits_onnx, trained):
    model, images = trained
    expected = {}
    for name, module in model.named_modules():
        if isinstance(module, AttentionGate):
            module.spatial.register_forward_hook(
                lambda m, i, o, name=name: expected.update({name: o[:, 0].numpy()})
            )
    with torch.no_grad():
        logits = model(torch.from_numpy(images)).numpy()
    found = spatial_maps(digits_onnx, images, AT_16)
    assert list(found.maps) == list(expected)
    for name, own in found.maps.items():
        np.testing.assert_allclose(own, expected[name], atol=1e-4, err_msg=name)
        assert 0 <= own.min() < own.max() <= 1
    np.testing.assert_allclose(found.logits, logits, atol=1e-3)


def test_an_fp8_file_shows_what_it_computes_as_it_is_written(digits_onnx, trained, tmp_path):
    fp8 = tmp_path / "fp8.onnx"
    convert(digits_onnx, fp8, precision="fp8", calibration="digits", images=8)
    images = trained[1]
    session = open_session(fp8, "the file", as_written=True)
    (logits,) = session.run(None, {"input": images})
    found = spatial_maps(fp8, images, AT_16).logits
    # Sums in another order may put a value on another level of FP8: a few hundredths.
    assert np.linalg.norm(found - logits) < 0.05 * np.linalg.norm(logits)


def test_a_gate_that_looks_elsewhere_is_seen_at_its_place(digits_onnx, trained, tmp_path):
    proto = onnx.load(digits_onnx)
    weight = next(w for w in proto.graph.initializer if w.name == "layer2.1.gate.WS")
    weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
    altered = tmp_path / "altered.onnx"
    onnx.save(proto, altered)
    images = trained[1]
    before, after = spatial_maps(digits_onnx, images, AT_16), spatial_maps(altered, images, AT_16)
    agreement = {name: correlation(m, after.maps[name]) for name, m in before.maps.items()}
    untouched = [agreement[f"layer{n}"] for n in ("1.0.gate", "1.1.gate", "1.2.gate", "2.0.gate")]
    assert all(found is not None and found > 0.999999 for found in untouched)
    assert agreement["layer2.1.gate"] < 0


def test_a_file_without_fused_gates_is_refused(tmp_path):
    path = tmp_path / "other.onnx"
    value = onnx.helper.make_tensor_value_info
    ends = [[value(name, onnx.TensorProto.FLOAT, [1, 3])] for name in ("x", "y")]
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", *ends)), path)
    with pytest.raises(BadInput, match="no fused gate with spatial attention"):
        spatial_maps(path, np.zeros((1, 3), np.float32), AT_16)


def test_correlation_is_pearsons_and_a_constant_has_none():
    chance = np.random.default_rng(0)
    one, other = chance.random((2, 3, 4, 5)).astype(np.float32)
    expected = np.corrcoef(one.ravel(), other.ravel())[0, 1]
    assert correlation(one, other) == pytest.approx(expected, abs=1e-7)
    assert correlation(one, 3 * one + 1) == pytest.approx(1, abs=1e-6)
    assert correlation(one, np.ones_like(one)) is None
