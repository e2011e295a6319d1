"""The gate computes the paper's equations, in every variant."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from typing import get_args

import numpy as np
import pytest
import torch

from cbam_deploy.gates.description import (
    CBAM,
    GATES,
    SE,
    Activation,
    Arrangement,
    ChannelPool,
    GateSpec,
    Join,
    Mixer,
)
from cbam_deploy.models.gate import AttentionGate

CHANNELS = 20  # Not divisible by 16: the hidden layer has floor(20 / 16) = 1 unit.

# float32 sums of n terms differ from exact ones by at most n rounding errors of 2^-24, relative to
# the sum of magnitudes. The longest sum here is the spatial convolution's, 2 * 7 * 7 terms; the
# sigmoid does not amplify and outputs are of the size of inputs.
TOLERANCE = 2 * 7 * 7 * 2.0**-24

JOINS_AND_MIXERS = (get_args(Join), get_args(Mixer))

# The paper's, each with each, and every other choice at least once.
VARIANTS = [
    *(
        GateSpec(pool, reduction, spatial, kernel_size, arrangement)
        for pool, reduction, spatial, kernel_size, arrangement in itertools.product(
            get_args(ChannelPool),
            (4, 16),
            ("pool", "conv1x1", "none"),
            (3, 7),
            get_args(Arrangement),
        )
        if (spatial == "none") == (arrangement == "channel")
    ),
    *(GATES[name] for name in ("cbam-linear", "se-silu", "se-hard", "ese", "eca", "scse")),
    *(GateSpec(activation=activation) for activation in get_args(Activation)),
    *(GateSpec(join=join, mixer=mixer) for join, mixer in itertools.product(*JOINS_AND_MIXERS)),
    GateSpec(spatial="max", spatial_gate="hard_sigmoid", kernel_size=5),
    GateSpec(spatial="avg", kernel_size=1, mixer="conv", channel_kernel_size=5),
]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def hard_sigmoid(x: np.ndarray) -> np.ndarray:
    return np.clip(x + 3, 0, 6) / 6


GATE_FUNCTIONS = {"sigmoid": sigmoid, "hard_sigmoid": hard_sigmoid}
ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x < 0, 0.01 * x, x),
    "silu": lambda x: x * sigmoid(x),
    "gelu": lambda x: x * np.vectorize(statistics.NormalDist().cdf)(x),
    "hard_swish": lambda x: x * hard_sigmoid(x),
}


def reference(gate: AttentionGate, x: np.ndarray) -> np.ndarray:
    """The equations in float64, written with loops."""
    spec = gate.spec
    weight = {name: value.double().numpy() for name, value in gate.state_dict().items()}

    def mixed(v: np.ndarray) -> np.ndarray:
        if spec.mixer == "mlp":
            hidden = v @ weight["channel.reduce.weight"].T + weight["channel.reduce.bias"]
            out = ACTIVATIONS[spec.activation](hidden) @ weight["channel.expand.weight"].T
            return out + weight["channel.expand.bias"]
        if spec.mixer == "linear":
            return v @ weight["channel.mix.weight"].T + weight["channel.mix.bias"]
        taps = weight["channel.mix.weight"][0, 0]
        framed = np.pad(v, ((0, 0), (len(taps) // 2, len(taps) // 2)))
        return sum(tap * framed[:, i : i + v.shape[1]] for i, tap in enumerate(taps))

    def channel(x: np.ndarray) -> np.ndarray:
        function = GATE_FUNCTIONS[spec.channel_gate]
        average, maximum = x.mean((2, 3)), x.max((2, 3))
        pools = {"avg": [average], "max": [maximum], "avg+max": [average, maximum]}
        pooled = pools[spec.channel_pool]
        if spec.join == "pools":
            pooled = [np.mean(pooled, axis=0)]
        logits = np.stack([mixed(v) for v in pooled])
        attention = function(logits).sum(0) if spec.join == "gates" else function(logits.sum(0))
        return attention[:, :, None, None]

    def spatial(x: np.ndarray) -> np.ndarray:
        if spec.spatial == "conv1x1":
            described = np.einsum("oc,nchw->nohw", weight["spatial.describe.weight"][..., 0, 0], x)
        else:
            planes = {"pool": [x.max(1), x.mean(1)], "max": [x.max(1)], "avg": [x.mean(1)]}
            described = np.stack(planes[spec.spatial], 1)
        kernel = weight["spatial.conv.weight"][0]
        k = kernel.shape[-1]
        padded = np.pad(described, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
        out = np.zeros_like(x[:, :1])
        for row, column in itertools.product(range(x.shape[2]), range(x.shape[3])):
            window = padded[:, :, row : row + k, column : column + k]
            out[:, 0, row, column] = (window * kernel).sum((1, 2, 3))
        scale = weight["spatial.bn.weight"] / np.sqrt(weight["spatial.bn.running_var"] + 1e-5)
        return GATE_FUNCTIONS[spec.spatial_gate](
            (out - weight["spatial.bn.running_mean"]) * scale + weight["spatial.bn.bias"]
        )

    match spec.arrangement:
        case "channel":
            return x * channel(x)
        case "spatial":
            return x * spatial(x)
        case "channel-spatial":
            refined = x * channel(x)
            return refined * spatial(refined)
        case "spatial-channel":
            refined = x * spatial(x)
            return refined * channel(refined)
        case "parallel":
            return x * channel(x) * spatial(x)
        case "sum":
            return x * channel(x) + x * spatial(x)


def seeded_gate(spec: GateSpec, channels: int = CHANNELS) -> AttentionGate:
    """A gate whose every parameter and statistic is drawn, none at a neutral value."""
    chance = torch.Generator().manual_seed(7)
    gate = AttentionGate(channels, spec).eval()
    with torch.no_grad():
        for name, value in gate.state_dict().items():
            if value.is_floating_point():
                drawn = torch.randn(value.shape, generator=chance)
                value.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn)
    return gate


def feature_map(height: int = 9, width: int = 6) -> torch.Tensor:
    return torch.randn(3, CHANNELS, height, width, generator=torch.Generator().manual_seed(8))


@pytest.mark.parametrize("spec", VARIANTS, ids=str)
def test_gate_computes_the_equations_of_its_variant(spec: GateSpec) -> None:
    gate, x = seeded_gate(spec), feature_map()
    with torch.no_grad():
        got = gate(x).numpy()
    np.testing.assert_allclose(got, reference(gate, x.double().numpy()), atol=TOLERANCE, rtol=1e-4)


def test_channel_attention_sums_before_sigmoid() -> None:
    gate = seeded_gate(dataclasses.replace(CBAM, arrangement="channel", spatial="none"))
    x = feature_map()
    with torch.no_grad():
        channel = gate.channel
        average, maximum = (
            channel.expand(channel.reduce(pooled).relu())
            for pooled in (x.mean((2, 3)), x.amax((2, 3)))
        )
        got = channel(x)[:, :, 0, 0]
    torch.testing.assert_close(got, torch.sigmoid(average + maximum))
    assert (got - (average.sigmoid() + maximum.sigmoid())).abs().max() > 0.1


def test_spatial_descriptor_has_maximum_first_mean_second() -> None:
    gate = seeded_gate(CBAM)
    x = feature_map()
    with torch.no_grad():
        gate.spatial.conv.weight[:, 1] = 0  # Only channel 0 counts now.
        before = gate.spatial(x)
        x.scatter_add_(1, x.argmin(1, keepdim=True), torch.full((3, 1, 9, 6), -5.0))
        torch.testing.assert_close(gate.spatial(x), before)  # The mean changed, no maximum.


def test_squeeze_and_excitation_is_the_average_pooled_channel_gate() -> None:
    gate = seeded_gate(SE)
    assert {name.split(".")[0] for name in gate.state_dict()} == {"channel"}
    x = feature_map()
    flat = x.mean((2, 3), keepdim=True).expand_as(x)
    with torch.no_grad():
        torch.testing.assert_close(gate(x) / x, gate(flat) / flat)


def test_hidden_layer_never_vanishes() -> None:
    assert AttentionGate(8, CBAM).channel.reduce.out_features == 1
    assert AttentionGate(64, CBAM).channel.reduce.out_features == 4


@pytest.mark.parametrize("spec", [CBAM, SE, GateSpec(spatial="conv1x1")], ids=str)
def test_memory_format_does_not_change_the_result(spec: GateSpec) -> None:
    gate, x = seeded_gate(spec), feature_map()
    with torch.no_grad():
        plain, last = gate(x), gate(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last.contiguous(), plain)


@pytest.mark.parametrize("arrangement", ["channel-spatial", "parallel"])
def test_exported_program_takes_other_batches_and_sizes(arrangement: Arrangement) -> None:
    gate = seeded_gate(GateSpec(arrangement=arrangement))
    free = {0: torch.export.Dim("n"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    program = torch.export.export(gate, (feature_map(),), dynamic_shapes=(free,)).module()
    other = feature_map(height=4, width=15)[:2]
    with torch.no_grad():
        torch.testing.assert_close(program(other), gate(other))


def test_every_parameter_learns() -> None:
    for spec in VARIANTS:
        gate = seeded_gate(spec).train()
        gate(feature_map()).square().sum().backward()
        for name, parameter in gate.named_parameters():
            assert parameter.grad is not None, (spec, name)
