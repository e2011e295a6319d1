"""Initial weights of the zoo's networks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_SETTLING_PICTURES = (8, 3, 64, 64)


def initialize(model: nn.Module) -> None:
    """Draw `model`'s convolutions by He et al. (ICCV 2015, fan out); set BatchNorm to identity.

    Linear layers keep PyTorch's initialization. The gates' BatchNorm starts at identity as well
    (the authors' code starts its scale at zero), so that an untrained network exercises every
    part of its gates.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size) // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


@torch.no_grad()
def settle(model: nn.Module) -> None:
    """Start BatchNorm's running variances at what seeded noise gives, one value per layer.

    At the usual start of 1 an untrained network is no stand-in for a trained one: without gates
    the signal of ResNet-152 grows to 2e8, which FP16 does not hold, and 26 gates in a row shrink
    MobileNet's to 1e-32. A gate opens as its input grows, so a picture of more contrast than the
    variances are made for would grow from gate to gate: they are those of the strongest picture,
    and the noise has a colour cast, as pictures have. Training soon overwrites these values. Powers
    of two, they do not depend on the order in which a machine adds. Weights without data (``meta``
    tensors) stay as they are.
    """
    if next(model.parameters()).is_meta:
        return

    def match(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        strongest = inputs[0].square().mean(dim=(1, 2, 3)).max()
        power = round(math.log2(strongest.item()))
        assert isinstance(module, nn.BatchNorm2d)
        assert module.running_var is not None
        module.running_var.fill_(2.0**power)

    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [layer.register_forward_pre_hook(match) for layer in layers]
    count, channels, *_ = _SETTLING_PICTURES
    model.eval()(torch.randn(_SETTLING_PICTURES) + torch.randn(count, channels, 1, 1))
    model.train()
    for hook in hooks:
        hook.remove()
