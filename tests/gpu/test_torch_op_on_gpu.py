"""The operators on a GPU: by the float64 reference, in graphs, compiled, and differentiated."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from cbam_deploy import create_model
from cbam_deploy.gates.description import CBAM, SE
from cbam_deploy.gates.operators import GATE_OPERATORS
from cbam_deploy.gates.reference import Weights, apply_gate, disagreement
from cbam_deploy.models.gate import AttentionGate
from cbam_deploy.plugins import torch_op
from cbam_deploy.plugins.gate import Gate
from cbam_deploy.plugins.torch_gate import FusedGate, folded

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
SHAPES = ((64, 14, 14), (20, 5, 7), (256, 56, 56))
BATCH = 3
BY_NAME = {one.function: one for one in GATE_OPERATORS.values()}


def operator(name):
    return getattr(torch_op.NAMESPACE, name).default


def drawn(name, shape=SHAPES[0], dtype="float16", layout="nhwc", batch=BATCH):
    """A gate with its weights, and the operator's arguments on the GPU."""
    this = BY_NAME[name]
    sizes = {
        "hidden": 4 if "W0" in this.weights else 0,
        "kernel_size": 7 if "WS" in this.weights else 0,
        "channel_kernel_size": 3 if "WC" in this.weights else 0,
    }
    gate = Gate(this, *shape, **sizes, dtype=dtype, layout=layout)
    rng = np.random.default_rng(0)
    weights = {
        name.lower(): (rng.standard_normal(size) / np.sqrt(size[-1])).astype(np.float32)
        for name, size in this.weight_shapes(gate.channels, *sizes.values()).items()
    }
    maps = [
        torch.tensor(rng.standard_normal((batch, *shape)), dtype=getattr(torch, dtype))
        .cuda()
        .contiguous(memory_format=FORMATS[layout])
        for _ in range(1 + this.residual)
    ]
    arguments = (torch.tensor(array).cuda() for array in weights.values())
    return gate, Weights(**weights), [*maps, *arguments]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", BY_NAME)
def test_cuda_kernel_computes_the_gate(name, dtype, layout, shape):
    gate, weights, tensors = drawn(name, shape, dtype, layout)
    y = operator(name)(*tensors)
    assert y.stride() == tensors[0].stride()
    maps = [tensor.double().cpu().numpy() for tensor in tensors[: 1 + gate.operator.residual]]
    assert disagreement(gate, y.double().cpu().numpy(), apply_gate(gate, weights, *maps)) is None


@pytest.mark.parametrize("name", BY_NAME)
def test_opcheck_passes_on_cuda(name):
    _, _, tensors = drawn(name)
    torch.library.opcheck(operator(name), tensors)
    torch.library.opcheck(operator(name), [tensor.requires_grad_() for tensor in tensors])


@pytest.mark.parametrize("shape", [(256, 56, 56), (64, 112, 112)], ids=["fused", "large"])
def test_cuda_graph_replays_the_gate_on_new_inputs(shape):
    _, _, tensors = drawn("cbam_gate_add_relu", shape)
    gate = operator("cbam_gate_add_relu")
    gate(*tensors)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = gate(*tensors)
    tensors[0].copy_(torch.randn_like(tensors[0]))
    graph.replay()
    assert torch.equal(y, gate(*tensors))


def test_kernels_can_be_loaded_while_a_graph_is_captured():
    _, _, tensors = drawn("cbam_gate", (72, 11, 13))  # a shape that nothing else here has
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = operator("cbam_gate")(*tensors)
    graph.replay()
    assert torch.equal(y, operator("cbam_gate")(*tensors))


def test_nothing_waits_for_the_device():
    _, _, tensors = drawn("cbam_gate_add_relu")
    gate = operator("cbam_gate_add_relu")
    gate(*tensors)
    torch.cuda.set_sync_debug_mode("error")
    try:
        gate(*tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_launches_follow_the_current_stream():
    _, _, tensors = drawn("cbam_gate_add_relu", (256, 56, 56), batch=32)
    gate = operator("cbam_gate_add_relu")
    expected = gate(*tensors)
    stream = torch.cuda.Stream()
    late = torch.zeros_like(tensors[0])
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(tensors[0])
        y = gate(late, *tensors[1:])
    stream.synchronize()
    assert torch.equal(y, expected)


def test_a_new_thread_can_launch():
    _, _, tensors = drawn("se_gate")
    expected = operator("se_gate")(*tensors)
    found = []
    thread = threading.Thread(target=lambda: found.append(operator("se_gate")(*tensors)))
    thread.start()
    thread.join()
    assert torch.equal(found[0], expected)


@pytest.mark.parametrize("spec", [CBAM, SE], ids=["cbam", "se"])
def test_gradients_on_cuda_are_those_of_float64(spec):
    torch.manual_seed(0)
    module = AttentionGate(32, spec).eval()
    name = "cbam_gate_add_relu" if spec is CBAM else "se_gate_add_relu"
    x, r = torch.randn(2, 2, 32, 9, 9).unbind()
    inputs = [tensor.detach().cuda().requires_grad_() for tensor in (x, r, *folded(module))]
    with torch.backends.cudnn.flags(allow_tf32=False):
        operator(name)(*inputs).square().sum().backward()
    wide = [tensor.double().requires_grad_() for tensor in (x, r)]
    module.double()(*wide).square().sum().backward()
    for mine, theirs in zip(inputs, wide, strict=False):
        torch.testing.assert_close(mine.grad.cpu(), theirs.grad.float(), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_torch_compile_leaves_the_gate_alone():
    torch.manual_seed(0)
    gate = AttentionGate(64, CBAM).eval().cuda().half()
    gate.operators = FusedGate(gate.spec)
    x, r = torch.randn(2, 4, 64, 14, 14, device="cuda", dtype=torch.half).unbind()
    x = x.contiguous(memory_format=torch.channels_last)
    expected = gate(x, r)
    y = torch.compile(gate, fullgraph=True)(x, r)
    torch.testing.assert_close(y, expected, rtol=2**-10, atol=2**-10)
    assert y.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_fused_network_computes_the_same_on_cuda():
    models = [
        create_model("resnet20", seed=0, fused=fused).eval().cuda() for fused in (False, True)
    ]
    x = torch.randn(4, 3, 32, 32, device="cuda").contiguous(memory_format=torch.channels_last)
    with torch.backends.cudnn.flags(allow_tf32=False):
        plain, fused = (model.eval().cuda()(x) for model in models)
    torch.testing.assert_close(fused, plain, rtol=1e-3, atol=1e-4)
