"""Count a PyTorch network, by torch's own counter of floating-point operations.

`torch.utils.flop_counter` counts two operations per multiply-add of convolutions, linear layers,
matrix products and scaled-dot-product attention, and nothing for anything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cbam_deploy.costs.result import Part
from cbam_deploy.errors import BadInput
from cbam_deploy.models.gate import AttentionGate

_PER_MULTIPLY_ADD = 2


def count_module(module: nn.Module, inputs: Sequence[Tensor], label: str) -> tuple[Part, ...]:
    """The parts of `module` that have parameters or multiply-adds, counted in one run.

    Args:
        module: in evaluation mode, its gates not fused; meta tensors are enough.
        inputs: of one picture.
        label: what to call it in messages.

    Raises:
        BadInput: it does not run on `inputs`, or has fused gates.
    """
    if any(isinstance(part, AttentionGate) and part.fused for part in module.modules()):
        raise BadInput(f"{label} has fused gates, which cannot be counted", "build it without")
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            module(*inputs)
    except Exception as error:  # The user's code may fail in any way.
        shapes = ", ".join("x".join(map(str, tensor.shape)) for tensor in inputs)
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            f"{label} does not run on {shapes} ({reason})", "give the size it takes: --image-size"
        ) from error
    root = type(module).__name__
    counts = {
        path.removeprefix(root).removeprefix("."): sum(by_operator.values()) // _PER_MULTIPLY_ADD
        for path, by_operator in counter.get_flop_counts().items()
        if path == root or path.startswith(f"{root}.")
    }
    seen: set[int] = set()
    parts = [_part(path, part, counts, seen) for path, part in _parts(module)]
    return tuple(part for part in parts if part.parameters or part.multiply_adds)


def _parts(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every module by its path, a gate without what is inside it."""
    yield path, module
    if isinstance(module, AttentionGate):
        return
    for name, child in module.named_children():
        yield from _parts(child, f"{path}.{name}" if path else name)


def _part(path: str, module: nn.Module, counts: dict[str, int], seen: set[int]) -> Part:
    """What is the module's own; parameters that two modules share are the first one's."""
    gate = isinstance(module, AttentionGate)
    own = [p for p in module.parameters(recurse=gate) if id(p) not in seen]
    seen.update(map(id, own))
    inside = 0
    if not gate:
        children = (f"{path}.{name}" if path else name for name, _ in module.named_children())
        inside = sum(counts.get(child, 0) for child in children)
    return Part(
        name=path or type(module).__name__,
        kind=type(module).__name__,
        parameters=sum(parameter.numel() for parameter in own),
        multiply_adds=counts.get(path, 0) - inside,
        gate=gate,
    )
