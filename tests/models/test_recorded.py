"""Files say where they come from; only what the person names is imported, called or opened."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

from cbam_deploy.errors import BadInput
from cbam_deploy.models import create_model, load_identified, load_model, resolve_identity
from cbam_deploy.models.recorded import reference_identity
from cbam_deploy.provenance import METADATA_KEY, ModelIdentity, Provenance

NET = """
from pathlib import Path
Path({ran!r}).touch()
import torch
def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
"""


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """There once net.py of the same folder has been imported."""
    path = tmp_path / "ran"
    (tmp_path / "net.py").write_text(NET.format(ran=str(path)))
    return path


@pytest.fixture
def pooling(tmp_path: Path):
    """``pooling(identity)``: an ONNX file that computes what net.py does, with that provenance."""

    def save(identity: ModelIdentity) -> Path:
        path = tmp_path / "pooling.onnx"
        image = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 4, 4])
        means = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
        nodes = [
            helper.make_node("GlobalAveragePool", ["input"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["logits"]),
        ]
        model = helper.make_model(
            helper.make_graph(nodes, "pooling", [image], [means]),
            opset_imports=[helper.make_opsetid("", 18)],
            ir_version=10,
        )
        model.metadata_props.add(key=METADATA_KEY, value=Provenance(identity).dumps())
        onnx.save(model, path)
        return path

    return save


@pytest.mark.parametrize("command", ["validate", "bench --pytorch", "evaluate --pytorch"])
def test_a_factory_that_only_the_file_names_is_not_imported(cli, pooling, ran, command):
    name, *option = command.split()
    pictures = ["--data", "digits", "--preprocess", "stretch 4, rgb, /255"]
    data = pictures if name == "evaluate" else ["--batch", "1"]
    factory = f"{ran.parent}/net.py:network"
    ended = cli(name, pooling(ModelIdentity(factory)), *option, *data)
    assert ended.code == 2
    assert factory in ended.error
    assert ended.err.rstrip().endswith(f"name it: --reference {factory}")
    assert not ran.exists()


def test_the_option_of_the_hint_is_all_that_is_missing(cli, pooling, ran):
    path = pooling(ModelIdentity(f"{ran.parent}/net.py:network"))
    _, _, option = cli("validate", path).err.rstrip().partition("name it: ")
    for command in (["validate", "--batch", "1"], ["bench", "--batch", "1", "--seconds", "0.1"]):
        ended = cli(command[0], path, *command[1:], *shlex.split(option))
        assert (ended.code, ran.exists()) == (0, True), ended.err
        ran.unlink()


@pytest.mark.parametrize("name", ["os:abort", "http.server:test", "a b.py:f", "x.py:$(touch ran)"])
def test_the_hint_quotes_whatever_a_file_names(name):
    with pytest.raises(BadInput) as refused:
        reference_identity("m.onnx", Provenance(ModelIdentity(name)))
    assert shlex.split(refused.value.hint)[-2:] == ["--reference", name]


def test_a_checkpoint_does_not_name_the_factory_of_gradcam(cli, ran, tmp_path):
    factory, path = f"{ran.parent}/net.py:network", tmp_path / "best.safetensors"
    metadata = {METADATA_KEY: Provenance(ModelIdentity(factory)).dumps()}
    save_file({"weight": torch.zeros(1)}, path, metadata)
    ended = cli("gradcam", path, "--data", "digits", "-o", tmp_path / "shown")
    assert (ended.code, ran.exists()) == (2, False)
    assert f"{factory}={path}" in ended.err


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "own.safetensors"
    save_file(create_model("resnet8", num_classes=3, seed=4).state_dict(), path)
    return path


def test_a_checkpoint_that_only_the_file_names_is_not_opened(checkpoint):
    recorded, _ = resolve_identity(ModelIdentity("resnet8", num_classes=3, weights=str(checkpoint)))
    checkpoint.unlink()  # Whoever opens it fails differently.
    with pytest.raises(BadInput, match="only you") as refused:
        reference_identity("m.onnx", Provenance(recorded))
    assert refused.value.hint.endswith(f"--weights {checkpoint}")


def test_the_named_checkpoint_must_be_the_recorded_one_wherever_it_lies(checkpoint, tmp_path):
    asked, _ = resolve_identity(ModelIdentity("resnet8", num_classes=3, weights=str(checkpoint)))
    _, recorded = load_identified(asked)
    provenance = Provenance(recorded)
    assert reference_identity("m.onnx", provenance, weights=checkpoint) == recorded
    moved = checkpoint.rename(tmp_path / "moved.safetensors")
    found = reference_identity("m.onnx", provenance, "resnet8", moved)
    assert found == replace(recorded, weights=str(moved))
    load_model(found)
    save_file(create_model("resnet8", num_classes=3, seed=5).state_dict(), checkpoint)
    with pytest.raises(BadInput, match="not those recorded"):
        load_model(reference_identity("m.onnx", provenance, weights=checkpoint))


def test_a_network_of_the_zoo_with_initial_weights_is_rebuilt():
    recorded, _ = resolve_identity(ModelIdentity("resnet8", num_classes=3, seed=7))
    assert reference_identity("m.onnx", Provenance(recorded)) == recorded
