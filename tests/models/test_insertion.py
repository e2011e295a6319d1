"""Gates go into networks that know nothing of them, which stay valid in every other respect."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from ungated_networks import NETWORKS, PICTURE, Detector, lively

from cbam_deploy.errors import BadInput
from cbam_deploy.gates.description import CBAM, SE, GateSpec
from cbam_deploy.models import AttentionGate, InsertedGates, create_model, insert_gates

EXAMPLE = torch.zeros(1, 3, PICTURE, PICTURE)
BLOCKS = {
    "MobileNet": ["blocks.0.conv.7", "blocks.2.conv.7"],
    "Detector": ["layer1.0.bn2", "layer2.0.bn2", "layer2.1.bn2", "layer3.0.bn2"],
}
STAGES = {
    "Vgg": ["features.5", "features.12"],
    "MobileNet": ["blocks.0", "blocks.2", "blocks.3"],
    "DenseNet": ["dense1", "norm"],
    "UNet": ["inc", "down1", "down2", "up1", "up2"],
    # The 1x1 convolution behind layer3 keeps its size, so it ends the stage.
    "Detector": ["layer1", "layer2", "lateral3"],
}


def pictures(batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn((batch, 3, PICTURE, PICTURE), generator=generator)


def insert(model: nn.Module, **options: object) -> InsertedGates:
    return insert_gates(model, **{"example": EXAMPLE, **options})


def modules(result: InsertedGates) -> list[str]:
    return [place.module for place in result.places]


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_get_their_gate_after_the_last_normalization(name: str) -> None:
    assert modules(insert(lively(name), where="blocks")) == BLOCKS[name]


@pytest.mark.parametrize("name", STAGES)
def test_stages_get_their_gate_before_the_size_changes(name: str) -> None:
    assert modules(insert(lively(name), where="stages")) == STAGES[name]


def test_blocks_are_where_the_zoo_has_its_gates() -> None:
    gated = create_model("resnet18", stem="cifar", num_classes=3)
    theirs = [path for path, module in gated.named_modules() if isinstance(module, AttentionGate)]
    plain = create_model("resnet18", stem="cifar", attention="none", num_classes=3)
    found = insert(plain)
    assert [path.replace("bn2", "gate") for path in modules(found)] == theirs
    assert [place.channels for place in found.places[::2]] == [64, 128, 256, 512]


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.conv(self.bn(x).relu()))


def test_a_block_that_ends_with_its_convolution_is_gated_there() -> None:
    assert modules(insert(nn.Sequential(PreActivation(), PreActivation()))) == ["0.conv", "1.conv"]


@pytest.mark.parametrize("name", NETWORKS)
def test_names_values_modes_and_kinds_of_what_was_there_stay(name: str) -> None:
    model = lively(name)
    model.train()
    first = next(model.children())
    first.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kinds = {path: type(module) for path, module in model.named_modules()}
    found = insert(model, where="stages")
    after = model.state_dict()
    assert [key for key in after if "attention_gate." not in key] == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(isinstance(model.get_submodule(path), kind) for path, kind in kinds.items())
    assert model.training
    assert not first.training
    fitting = model.load_state_dict(before, strict=False)
    assert fitting.unexpected_keys == []
    gates = tuple(place.gate for place in found.places)
    assert all(key.startswith(gates) for key in fitting.missing_keys)


def applied_by_hooks(name: str, found: InsertedGates, model: nn.Module) -> Callable[..., object]:
    """The same network without gates inside, refined from outside."""
    plain = lively(name)
    for place in found.places:
        gate = model.get_submodule(place.gate)
        plain.get_submodule(place.module).register_forward_hook(
            lambda _module, _arguments, result, gate=gate: gate(result)
        )
    return plain


@pytest.mark.parametrize("name", NETWORKS)
def test_each_gate_refines_what_its_module_returns(name: str) -> None:
    model = lively(name)
    found = insert(model, where="stages")
    expected = applied_by_hooks(name, found, model)(pictures())
    torch.testing.assert_close(model(pictures()), expected, rtol=0, atol=0)
    plain = lively(name)(pictures())
    with pytest.raises(AssertionError):
        torch.testing.assert_close(model(pictures()), plain, rtol=1e-3, atol=1e-3)


def test_named_modules_are_gated_as_asked() -> None:
    model = lively("UNet")
    found = insert(model, spec=SE, where=["up1.conv", "inc.1", "inc.1"])
    assert found.spec == SE
    assert [(place.gate, place.channels) for place in found.places] == [
        ("up1.conv.attention_gate", 16),
        ("inc.1.attention_gate", 8),
    ]
    assert found.to_json()["places"][1]["module"] == "inc.1"
    assert isinstance(model.get_submodule("inc.1"), nn.BatchNorm2d)


def test_a_module_called_for_several_maps_gates_each() -> None:
    model = lively("Detector")
    found = insert(model, where=["boxes"])
    assert [(place.module, place.channels) for place in found.places] == [("boxes", 4)]
    torch.testing.assert_close(
        model(pictures()), applied_by_hooks("Detector", found, model)(pictures())
    )


def test_the_seed_decides_the_weights_and_leaves_torchs_generator_alone() -> None:
    states = []
    torch.manual_seed(7)
    before = torch.get_rng_state()
    for seed in (0, 0, 1):
        model = lively("Vgg")
        insert(model, where="stages", seed=seed)
        states.append(model.state_dict())
    assert torch.equal(torch.get_rng_state(), before)
    first, again, other = states
    assert all(torch.equal(first[key], again[key]) for key in first)
    weight = "features.5.attention_gate.spatial.conv.weight"
    assert not torch.equal(first[weight], other[weight])


def test_copies_are_independent_and_pickles_come_back() -> None:
    model = lively("Detector")
    insert(model)
    expected = model(pictures())
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(model(pictures()), expected, rtol=0, atol=0)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    restored = torch.load(buffer, weights_only=False)
    torch.testing.assert_close(restored(pictures()), expected, rtol=0, atol=0)
    place = "layer1.0.bn2"
    assert type(restored.get_submodule(place)) is type(model.get_submodule(place))


def test_gates_are_in_torchs_exported_program_and_in_its_compiled_one() -> None:
    model = lively("Detector")
    insert(model)
    expected = model(pictures())
    program = torch.export.export(model, (pictures(),))
    assert "layer1.0.bn2.attention_gate.channel.reduce.weight" in program.state_dict
    torch.testing.assert_close(program.module()(pictures()), expected)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(pictures()), expected)


def test_gates_learn_with_the_network() -> None:
    model = lively("MobileNet").train()
    insert(model)
    model(pictures(4)).square().sum().backward()
    gate = model.get_submodule("blocks.2.conv.7.attention_gate")
    assert gate.training
    assert all(p.grad is not None and p.grad.any() for p in gate.spatial.parameters())


def test_gates_are_of_the_networks_type() -> None:
    model = lively("Vgg").double()
    insert(model, where="stages", example=EXAMPLE.double())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


class Iterating(nn.ModuleDict):
    """Runs its children itself, as torchvision's DenseNet blocks do."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.values():
            x = layer(x)
        return x


class Awkward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.pair = Pair()
        self.unused = nn.Conv2d(3, 3, 1)
        self.block = Iterating({"a": nn.Conv2d(4, 4, 1)})
        self.relu = nn.ReLU()
        self.tail = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Linear(PICTURE, 5))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pair(self.relu(self.conv(self.relu(x))))[0]
        assert self.tail[-1].out_features == 5
        return self.head(self.tail(self.block(x)).mean((2, 3)))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (["nowhere"], "Awkward has no module 'nowhere'"),
        ([""], "whole network"),
        (["unused"], "module unused: the network does not call it"),
        (["pair"], "module pair: returns tuple"),
        (["head"], r"module head: returns \[1, 2\]"),
        (["relu"], r"module relu: is called for maps of \[3, 4\] channels"),
        (["block"], "module block: is a Iterating that runs its children in its own way"),
        (["conv", "tail"], "Awkward: does not run on an example"),
        ("blocks", "Awkward: no residual block was found"),
        ("stage", "where='stage' is unknown"),
    ],
)
def test_what_cannot_be_gated_is_refused_and_the_network_is_as_before(
    where: object, message: str
) -> None:
    torch.manual_seed(0)
    model = Awkward()
    kinds = [type(module) for module in model.modules()]
    keys = list(model.state_dict())
    with pytest.raises(BadInput, match=message):
        insert(model, where=where)
    assert [type(module) for module in model.modules()] == kinds
    assert list(model.state_dict()) == keys
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_second_gates_and_wrong_examples_are_refused() -> None:
    model = lively("Vgg")
    insert(model, where="stages")
    with pytest.raises(BadInput, match=r"module features\.5: has a gate already"):
        insert(model, where=["features.5"])
    with pytest.raises(BadInput, match=r"Detector: does not run on an example of \[1, 4, 8, 8\]"):
        insert(Detector(), example=torch.zeros(1, 4, 8, 8))
    with pytest.raises(BadInput, match="no stage was found"):
        insert(nn.Sequential(nn.Conv2d(3, 4, 1)), where="stages")


def test_default_is_the_papers_gate_in_each_block_for_imagenets_pictures() -> None:
    model = lively("MobileNet")
    found = insert_gates(model)
    assert (modules(found), found.spec) == (BLOCKS["MobileNet"], CBAM)
    spec = GateSpec(kernel_size=3, reduction=4)
    assert insert_gates(lively("MobileNet"), spec).spec == spec
