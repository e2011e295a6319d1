"""Published checkpoints compute here what they compute in their own network."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from published_gates import lively
from rich.console import Console

from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.export_check import ExportError
from cbam_deploy.exporters.export_result import ExportResult
from cbam_deploy.models import create_model, load_identified, load_model, resolve_identity
from cbam_deploy.models.checkpoint_names import NAMINGS, OWN, PLAIN, own_names
from cbam_deploy.provenance import ModelIdentity, Provenance

NAMES = {
    "authors": "cbam.ChannelGate (the paper's authors)",
    "ca/sa": "ca/sa (luuuyi/CBAM.PyTorch and its many copies)",
    "ca/sa flat": "ca/sa (luuuyi/CBAM.PyTorch and its many copies)",
    "ca/sa biases": "ca/sa (luuuyi/CBAM.PyTorch and its many copies)",
    "timm": "se.channel (timm, attn_layer='cbam')",
    "plain": PLAIN,
}


def pictures(size: int = 32) -> torch.Tensor:
    return torch.randn((2, 3, size, size), generator=torch.Generator().manual_seed(0))


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """FP32 sums in another order, through twenty or fifty layers."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("gate", NAMES)
def test_published_networks_compute_the_same_here(tmp_path: Path, gate: str) -> None:
    theirs = lively(gate)
    torch.save({"state_dict": theirs.state_dict(), "epoch": 90}, tmp_path / "net.pth")
    attention = "none" if gate == "plain" else None
    identity, _ = resolve_identity(
        ModelIdentity(
            "resnet20", attention=attention, num_classes=10, weights=str(tmp_path / "net.pth")
        )
    )
    ours, identity = load_identified(identity)
    assert identity.naming == NAMES[gate]
    with torch.inference_mode():
        same(ours(pictures()), theirs(pictures()))


def test_the_authors_resnet50_saved_from_data_parallel_computes_the_same(tmp_path: Path) -> None:
    theirs = lively("authors", deep=True)
    state = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    assert "module.layer1.0.cbam.ChannelGate.mlp.1.weight" in state
    assert "module.layer1.0.cbam.SpatialGate.spatial.bn.running_var" in state
    path = tmp_path / "RESNET50_CBAM.pth"
    torch.save({"state_dict": state, "best_prec1": 77.6}, path)
    identity, _ = resolve_identity(ModelIdentity("resnet50", num_classes=10, weights=str(path)))
    with torch.inference_mode():
        same(load_model(identity)(pictures(64)), theirs(pictures(64)))


@pytest.mark.parametrize("gate", ["ca/sa", "timm"])
def test_mean_before_maximum_is_exchanged(gate: str) -> None:
    theirs = lively(gate).state_dict()
    key = "sa.conv1.weight" if gate == "ca/sa" else "se.spatial.conv.conv.weight"
    ours = own_names(theirs, "net.pth").state_dict["layer1.0.gate.spatial.conv.weight"]
    assert torch.equal(ours[:, 0], theirs[f"layer1.0.{key}"][:, 1])
    assert torch.equal(ours[:, 1], theirs[f"layer1.0.{key}"][:, 0])


def test_what_a_naming_leaves_out_has_no_effect() -> None:
    ours = own_names(lively("ca/sa").state_dict(), "net.pth").state_dict
    model = create_model("resnet20", num_classes=10)
    model.load_state_dict(ours)
    gate = model.get_submodule("layer1.0.gate").eval()
    x = torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gate.spatial.bn(x), x, rtol=1e-6, atol=0)
    assert not gate.channel.reduce.bias.any()
    assert not gate.channel.expand.bias.any()


def test_own_names_stay_as_they_are() -> None:
    for name in ("resnet20", "mobilenet"):
        state = create_model(name, num_classes=3, seed=0).state_dict()
        named = own_names(state, "net.pth")
        assert (named.naming, named.has_gates) == (OWN, True)
        assert named.state_dict == state


def test_the_table_names_each_tensor_of_a_gate_once() -> None:
    gate = create_model("resnet20").get_submodule("layer1.0.gate")
    own = set(gate.state_dict())
    for naming in NAMINGS:
        assert {ours for _, ours, _ in naming.rows} <= own
        theirs = [row[0] for row in naming.rows]
        assert len(theirs) == len(set(theirs))


def refused(path: Path, **options: object) -> BadInput:
    with pytest.raises(BadInput) as caught:
        load_model(resolve_identity(ModelIdentity("resnet20", weights=str(path), **options))[0])
    assert str(path) in caught.value.message
    return caught.value


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    torch.save(lively("plain").state_dict(), tmp_path / "plain.pth")
    return tmp_path / "plain.pth"


def test_plain_weights_are_refused_for_a_network_with_gates_unless_asked(plain: Path) -> None:
    error = refused(plain, num_classes=10)
    assert "no attention gates" in error.message
    assert "--attention none" in error.hint
    assert "--initial-gates" in error.hint
    identity, _ = resolve_identity(
        ModelIdentity("resnet20", num_classes=10, weights=str(plain), initial_gates=True, seed=5)
    )
    assert "gates are initial, seed 5" in identity.weights_origin
    model = load_model(identity)
    started = create_model("resnet20", num_classes=10, seed=5).state_dict()
    given = lively("plain").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, started[name] if ".gate." in name else given[name])


def test_initial_gates_are_refused_where_they_make_no_sense(plain: Path, tmp_path: Path) -> None:
    torch.save(lively("timm").state_dict(), tmp_path / "timm.pth")
    options = {"num_classes": 10, "initial_gates": True}
    assert "has gates" in refused(tmp_path / "timm.pth", **options).message
    with pytest.raises(BadInput, match="no gates that could stay initial"):
        load_model(
            resolve_identity(
                ModelIdentity("resnet20", attention="none", weights=str(plain), **options)
            )[0]
        )
    with pytest.raises(BadInput, match="all weights are initial"):
        resolve_identity(ModelIdentity("resnet20", initial_gates=True))
    with pytest.raises(BadInput, match="--initial-gates cannot change"):
        resolve_identity(ModelIdentity("m:f", weights=str(plain), initial_gates=True))


def test_checkpoints_that_no_table_fits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    mixed = {**lively("timm").state_dict(), **lively("ca/sa").state_dict()}
    torch.save(mixed, path)
    assert "several ways" in refused(path, num_classes=10).message
    light = lively("timm").state_dict()
    for name in light:
        if name.endswith("spatial.conv.conv.weight"):
            light[name] = light[name][:, :1]
    torch.save(light, path)
    error = refused(path, num_classes=10)
    assert "layer1.0.se.spatial.conv.conv.weight is [1, 1, 7, 7]" in error.message
    other = {f"{name}.bam": tensor for name, tensor in lively("plain").state_dict().items()}
    torch.save({**lively("authors").state_dict(), **other}, path)
    assert "unexpected" in refused(path, num_classes=10).message
    partly = lively("authors").state_dict()
    for name in list(partly):
        if name.startswith("layer2.1.cbam"):
            del partly[name]
    torch.save(partly, path)
    assert "missing" in refused(path, num_classes=10).message
    twice = lively("ca/sa").state_dict()
    twice["layer1.0.ca.fc1.weight"] = twice["layer1.0.ca.fc.0.weight"]
    torch.save(twice, path)
    assert "there twice" in refused(path, num_classes=10).message


def test_a_factory_keeps_its_own_names(tmp_path: Path) -> None:
    """A network that names its gates `ca` and `sa` itself gets them untouched."""
    module = Path(__file__).with_name("published_gates.py").read_text()
    (tmp_path / "own.py").write_text(f"{module}\n\ndef network():\n    return Published('ca/sa')\n")
    theirs = lively("ca/sa")
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    identity, _ = resolve_identity(
        ModelIdentity(f"{tmp_path / 'own.py'}:network", weights=str(tmp_path / "net.pth"))
    )
    network, identity = load_identified(identity)
    assert identity.naming is None
    with torch.inference_mode():
        assert torch.equal(network(pictures()), theirs(pictures()))


def test_the_report_of_an_export_says_which_naming_was_recognised(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(lively("timm").state_dict(), path)
    asked, _ = resolve_identity(ModelIdentity("resnet20", num_classes=10, weights=str(path)))
    _, identity = load_identified(asked)
    provenance = Provenance(model=identity)
    result = ExportResult(Path("net.onnx"), "", 0, {}, (), ExportError(), 0.0, provenance)
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(result)
    shown = console.export_text()
    assert f"{path}, naming: se.channel (timm, attn_layer='cbam')" in shown
    assert result.to_json()["provenance"]["model"]["naming"] == identity.naming
    assert Provenance.loads(provenance.dumps()) == provenance
