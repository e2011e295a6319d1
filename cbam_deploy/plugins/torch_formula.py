"""The gate in PyTorch's own operators: the CPU kernel, and what autograd differentiates.

As in the kernels, everything is computed in float32 whatever the map's type is, and rounded to it
once at the end; b1 counts twice, since the shared MLP sees the mean and the maximum.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cbam_deploy.plugins.torch_inputs import GateInputs


def gate(inputs: GateInputs) -> Tensor:
    """Compute x Mc Ms, or relu(x Mc Ms + r), of the type and shape of x.

    Sources: Woo et al., ECCV 2018, equations 1 to 3; Hu et al., CVPR 2018, where ws is None.
    """
    x = inputs.x.float()
    hidden = F.linear(x.mean((2, 3)), inputs.w0, inputs.b0).relu()
    b1 = inputs.b1
    if inputs.ws is not None:
        hidden = hidden + F.linear(x.amax((2, 3)), inputs.w0, inputs.b0).relu()
        b1 = 2 * b1
    x = x * F.linear(hidden, inputs.w1, b1).sigmoid()[:, :, None, None]
    if inputs.ws is not None:
        described = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        reach = inputs.ws.shape[-1] // 2
        x = x * F.conv2d(described, inputs.ws, inputs.bs, padding=reach).sigmoid()
    if inputs.r is not None:
        x = (x + inputs.r.float()).relu()
    return x.to(inputs.x.dtype)
