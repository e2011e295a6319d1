"""Grad-CAM: which positions of the last feature map speak for a class.

Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", ICCV 2017 (https://arxiv.org/abs/1610.02391), equations 1 and 2:

    alpha_k = mean over positions of dy_c / dA_k,    L_c = ReLU(sum over k of alpha_k A_k)

with y_c the logit of class c and A_k channel k of the feature map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cbam_deploy.errors import BadInput


@dataclass(frozen=True)
class CamMaps:
    """What `grad_cam` found.

    Attributes:
        layer: path of the module whose output was explained.
        maps: L_c [N, h, w], not negative, in the size of the feature map.
        weights: alpha [N, channels].
        logits: [N, classes].
    """

    layer: str
    maps: Tensor
    weights: Tensor
    logits: Tensor


def grad_cam(
    model: nn.Module, images: Tensor, classes: Tensor, layer: str | None = None
) -> CamMaps:
    """Explain the logits of `classes` by the output of `layer`.

    Args:
        model: a classifier in evaluation mode; its parameters get no gradients.
        images: [N, 3, H, W] of the model's dtype.
        classes: int64 [N], what to explain for each picture.
        layer: path of a module; None for the last convolutional output, that is the last map
            [N, C, h, w] with more than one position that a module gives.

    Raises:
        BadInput: there is no such layer or no such map, the logits do not depend on it, or the
            model is no classifier.
    """
    outputs: dict[str, Tensor] = {}
    wanted = _observed(model, layer)

    def keep(path: str) -> object:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and output[0, 0].numel() > 1:
                outputs.pop(path, None)  # A module that runs twice counts by its last run.
                outputs[path] = output

        return hook

    handles = [module.register_forward_hook(keep(path)) for path, module in wanted.items()]  # type: ignore[arg-type]
    try:
        with torch.enable_grad():
            # A gradient must reach the map even where no parameter before it wants one.
            logits = model(images.detach().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise BadInput("the network is no classifier to logits [N, classes]", "give one that is")
    if not outputs:
        raise BadInput(
            f"{layer or 'no module'} gives no feature map of more than one position",
            "give larger pictures, or the layer to explain",
        )
    path, features = next(reversed(outputs.items()))
    with torch.enable_grad():
        score = logits.gather(1, classes[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, features, allow_unused=True)
    if gradient is None:
        raise BadInput(f"the logits do not depend on the output of {path}", "give another layer")
    weights = gradient.mean((2, 3))
    maps = (weights[:, :, None, None] * features).sum(1).relu()
    return CamMaps(path, maps.detach(), weights.detach(), logits.detach())


def _observed(model: nn.Module, layer: str | None) -> dict[str, nn.Module]:
    """The module named, or all but the model itself."""
    modules = dict(model.named_modules())
    if layer is not None:
        if layer not in modules:
            raise BadInput(f"the network has no module {layer!r}", "see 'complexity --by-module'")
        return {layer: modules[layer]}
    return {path: module for path, module in modules.items() if path}
