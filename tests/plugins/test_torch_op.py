"""``torch.ops.cbam_deploy``: right by the float64 reference, and a good citizen of PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from cbam_deploy.errors import BadInput
from cbam_deploy.gates.description import CBAM, GATES, SE, GateSpec
from cbam_deploy.gates.operators import (
    GATE_OPERATORS,
    GateOperator,
    operator_for,
    operator_named,
)
from cbam_deploy.gates.reference import Weights, apply_gate, disagreement
from cbam_deploy.models.gate import AttentionGate
from cbam_deploy.plugins import torch_op
from cbam_deploy.plugins.torch_gate import FusedGate, folded
from cbam_deploy.plugins.torch_inputs import bind, check, dense

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
BY_NAME = {operator.function: operator for operator in GATE_OPERATORS.values()}
# Gates that have no name of their own: registered when they are asked for.
OTHERS = [
    "SeGateMeanMaxGelu",
    "CbamGateSpatialFirstHardSigmoidAdd",
    "CbamGateSumOfGatesMeanMapThenSilu",
    "EcaGateMeanMaxThenHardSwish",
    "ScseGateMeanMaxMeanOfPoolsMaxMapHardSigmoidMapAddLeakyRelu",
    "SpatialGateConvMap",
]


@dataclass(frozen=True)
class OnMaps:
    """A gate on float maps, as far as the reference formula asks."""

    operator: GateOperator
    dtype: str
    x_scale: float = 1.0
    r_scale: float = 1.0
    y_scale: float = 1.0


def overload(name):
    return getattr(torch_op.NAMESPACE, name).default


def arguments(
    operator, dtype=torch.float32, memory_format=torch.contiguous_format, kernel_size=3, **sizes
):
    """A gate, its weights and positional arguments of the operator, drawn with one seed."""
    operator = BY_NAME[operator] if isinstance(operator, str) else operator
    channels, height, width = (
        sizes.get(name, size) for name, size in (("channels", 12), ("height", 5), ("width", 6))
    )
    names = {value: key for key, value in DTYPES.items()}
    rng = np.random.default_rng(0)
    shapes = operator.weight_shapes(channels, sizes.get("hidden", 3), kernel_size)
    weights = {
        name.lower(): rng.standard_normal(shape).astype(np.float32) / np.sqrt(np.prod(shape[1:]))
        for name, shape in shapes.items()
    }
    maps = [
        torch.tensor(rng.standard_normal((2, channels, height, width)))
        .to(dtype)
        .contiguous(memory_format=memory_format)
        for _ in operator.maps
    ]
    tensors = [torch.from_numpy(value.astype(np.float32)) for value in weights.values()]
    weights = {name: tensor.numpy() for name, tensor in zip(weights, tensors, strict=True)}
    return OnMaps(operator, names[dtype]), Weights(**weights), [*maps, *tensors]


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*GATE_OPERATORS, *OTHERS])
def test_cpu_kernel_computes_the_gate(name, dtype, layout):
    operator = operator_named(name)
    gate, weights, tensors = arguments(operator, DTYPES[dtype], FORMATS[layout], kernel_size=5)
    y = torch_op.function_of(operator)(*tensors)
    assert y.dtype == DTYPES[dtype]
    assert y.stride() == tensors[0].stride(), "the memory format of x"
    maps = [tensor.double().numpy() for tensor in tensors[: len(operator.maps)]]
    assert disagreement(gate, y.double().numpy(), apply_gate(gate, weights, *maps)) is None


def test_maps_that_are_neither_nchw_nor_channels_last_are_taken_too():
    _, _, (x, *weights) = arguments("cbam_gate", height=6, width=12)
    sliced = torch.stack([x, x], dim=-1)[..., 0]
    assert not sliced.is_contiguous()
    y = torch.ops.cbam_deploy.cbam_gate(sliced, *weights)
    torch.testing.assert_close(y, torch.ops.cbam_deploy.cbam_gate(x, *weights))
    assert y.is_contiguous()


def test_an_empty_batch_gives_an_empty_map():
    _, _, (x, *weights) = arguments("se_gate")
    assert torch.ops.cbam_deploy.se_gate(x[:0], *weights).shape == (0, *x.shape[1:])


@pytest.mark.parametrize("name", ["cbam_gate", "cbam_gate_add_relu", "se_gate", "scse_gate"])
def test_opcheck_passes(name):
    _, _, tensors = arguments(name)
    torch.library.opcheck(overload(name), tensors)
    _, _, tensors = arguments(name, memory_format=torch.channels_last)
    torch.library.opcheck(overload(name), [tensor.requires_grad_() for tensor in tensors])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_opcheck_passes_in_half_precision(dtype):
    _, _, tensors = arguments("cbam_gate_add_relu", DTYPES[dtype])
    torch.library.opcheck(overload("cbam_gate_add_relu"), tensors)


def random_module(spec: GateSpec) -> AttentionGate:
    """An `AttentionGate` in evaluation, its BatchNorm with statistics of its own."""
    torch.manual_seed(0)
    module = AttentionGate(16, spec).eval()
    if spec.has_spatial:
        bn = module.spatial.bn
        for tensor in (bn.weight.data, bn.bias.data, bn.running_mean, bn.running_var):
            tensor.uniform_(0.5, 1.5)
    return module


@pytest.mark.parametrize("name", ["cbam", "se", "ese", "eca", "scse", "cbam-parallel"])
def test_gradients_are_those_of_the_module_in_float64(name):
    module = random_module(GATES[name])
    operator = operator_for(GATES[name], residual=True, activation="relu")
    x, r = torch.randn(2, 2, 16, 5, 5).unbind()
    weights = dict(zip(operator.weights, folded(module), strict=True))
    mine = [tensor.detach().clone().requires_grad_() for tensor in (x, r, *weights.values())]
    torch_op.function_of(operator)(*mine).square().sum().backward()
    exact = module.double()
    wide = [tensor.double().requires_grad_() for tensor in (x, r)]
    exact(*wide).square().sum().backward()
    gradients = dict(zip(operator.inputs, mine, strict=True))
    pairs = [(gradients["X"], wide[0]), (gradients["R"], wide[1])]
    if GATES[name].mixer == "mlp":
        pairs += [(gradients["W0"], exact.channel.reduce.weight)]
        pairs += [(gradients["B1"], exact.channel.expand.bias)]
    else:
        last = "WC" if GATES[name].mixer == "conv" else "W1"
        pairs += [(gradients[last], exact.channel.mix.weight)]
    for one, other in pairs:
        torch.testing.assert_close(one.grad, other.grad.float(), rtol=1e-4, atol=1e-5)


def test_only_wanted_gradients_are_computed():
    _, _, (x, *weights) = arguments("se_gate")
    weights[0].requires_grad_()
    torch.ops.cbam_deploy.se_gate(x, *weights).sum().backward()
    assert x.grad is None
    assert weights[0].grad.shape == weights[0].shape


def test_second_derivatives_are_those_of_the_formula():
    torch.manual_seed(0)
    module = random_module(SE)
    weights = [tensor.detach() for tensor in folded(module)]
    x = torch.randn(1, 16, 3, 3)

    def norm_of_gradient(gate, x):
        x = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(gate(x).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), x)
        return second

    mine = norm_of_gradient(lambda x: torch.ops.cbam_deploy.se_gate(x, *weights), x)
    theirs = norm_of_gradient(module.double(), x.double())
    torch.testing.assert_close(mine, theirs.float(), rtol=1e-4, atol=1e-4)


WRONG = {
    "x of three dimensions": (0, lambda t: t[0], "x is .*has to be a map"),
    "x of float64": (0, lambda t: t.double(), "x is .*float32, float16 or bfloat16"),
    "x without positions": (0, lambda t: t[..., :0], "at least one channel"),
    "r of another shape": (1, lambda t: t[..., 1:], "r is .*like x"),
    "r of another type": (1, lambda t: t.half(), "r is .*like x"),
    "w0 transposed": (2, lambda t: t.T, r"w0 is \[12, 3\].*has to be \[12, 12\]"),
    "w0 of one dimension": (2, lambda t: t[0], r"w0 is .*has to be \[hidden, 12\]"),
    "b0 of half precision": (3, lambda t: t.half(), "b0 is .*float32"),
    "w1 of too few channels": (4, lambda t: t[1:], r"w1 is .*has to be \[12, 3\]"),
    "b1 a scalar": (5, lambda t: t[0], r"b1 is .*has to be \[12\]"),
    "ws of size 4": (6, lambda t: torch.zeros(1, 2, 4, 4), "ws is .*k odd and at most 15"),
    "ws of one channel": (6, lambda t: t[:, :1], r"ws is .*\[1, 2, 3, 3\]"),
    "bs of two": (7, lambda t: torch.zeros(2), r"bs is \[2\]"),
    "b1 elsewhere": (5, lambda t: t.to("meta"), "b1 is .*meta.*on the device of x, cpu"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_are_refused_by_name(case):
    index, change, words = WRONG[case]
    _, _, tensors = arguments("cbam_gate_add_relu")
    tensors[index] = change(tensors[index])
    operator = BY_NAME["cbam_gate_add_relu"]
    with pytest.raises(BadInput, match=words) as raised:
        check(operator, bind(operator, tuple(tensors)))
    assert "Tensor x, Tensor r, Tensor w0" in raised.value.hint


def test_operators_check_their_inputs():
    _, _, (x, *weights) = arguments("se_gate")
    for device in ("cpu", "meta"):
        tensors = [tensor.to(device) for tensor in (x, *weights[:2], weights[2].T, weights[3])]
        with pytest.raises(BadInput, match="w1"):
            torch.ops.cbam_deploy.se_gate(*tensors)


def test_dense_keeps_what_is_dense():
    x = torch.zeros(2, 3, 4, 5)
    nhwc = x.contiguous(memory_format=torch.channels_last)
    assert dense(x) is x
    assert dense(nhwc) is nhwc


@pytest.mark.parametrize("grad", [False, True])
def test_torch_compile_takes_the_operator_in_one_graph(grad):
    module = random_module(CBAM)
    fused = random_module(CBAM)
    fused.operators = FusedGate(fused.spec)
    torch._dynamo.reset()
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 16, 5, 5).contiguous(memory_format=torch.channels_last)
    r = torch.randn(2, 16, 5, 5)
    with torch.set_grad_enabled(grad):
        mine, theirs = compiled(x, r), module(x, r)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert mine.is_contiguous(memory_format=torch.channels_last)
    if grad:
        mine.square().sum().backward()
        theirs.square().sum().backward()
        for one, other in zip(fused.parameters(), module.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)
