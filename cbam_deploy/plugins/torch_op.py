"""The PyTorch operators of ``torch.ops.cbam_deploy``.

Importing this module registers those of `GATE_OPERATORS`, `function_of` any other. Names and inputs
are those of ONNX files in lower case, such as

    cbam_gate(x, w0, b0, w1, b1, ws, bs)              gate of x
    cbam_gate_add_relu(x, r, w0, b0, w1, b1, ws, bs)  relu(gate of x + r)

`torch_inputs.GateInputs` says what the arguments are. The result has shape, type and memory format
of x. On CUDA it comes from the fused kernels, launched on the current stream without synchronizing,
so that CUDA graphs can capture it; on a CPU from `torch_formula`. Gradients are those of that
formula, computed anew in the backward pass: nothing but the inputs is kept for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cbam_deploy.gates.operators import DOMAIN, GATE_OPERATORS, GateOperator
from cbam_deploy.plugins import torch_formula
from cbam_deploy.plugins.torch_inputs import bind, check, dense, schema


def _fake(operator: GateOperator, *tensors: Tensor) -> Tensor:
    inputs = bind(operator, tensors)
    check(operator, inputs)
    return torch.empty_like(dense(inputs.x))


def _on_cpu(operator: GateOperator, *tensors: Tensor) -> Tensor:
    inputs = bind(operator, tensors)
    check(operator, inputs)
    return torch.empty_like(dense(inputs.x)).copy_(torch_formula.gate(operator, inputs))


def _on_cuda(operator: GateOperator, *tensors: Tensor) -> Tensor:
    from cbam_deploy.plugins import torch_cuda

    inputs = bind(operator, tensors)
    check(operator, inputs)
    return torch_cuda.run(operator, inputs)


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs)


def _backward(operator: GateOperator, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors: tuple[Tensor, ...] = ctx.saved_tensors
    wanted = [tensor for tensor, needs in zip(tensors, ctx.needs_input_grad, strict=True) if needs]
    differentiable = torch.is_grad_enabled()  # with create_graph=True
    with torch.enable_grad():
        y = torch_formula.gate(operator, bind(operator, tensors))
        found = iter(torch.autograd.grad(y, wanted, grad, create_graph=differentiable))
    return tuple(next(found) if needs else None for needs in ctx.needs_input_grad)


def _register(operator: GateOperator) -> None:
    name = f"{DOMAIN}::{operator.function}"
    kernels: dict[str, Callable[..., Tensor]] = {"cpu": _on_cpu, "cuda": _on_cuda}
    torch.library.define(name, schema(operator), tags=(torch.Tag.pt2_compliant_tag,))
    for device, kernel in kernels.items():
        torch.library.impl(name, device, partial(kernel, operator))
    torch.library.register_fake(name, partial(_fake, operator))
    torch.library.register_autograd(
        name, partial(_backward, operator), setup_context=_setup_context
    )


NAMESPACE = getattr(torch.ops, DOMAIN)
"""``torch.ops.cbam_deploy``, with the operators registered."""


def function_of(operator: GateOperator) -> Callable[..., Tensor]:
    """The PyTorch operator that computes `operator`, registered on its first use."""
    if not hasattr(NAMESPACE, operator.function):
        _register(operator)
    function: Callable[..., Tensor] = getattr(NAMESPACE, operator.function)
    return function


for _operator in GATE_OPERATORS.values():
    _register(_operator)
