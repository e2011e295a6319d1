"""The zoo's networks are those of the papers: parameters, gates' places, names, stems."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cbam_deploy.errors import BadInput
from cbam_deploy.gates.description import SE, GateSpec
from cbam_deploy.models import create_model, list_models
from cbam_deploy.models.gate import AttentionGate
from cbam_deploy.models.mobilenet import SeparableBlock
from cbam_deploy.models.resnet import BasicBlock, Bottleneck
from cbam_deploy.models.zoo import gate_for

# Millions of parameters with attention none, se and cbam: tables 4 and 5 of the CBAM paper.
PAPER = {
    "resnet18": (11.69, 11.78, 11.78),
    "resnet34": (21.80, 21.96, 21.96),
    "resnet50": (25.56, 28.09, 28.09),
    "resnet101": (44.55, 49.33, 49.33),
    "resnext50_32x4d": (25.03, 27.56, 27.56),
    "resnext101_32x4d": (44.18, 48.96, 48.96),
    "wide_resnet18_1_5": (25.88, 26.07, 26.08),
    "wide_resnet18_2_0": (45.62, 45.97, 45.97),
    "mobilenet": (4.23, 5.07, 5.07),
}


def parameters(name: str, attention: str = "none", **options: object) -> int:
    with torch.device("meta"):
        model = create_model(name, attention=attention, **options)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PAPER)
def test_parameter_counts_are_the_papers(name: str) -> None:
    counts = (parameters(name, attention) for attention in ("none", "se", "cbam"))
    assert tuple(round(count / 1e6, 2) for count in counts) == PAPER[name]


def test_plain_counts_are_those_of_the_published_checkpoints() -> None:
    # From torchvision's documentation of its weights ("num_params").
    published = {
        "resnet18": 11_689_512,
        "resnet34": 21_797_672,
        "resnet50": 25_557_032,
        "resnet101": 44_549_160,
        "resnet152": 60_192_808,
        "resnext50_32x4d": 25_028_904,
    }
    assert {name: parameters(name) for name in published} == published


def test_cbam_adds_a_k_by_k_convolution_and_its_batchnorm_per_block_to_se() -> None:
    blocks, weights, batchnorm = 16, 2 * 7 * 7, 2
    added = parameters("resnet50", "cbam") - parameters("resnet50", "se")
    assert added == blocks * (weights + batchnorm)


@pytest.mark.parametrize(("name", "kind"), [("resnet18", BasicBlock), ("resnet50", Bottleneck)])
def test_gate_stands_between_last_batchnorm_and_residual_addition(
    name: str, kind: type[nn.Module]
) -> None:
    model = create_model(name, num_classes=10, seed=0).eval()
    blocks = [module for module in model.modules() if isinstance(module, kind)]
    assert len(blocks) == {"resnet18": 8}.get(name, 16)
    block = blocks[-2]
    last = block.bn3 if kind is Bottleneck else block.bn2
    seen: dict[str, torch.Tensor] = {}

    def keep(label: str) -> object:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            seen[f"{label} in"], seen[f"{label} out"] = inputs[0].clone(), output.clone()

        return hook

    for label, module in {"block": block, "bn": last, "gate": block.gate}.items():
        module.register_forward_hook(keep(label))
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
        shortcut = block.downsample(seen["block in"])
    assert torch.equal(seen["gate in"], seen["bn out"])
    assert not torch.equal(seen["gate out"], seen["gate in"])
    torch.testing.assert_close(seen["block out"], torch.relu(seen["gate out"] + shortcut))


def test_mobilenet_gates_both_convolutions_of_each_block() -> None:
    model = create_model("mobilenet", num_classes=10)
    blocks = [module for module in model.modules() if isinstance(module, SeparableBlock)]
    assert len(blocks) == 13
    assert all(isinstance(block.gate1, AttentionGate) for block in blocks)
    assert all(isinstance(block.gate2, AttentionGate) for block in blocks)


def torchvision_names(depths: tuple[int, ...], convolutions: int) -> set[str]:
    """Parameters and buffers of torchvision's ResNets, by its naming rules."""

    def batchnorm(name: str) -> set[str]:
        kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return {f"{name}.{kind}" for kind in kinds}

    names = {"conv1.weight", "fc.weight", "fc.bias"} | batchnorm("bn1")
    for stage, depth in enumerate(depths, 1):
        for block in range(depth):
            prefix = f"layer{stage}.{block}"
            for number in range(1, convolutions + 1):
                names.add(f"{prefix}.conv{number}.weight")
                names |= batchnorm(f"{prefix}.bn{number}")
            if block == 0 and (stage > 1 or convolutions == 3):
                names.add(f"{prefix}.downsample.0.weight")
                names |= batchnorm(f"{prefix}.downsample.1")
    return names


@pytest.mark.parametrize(
    ("name", "depths", "convolutions"),
    [("resnet18", (2, 2, 2, 2), 2), ("resnet50", (3, 4, 6, 3), 3)],
)
def test_plain_parts_are_named_as_in_torchvision(
    name: str, depths: tuple[int, ...], convolutions: int
) -> None:
    with torch.device("meta"):
        plain = set(create_model(name, attention="none").state_dict())
        gated = set(create_model(name, attention="cbam").state_dict())
    assert plain == torchvision_names(depths, convolutions)
    assert all(".gate." in key for key in gated - plain)
    assert plain < gated


@pytest.mark.parametrize("name", list_models())
def test_every_network_gives_logits(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=7).eval()
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("name", ["resnet20", "resnext50_32x4d", "mobilenet"])
def test_logits_are_numbers_that_depend_on_the_picture(name: str) -> None:
    model = create_model(name, num_classes=7, seed=0).eval()
    with torch.no_grad():
        logits = model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert torch.isfinite(logits).all()
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize(("name", "strides"), [("resnet18", 4), ("mobilenet", 2)])
def test_stems_reduce_the_picture_as_meant(name: str, strides: int) -> None:
    sizes = {}
    for stem in ("imagenet", "cifar"):
        model = create_model(name, num_classes=2, stem=stem, seed=0).eval()
        first = next(m for m in model.modules() if isinstance(m, BasicBlock | SeparableBlock))
        first.register_forward_pre_hook(
            lambda module, inputs, stem=stem: sizes.update({stem: inputs[0].shape[-1]})
        )
        with torch.no_grad():
            model(torch.zeros(1, 3, 64, 64))
    assert sizes == {"imagenet": 64 // strides, "cifar": 64}


def test_resnet20_has_the_size_of_the_cifar_network() -> None:
    # He et al. (table 6) have 0.27 M with identities, padded where the width doubles, in place of
    # our two projections, each a 1x1 convolution and its BatchNorm.
    projections = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    assert parameters("resnet20", num_classes=10) - projections == 269_722


def test_resnet8_has_the_size_of_the_one_in_mlperf_tiny() -> None:
    # Its Keras model has 78,666 with biases beside its BatchNorms, whose statistics count there,
    # and with projections that have none.
    biases = 3 * 16 + 3 * 32 + 3 * 64
    statistics = 2 * (3 * 16 + 2 * 32 + 2 * 64)
    of_projections = 2 * (32 + 64)
    assert parameters("resnet8", num_classes=10) == 78_666 - biases - statistics + of_projections


def test_seed_makes_initial_weights_and_leaves_the_global_generator() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = create_model("resnet20", num_classes=10, seed=1).state_dict()
    assert torch.equal(torch.rand(1), expected)
    again = create_model("resnet20", num_classes=10, seed=1).state_dict()
    other = create_model("resnet20", num_classes=10, seed=2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


@pytest.mark.parametrize(
    ("name", "attention"), [("resnet152", "none"), ("mobilenet", "cbam"), ("resnet50", "cbam")]
)
def test_untrained_activations_fit_fp16_and_do_not_vanish(name: str, attention: str) -> None:
    model = create_model(name, attention=attention, seed=0).eval()
    peaks: list[float] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda module, inputs, output: peaks.append(output.abs().max().item())
            )
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(9)))
    assert min(peaks) > 0.05
    assert max(peaks) < torch.finfo(torch.float16).max / 100


def test_initial_running_variances_are_powers_of_two() -> None:
    model = create_model("resnet20", num_classes=10, seed=0)
    assert model.training
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            mantissa, _ = torch.frexp(value)
            assert (mantissa == 0.5).all(), name
        if name.endswith("num_batches_tracked"):
            assert value == 0


def test_a_gate_variant_reaches_every_block() -> None:
    spec = GateSpec(reduction=4, kernel_size=3, arrangement="parallel")
    model = create_model("resnet20", num_classes=10, gate=spec)
    gates = [module for module in model.modules() if isinstance(module, AttentionGate)]
    assert len(gates) == 9
    assert {gate.spec for gate in gates} == {spec}


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"name": "resnet5"}, "'resnet5'", "resnet50"),
        ({"name": "vit"}, "'vit'", "package.module:factory"),
        ({"attention": "bam"}, "'bam'", "cbam, se, none"),
        ({"stem": "svhn"}, "'svhn'", "imagenet, cifar"),
        ({"num_classes": 0}, "0 classes", "positive"),
        ({"name": "resnet20", "stem": "imagenet"}, "resnet20", "cifar"),
        ({"attention": "none", "gate": GateSpec()}, "none takes no gate", "cbam or se"),
        ({"attention": "se", "gate": GateSpec()}, "not Squeeze-and-Excitation", "cbam"),
    ],
)
def test_options_that_cannot_work_are_refused(
    options: dict[str, object], message: str, hint: str
) -> None:
    with pytest.raises(BadInput) as caught:
        create_model(**{"name": "resnet18", **options})
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_squeeze_and_excitation_takes_another_reduction() -> None:
    spec = GateSpec(channel_pool="avg", reduction=8, spatial="none", arrangement="channel")
    assert gate_for("se", spec) == spec
    assert gate_for("se") == SE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet", "resnet50"])
def test_initial_weights_compute_the_same_in_float32_as_in_float64(name):
    model = create_model(name, seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn((4, 3, 96, 96), generator=generator)
    pictures = noise + torch.randn((4, 3, 1, 1), generator=generator)
    with torch.inference_mode():
        single = model(pictures)
        double = model.double()(pictures.double())
    # The bound that validation.tolerances derives for FP32.
    assert (single - double).abs().max() <= 1e-4 * double.abs().max()
