"""The gate in PyTorch's own operators: the CPU kernel, and what autograd differentiates.

As in the kernels, everything is computed in float32 whatever the map's type is, and rounded to it
once at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cbam_deploy.gates.description import GateSpec
from cbam_deploy.gates.operators import GateOperator
from cbam_deploy.models.gate import ACTIVATIONS, GATE_FUNCTIONS
from cbam_deploy.plugins.torch_inputs import GateInputs


def gate(operator: GateOperator, inputs: GateInputs) -> Tensor:
    """Compute the operator's gate and what follows it, of the type and shape of x.

    Sources: Woo et al., ECCV 2018, equations 1 to 3, and those of `gates.description`.
    """
    spec = operator.gate
    x = inputs.x.float()
    if spec.arrangement == "sum":
        y = x * (_channel_gate(spec, inputs, x) + _spatial_gate(spec, inputs, x))
    elif spec.arrangement == "parallel":
        y = x * _channel_gate(spec, inputs, x) * _spatial_gate(spec, inputs, x)
    else:
        y = x
        for part in spec.arrangement.split("-"):
            y = y * (_channel_gate if part == "channel" else _spatial_gate)(spec, inputs, y)
    if inputs.r is not None:
        y = y + inputs.r.float()
    if operator.activation != "none":
        y = ACTIVATIONS[operator.activation](y)
    return y.to(inputs.x.dtype)


def _channel_gate(spec: GateSpec, inputs: GateInputs, x: Tensor) -> Tensor:
    """Mc [N, C, 1, 1]."""
    function = GATE_FUNCTIONS[spec.channel_gate]
    pooled = [x.mean((2, 3))] if spec.channel_pool != "max" else []
    pooled += [x.amax((2, 3))] if spec.channel_pool != "avg" else []
    if spec.join == "pools":
        pooled = [torch.stack(pooled).mean(0)]
    logits = [_mixed(spec, inputs, statistic) for statistic in pooled]
    if spec.join == "gates":
        return torch.stack([function(one) for one in logits]).sum(0)[:, :, None, None]
    return function(torch.stack(logits).sum(0))[:, :, None, None]


def _mixed(spec: GateSpec, inputs: GateInputs, pooled: Tensor) -> Tensor:
    """Logits [N, C] of a statistic [N, C]."""
    if spec.mixer == "conv":
        assert inputs.wc is not None
        reach = inputs.wc.shape[-1] // 2
        return F.conv1d(pooled[:, None], inputs.wc, inputs.bc, padding=reach)[:, 0]
    if spec.mixer == "mlp":
        assert inputs.w0 is not None
        pooled = ACTIVATIONS[spec.activation](F.linear(pooled, inputs.w0, inputs.b0))
    assert inputs.w1 is not None
    return F.linear(pooled, inputs.w1, inputs.b1)


def _spatial_gate(spec: GateSpec, inputs: GateInputs, x: Tensor) -> Tensor:
    """Ms [N, 1, H, W]."""
    assert inputs.ws is not None
    if spec.spatial == "conv1x1":
        assert inputs.wd is not None
        described = F.conv2d(x, inputs.wd)
    else:
        planes = [x.amax(1, keepdim=True)] if spec.spatial != "avg" else []
        planes += [x.mean(1, keepdim=True)] if spec.spatial != "max" else []
        described = torch.cat(planes, 1)
    reach = inputs.ws.shape[-1] // 2
    logits = F.conv2d(described, inputs.ws, inputs.bs, padding=reach)
    return GATE_FUNCTIONS[spec.spatial_gate](logits)
