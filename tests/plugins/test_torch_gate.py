"""``create_model(fused=True)``: the same parameters, the same results, by the fused operators."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch

from cbam_deploy import create_model
from cbam_deploy.errors import BadInput
from cbam_deploy.gates.description import CBAM, GATES, SE
from cbam_deploy.gates.operators import operator_for
from cbam_deploy.models.gate import AttentionGate
from cbam_deploy.plugins.torch_gate import FusedGate

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
"""Both compute in float32; a deep network passes rounding differences on."""


def pair(name, **options):
    """The same network twice, unfused and fused, in evaluation."""
    models = (create_model(name, seed=0, fused=fused, **options) for fused in (False, True))
    return tuple(model.eval() for model in models)


class Calls(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the package's operators that run, and what they are given."""

    def __init__(self):
        super().__init__()
        self.names, self.arguments = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "cbam_deploy":
            self.names.append(function.name().removeprefix("cbam_deploy::"))
            self.arguments.append(args)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("attention", ["cbam", "se"])
@torch.no_grad()
def test_fused_network_computes_the_same(attention, layout):
    plain, fused = pair("resnet20", attention=attention)
    x = torch.randn(2, 3, 32, 32).contiguous(memory_format=layout)
    plain, fused = (model.to(memory_format=layout) for model in (plain, fused))
    calls = Calls()
    with calls:
        y = fused(x)
    assert calls.names == [f"{attention}_gate_add_relu"] * 9
    torch.testing.assert_close(y, plain(x), **TOLERANCE)


@pytest.mark.parametrize("name", GATES)
@torch.no_grad()
def test_every_gate_with_a_name_is_fused(name):
    plain, fused, x = small_gates(GATES[name])
    with Calls() as calls:
        y = fused(x)
    assert calls.names == [operator_for(GATES[name]).function]
    torch.testing.assert_close(y, plain(x), **TOLERANCE)
    torch.testing.assert_close(fused(x, x), (plain(x) + x).relu(), **TOLERANCE)


@torch.no_grad()
def test_gates_without_a_residual_are_fused_too():
    plain, fused = pair("mobilenet", num_classes=10, stem="cifar")
    x = torch.randn(2, 3, 32, 32)
    calls = Calls()
    with calls:
        y = fused(x)
    assert calls.names == ["cbam_gate"] * 26
    torch.testing.assert_close(y, plain(x), **TOLERANCE)


def test_half_precision_keeps_gate_weights_in_float32():
    _, fused = pair("resnet20")
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = fused(x)
        y = fused.bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16
    error = (y.float() - expected).norm() / expected.norm()
    assert error < 0.1  # a dozen layers in bfloat16, one unit roundoff being 0.4%


def test_state_dict_is_the_same():
    plain, fused = pair("resnet20")
    assert list(plain.state_dict()) == list(fused.state_dict())
    for one, other in zip(plain.state_dict().values(), fused.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def small_gates(spec=CBAM):
    torch.manual_seed(0)
    plain = AttentionGate(16, spec).eval()
    fused = copy.deepcopy(plain)
    fused.operators = FusedGate(fused.spec)
    return plain, fused, torch.randn(2, 16, 5, 5)


def reload(gate):
    state = {name: torch.full_like(value, 0.25) for name, value in gate.state_dict().items()}
    gate.load_state_dict(state)


def reassign(gate):
    state = {name: torch.full_like(value, 0.25) for name, value in gate.state_dict().items()}
    gate.load_state_dict(state, assign=True)


def train_once(gate):
    optimizer = torch.optim.SGD(gate.parameters(), lr=0.5)
    with torch.enable_grad():
        gate(torch.ones(1, 16, 5, 5)).sum().backward()
    optimizer.step()


def shift_statistics(gate):
    gate.spatial.bn.running_mean += 1


def replace_data(gate):
    gate.channel.reduce.weight.data = torch.ones_like(gate.channel.reduce.weight)


def round_to_half(gate):
    gate.half().float()


@pytest.mark.parametrize(
    "change", [reload, reassign, train_once, shift_statistics, replace_data, round_to_half]
)
@torch.no_grad()
def test_kept_weights_follow_every_change_of_the_parameters(change):
    plain, fused, x = small_gates()
    before = fused(x)
    change(plain)
    change(fused)
    after = fused(x)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, plain(x), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_weights_are_kept_and_refreshed_in_place():
    _, fused, x = small_gates()
    with Calls() as calls:
        fused(x)
        fused(x)
        shift_statistics(fused)
        fused(x)
    # All tensors are held here, so that no address is given out twice.
    first, again, refreshed = [
        [weight.data_ptr() for weight in weights] for _, *weights in calls.arguments
    ]
    assert first == again == refreshed


def test_a_copy_has_weights_of_its_own():
    _, fused, x = small_gates()
    with torch.no_grad():
        expected = fused(x)
        copied = copy.deepcopy(fused)
        shift_statistics(copied)
        assert not torch.equal(copied(x), expected)
        assert torch.equal(fused(x), expected)


def test_weights_kept_in_inference_mode_serve_outside_of_it():
    plain, fused, x = small_gates()
    with torch.inference_mode():
        fused(x)
    with torch.no_grad():
        shift_statistics(fused)
        shift_statistics(plain)
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-5, atol=1e-6)
    fused(x).sum().backward()
    assert fused.channel.reduce.weight.grad is not None


def test_parameters_that_were_made_in_inference_mode_serve_too():
    with torch.inference_mode():
        plain, fused, x = small_gates()
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-5, atol=1e-6)
        shift_statistics(fused)
        shift_statistics(plain)
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-5, atol=1e-6)


def test_training_uses_the_statistics_of_the_batch():
    plain, fused, x = small_gates()
    calls = Calls()
    with calls:
        torch.testing.assert_close(fused.train()(x), plain.train()(x))
    assert calls.names == []
    assert torch.equal(fused.spatial.bn.running_mean, plain.spatial.bn.running_mean)


def test_channel_gates_are_fused_in_training_too():
    plain, fused, x = small_gates(SE)
    calls = Calls()
    with calls:
        y = fused.train()(x)
    assert calls.names == ["se_gate"]
    torch.testing.assert_close(y, plain(x), rtol=1e-5, atol=1e-6)


def test_what_is_exported_is_made_of_standard_operators():
    _, fused, x = small_gates()
    program = torch.export.export(fused, (x, x))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets
    assert not [target for target in targets if "cbam_deploy" in target]


def test_a_network_without_gates_has_none_to_fuse():
    with pytest.raises(BadInput, match="no gates"):
        create_model("resnet20", attention="none", fused=True)


def test_models_load_no_plugins_until_they_are_fused():
    code = (
        "import sys; from cbam_deploy.models import create_model; create_model('resnet20');"
        "loaded = [name for name in sys.modules if name.startswith('cbam_deploy.plugins')];"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
