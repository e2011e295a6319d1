"""Options, checkpoint metadata and defaults settle one identity, which rebuilds the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cbam_deploy.errors import BadInput
from cbam_deploy.gates.description import CBAM, SE, GateSpec
from cbam_deploy.models import (
    create_model,
    load_identified,
    load_model,
    resolve_identity,
    resolve_preprocessing,
    state_dict_sha256,
)
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.provenance import METADATA_KEY, ModelIdentity, Provenance

RECORDED = Provenance(
    model=ModelIdentity("resnet20", "se", SE, 3, "cifar", seed=4, weights="best.safetensors"),
    preprocessing=Preprocessing(image_size=16, resize=18),
    class_names=("a", "b", "c"),
)


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """A checkpoint with provenance: an SE-ResNet-20 of three classes."""
    path = tmp_path / "best.safetensors"
    model = create_model("resnet20", attention="se", num_classes=3, seed=4)
    save_file(model.state_dict(), path, {METADATA_KEY: RECORDED.dumps()})
    return str(path)


def test_defaults_are_the_papers_gate_on_imagenet() -> None:
    identity, provenance = resolve_identity(ModelIdentity("resnet50"))
    assert identity == ModelIdentity("resnet50", "cbam", CBAM, 1000, "imagenet")
    assert provenance is None
    assert resolve_preprocessing(identity, None) == Preprocessing(224, 256)


def test_the_cifar_stem_means_small_pictures() -> None:
    for identity, _ in (
        resolve_identity(ModelIdentity("resnet20")),
        resolve_identity(ModelIdentity("resnet18", stem="cifar")),
    ):
        assert identity.stem == "cifar"
        assert resolve_preprocessing(identity, None).image_size == 32


def test_metadata_fills_what_is_left_out(weights: str) -> None:
    identity, provenance = resolve_identity(ModelIdentity("resnet20", weights=weights))
    assert (identity.attention, identity.gate, identity.num_classes) == ("se", SE, 3)
    assert (identity.stem, identity.seed, identity.weights) == ("cifar", 4, weights)
    assert provenance == RECORDED
    assert resolve_preprocessing(identity, provenance) == RECORDED.preprocessing
    scaled = resolve_preprocessing(identity, provenance, image_size=32)
    assert (scaled.image_size, scaled.resize) == (32, 36)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "cbam"}, "attention se, not cbam"),
        ({"num_classes": 10}, "num classes 3, not 10"),
        ({"gate": CBAM}, "gate se, not cbam"),
        ({"stem": "imagenet"}, "stem cifar, not imagenet"),
        ({"name": "resnet18"}, "model resnet20, not resnet18"),
        ({"gate": GateSpec(kernel_size=3)}, "gate se, not cbam, kernel_size 3"),
    ],
)
def test_an_option_against_the_metadata_is_refused(
    weights: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(BadInput) as caught:
        resolve_identity(ModelIdentity(**{"name": "resnet20", "weights": weights, **options}))
    assert message in caught.value.message
    assert weights in caught.value.message


def test_an_option_as_the_metadata_have_it_is_fine(weights: str) -> None:
    identity, _ = resolve_identity(
        ModelIdentity("resnet20", attention="se", num_classes=3, weights=weights)
    )
    assert identity.attention == "se"


def test_load_model_gives_the_checkpoints_weights_in_evaluation_mode(weights: str) -> None:
    identity, _ = resolve_identity(ModelIdentity("resnet20", weights=weights))
    model, identity = load_identified(identity)
    assert identity.weights_sha256 == state_dict_sha256(model.state_dict())
    assert not model.training
    expected = create_model("resnet20", attention="se", num_classes=3, seed=4).eval()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(x), expected(x))


def test_other_weights_under_the_same_name_are_refused(weights: str) -> None:
    _, identity = load_identified(resolve_identity(ModelIdentity("resnet20", weights=weights))[0])
    other = create_model("resnet20", attention="se", num_classes=3, seed=5)
    save_file(other.state_dict(), weights)
    with pytest.raises(BadInput, match="not those recorded"):
        load_model(identity)


def test_missing_weights_name_the_option(weights: str) -> None:
    identity, _ = resolve_identity(ModelIdentity("resnet20", weights=weights))
    Path(weights).unlink()
    with pytest.raises(BadInput, match="no such checkpoint") as caught:
        load_model(identity)
    assert "--weights" in caught.value.hint


def test_initial_weights_can_be_held_to_their_hash() -> None:
    model = load_model(ModelIdentity("resnet20", "cbam", CBAM, 3, "cifar", seed=2))
    digest = state_dict_sha256(model.state_dict())
    named = ModelIdentity("resnet20", "cbam", CBAM, 3, "cifar", seed=2, weights_sha256=digest)
    load_model(named)
    with pytest.raises(BadInput, match="initial weights are not those recorded"):
        load_model(ModelIdentity("resnet20", "cbam", CBAM, 3, "cifar", weights_sha256=digest))


def test_a_factory_takes_no_options_of_the_zoo() -> None:
    with pytest.raises(BadInput, match=r"--attention, --num-classes cannot change what m:f"):
        resolve_identity(ModelIdentity("m:f", attention="se", num_classes=3))
    identity, _ = resolve_identity(ModelIdentity("m:f", seed=3))
    assert identity == ModelIdentity("m:f", seed=3)


def test_a_gate_variant_is_part_of_the_identity() -> None:
    spec = GateSpec(kernel_size=3)
    identity, _ = resolve_identity(ModelIdentity("resnet20", gate=spec))
    assert identity.gate == spec
    assert load_model(identity).get_submodule("layer1.0.gate").spec == spec


@pytest.mark.parametrize("image_size", [0, -3])
def test_image_sizes_are_positive(image_size: int) -> None:
    with pytest.raises(BadInput, match="image size"):
        resolve_preprocessing(ModelIdentity("m:f"), None, image_size=image_size)
