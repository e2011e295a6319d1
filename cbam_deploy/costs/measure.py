"""`complexity`: what a network costs, from its PyTorch modules or from its ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cbam_deploy.costs.result import Complexity
from cbam_deploy.errors import BadInput
from cbam_deploy.library_errors import said_of_the_file
from cbam_deploy.numerics.sizes import free_axes, typical_sizes
from cbam_deploy.provenance import ModelIdentity

if TYPE_CHECKING:
    from torch import nn

    from cbam_deploy.gates.description import GateSpec


def complexity(
    model: str | Path | nn.Module,
    *,
    attention: str | None = None,
    gate: GateSpec | None = None,
    stem: str | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    sizes: Sequence[str] = (),
    weights: str | Path | None = None,
    by_module: bool = False,
) -> Complexity:
    """Parameters and multiply-adds for one picture, in all and by module.

    Convolutions and linear layers are counted, one multiply-add per product, also those of gates.
    Pooling, normalization, activations, elementwise products and sums are not (`Complexity`).

    Args:
        model: MODEL as in the command line, a file ``*.onnx``, or a module. A module is counted as
            it is and must not have fused gates.
        attention: ``cbam``, ``se`` or ``none``. This and the next four are as for `export_onnx`.
        gate: another variant of the gate.
        stem: ``imagenet`` or ``cifar``.
        num_classes: outputs of the classifier.
        image_size: side of the picture in pixels; for an ONNX file that of sides it leaves free,
            by default those that it records as typical.
        sizes: of free axes of an ONNX file, such as ``H=640``.
        weights: a checkpoint whose metadata say what the model is.
        by_module: whether printing the result shows the parts; they are in it anyway.

    Raises:
        BadInput: the model is unknown, cannot be built, run or read, or an option does not fit.
    """
    if image_size is not None and image_size < 1:
        raise BadInput(f"image size {image_size}", "give a positive number of pixels")
    label = str(model) if isinstance(model, str | Path) else type(model).__name__
    checkpoint = None if weights is None else str(weights)
    asked = ModelIdentity(label, attention, gate, num_classes, stem, weights=checkpoint)
    is_file = isinstance(model, str | Path) and label.endswith(".onnx")
    if sizes and not is_file:
        raise BadInput(f"{label}: has no free axes by name", "give its size as --image-size")
    if isinstance(model, str | Path) and not is_file:
        return replace(_of_name(asked, image_size), by_module=by_module)
    asked.refuse_options(label, "leave it out")
    if isinstance(model, str | Path):
        result = _of_file(Path(model), image_size, sizes)
    else:
        result = _of_module(model, label, image_size or 224)
    return replace(result, by_module=by_module)


@said_of_the_file
def _of_file(path: Path, image_size: int | None, sizes: Sequence[str]) -> Complexity:
    from cbam_deploy.artefacts import open_onnx
    from cbam_deploy.costs.graphs import count_graph

    opened = open_onnx(path, to_run=False)
    said = typical_sizes(sizes, free_axes(opened.inputs), str(path))
    inputs, parts, uncounted = count_graph(opened.model, str(path), image_size, said, opened.sizes)
    return Complexity(str(path), "onnx", inputs, parts, uncounted)


def _of_name(asked: ModelIdentity, image_size: int | None) -> Complexity:
    from cbam_deploy.models import resolve_identity, resolve_preprocessing

    identity, provenance = resolve_identity(asked)
    size = resolve_preprocessing(identity, provenance, image_size=image_size).image_size
    attention = f" + {identity.attention}" if identity.attention not in (None, "none") else ""
    return _of_module(_build(identity), asked.name + attention, size)


def _build(identity: ModelIdentity) -> nn.Module:
    """The model in evaluation mode; one of the zoo without memory for its weights."""
    import torch

    from cbam_deploy.models import build_model
    from cbam_deploy.models.factory import is_factory

    # A factory may do what meta tensors cannot.
    with torch.device("cpu" if is_factory(identity.name) else "meta"):
        return build_model(identity).eval()


def _of_module(module: nn.Module, label: str, image_size: int) -> Complexity:
    import torch

    from cbam_deploy.costs.modules import count_module

    tensor = next(module.parameters(), torch.empty(0))
    shape = (1, 3, image_size, image_size)
    picture = torch.zeros(shape, device=tensor.device, dtype=tensor.dtype)
    parts = count_module(module, [picture], label)
    return Complexity(label, "pytorch", (shape,), parts, {})
