"""Grad-CAM: which positions of the last feature map speak for a class.

Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", ICCV 2017 (https://arxiv.org/abs/1610.02391), equations 1 and 2:

    alpha_k = mean over positions of dy_c / dA_k,    L_c = ReLU(sum over k of alpha_k A_k)

with y_c the logit of class c and A_k channel k of the feature map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cbam_deploy.errors import BadInput
from cbam_deploy.foreign_code import foreign_code


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
    model: nn.Module,
    images: Tensor,
    classes: Tensor,
    layer: str | None = None,
    width: int | None = None,
) -> CamMaps:
    """Explain the logits of `classes` by the output of `layer`.

    Args:
        model: a classifier in evaluation mode; its parameters get no gradients.
        images: [N, 3, H, W] of the model's dtype.
        classes: int64 [N], what to explain for each picture.
        layer: path of a module; None for the last convolutional output, that is the last map
            [N, C, h, w] with more than one position that a module gives.
        width: number of classes where it is known (`logits_of`).

    Raises:
        BadInput: there is no such layer or no such map, the logits do not depend on it, or the
            model fails, or is no classifier.
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
            logits = logits_of(model, images.detach().requires_grad_().clone(), width)
    finally:
        for handle in handles:
            handle.remove()
    if not outputs:
        raise BadInput(
            f"{layer or 'no module'} gives no feature map of more than one position",
            "give larger pictures, or the layer to explain",
        )
    path, features = next(reversed(outputs.items()))
    with torch.enable_grad():
        score = logits.gather(1, classes[:, None]).sum()
    gradient = None
    if score.requires_grad and features.requires_grad:
        with foreign_code("the gradient of the logits"):
            (gradient,) = torch.autograd.grad(score, features, allow_unused=True)
    if gradient is None:
        raise BadInput(f"the logits do not depend on the output of {path}", "give another layer")
    weights = gradient.mean((2, 3))
    maps = (weights[:, :, None, None] * features).sum(1).relu()
    return CamMaps(path, maps.detach(), weights.detach(), logits.detach())


def logits_of(model: nn.Module, images: Tensor, width: int | None = None) -> Tensor:
    """The logits [N, classes] of a classifier.

    Of several outputs they are the one named ``logits``, else the first [N, `width`], else the
    first that is [N, any number].

    Args:
        model: in evaluation mode.
        images: [N, 3, H, W] of the model's dtype.
        width: number of classes, where it is known.

    Raises:
        BadInput: the model fails, or gives nothing of that shape.
    """
    with foreign_code(f"{type(model).__name__}: running it on {list(images.shape)}"):
        result = model(images)
        leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        named: object = result.get("logits") if isinstance(result, Mapping) else None
        named = getattr(result, "logits", named)
    found = [leaf for leaf in (named, *leaves) if _is_logits(leaf)]
    if not found:
        shapes = ", ".join(str(list(leaf.shape)) for leaf in leaves) or type(result).__name__
        raise BadInput(
            f"the network is no classifier to logits [N, classes]: it returns {shapes}",
            "give one that is",
        )
    first = found[0]
    return first if first is named else next((x for x in found if x.shape[1] == width), first)


def _is_logits(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.ndim == 2 and value.is_floating_point()


def _observed(model: nn.Module, layer: str | None) -> dict[str, nn.Module]:
    """The module named, or all but the model itself."""
    modules = dict(model.named_modules())
    if layer is not None:
        if layer not in modules:
            raise BadInput(f"the network has no module {layer!r}", "see 'complexity --by-module'")
        return {layer: modules[layer]}
    return {path: module for path, module in modules.items() if path}
