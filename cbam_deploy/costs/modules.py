"""Count a PyTorch network, by torch's own counter of floating-point operations.

`torch.utils.flop_counter` counts two operations per multiply-add of convolutions, linear layers,
matrix products and scaled-dot-product attention, and nothing for anything else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cbam_deploy.costs.result import Part
from cbam_deploy.errors import BadInput
from cbam_deploy.foreign_code import foreign_code
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
    if any(isinstance(part, AttentionGate) and part.operators for part in module.modules()):
        raise BadInput(f"{label} has fused gates, which cannot be counted", "build it without")
    shapes = ", ".join("x".join(map(str, tensor.shape)) for tensor in inputs)
    with foreign_code(f"{label}: running it on {shapes}", "give the size it takes: --image-size"):
        products = _products(module, inputs)
    seen: set[int] = set()
    parts = [_part(path, part, products, seen) for path, part in _parts(module)]
    return tuple(part for part in parts if part.parameters or part.multiply_adds)


def _products(module: nn.Module, inputs: Sequence[Tensor]) -> Counter[int]:
    """Multiply-adds by the id of the module that makes them itself, not by one it calls.

    Who calls whom is seen as it runs: containers call nothing, and a module may be called by others
    than its parent.
    """
    counter = FlopCounterMode(display=False)
    products: Counter[int] = Counter()
    running = [module]
    counted = 0

    def charge() -> None:
        nonlocal counted
        total = counter.get_total_flops()
        products[id(running[-1])] += (total - counted) // _PER_MULTIPLY_ADD
        counted = total

    def enter(part: nn.Module, _inputs: object) -> None:
        charge()
        running.append(part)

    def leave(_part: nn.Module, _inputs: object, _outputs: object) -> None:
        charge()
        running.pop()

    hooks = []
    for part in module.modules():
        hooks.append(part.register_forward_pre_hook(enter))
        hooks.append(part.register_forward_hook(leave))
    try:
        with torch.no_grad(), counter:
            module(*inputs)
        charge()
    finally:
        for hook in hooks:
            hook.remove()
    return products


def _parts(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every module by its path, a gate without what is inside it."""
    yield path, module
    if isinstance(module, AttentionGate):
        return
    for name, child in module.named_children():
        yield from _parts(child, f"{path}.{name}" if path else name)


def _part(path: str, module: nn.Module, products: Counter[int], seen: set[int]) -> Part:
    """What is the module's own; what two share, modules or parameters, is the first one's."""
    gate = isinstance(module, AttentionGate)
    modules = [m for m in (module.modules() if gate else [module]) if id(m) not in seen]
    own = [p for p in module.parameters(recurse=gate) if id(p) not in seen]
    seen.update(map(id, (*modules, *own)))
    return Part(
        name=path or type(module).__name__,
        kind=type(module).__name__,
        parameters=sum(parameter.numel() for parameter in own),
        multiply_adds=sum(products[id(part)] for part in modules),
        gate=gate,
    )
