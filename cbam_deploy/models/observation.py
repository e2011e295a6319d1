"""What a network's modules do when it runs: who calls whom, and what each of them returns.

Found by running the network once in evaluation mode, with hooks that are gone afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cbam_deploy.errors import BadInput, in_one_line
from cbam_deploy.foreign_code import exits_as_errors

Size = tuple[int, int]


@dataclass(eq=False)
class Call:
    """One call of a module.

    Attributes:
        path: the module's name in the network, empty for the network itself.
        module: it.
        takes: height and width of its first argument, where that is a map [N, C, H, W].
        result: what it returned.
        children: the calls made within it, in order.
    """

    path: str
    module: nn.Module
    takes: Size | None
    result: Any = None
    children: list[Call] = field(default_factory=list)

    @property
    def size(self) -> Size | None:
        """Height and width of what it returned, where that is a map [N, C, H, W]."""
        return _size(self.result)

    def walk(self) -> Iterator[Call]:
        """This call and all within it, in the order in which they begin."""
        yield self
        for child in self.children:
            yield from child.walk()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` into evaluation mode without gradients; give every module its mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def observe(model: nn.Module, example: Sequence[Tensor]) -> Call:
    """Run `model` once on `example`; return the call of the network itself.

    Raises:
        BadInput: the network does not take the example.
    """
    stack: list[Call] = []
    finished: list[Call] = []

    def enter(path: str, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        call = Call(path, module, _size(arguments[0]) if arguments else None)
        if stack:
            stack[-1].children.append(call)
        stack.append(call)

    def leave(result: Any) -> None:
        call = stack.pop()
        call.result = result
        finished.append(call)

    hooks: list[torch.utils.hooks.RemovableHandle] = []
    for path, module in model.named_modules():
        hooks.append(
            module.register_forward_pre_hook(
                lambda module, arguments, path=path: enter(path, module, arguments)
            )
        )
        hooks.append(module.register_forward_hook(lambda _module, _args, result: leave(result)))
    try:
        with evaluating(model), exits_as_errors():
            model(*example)
    except Exception as error:  # The user's code may fail in any way.
        shapes = ", ".join(str(list(tensor.shape)) for tensor in example)
        reason = in_one_line(error, 200)
        raise BadInput(
            f"{type(model).__name__}: does not run on an example of {shapes} ({reason})",
            "give an example input of the shape that the network takes",
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return finished[-1]


def returned(call: Call) -> list[Tensor]:
    """The tensors that a call returned, in any container."""
    return [leaf for leaf in tree_leaves(call.result) if isinstance(leaf, Tensor)]


def _size(value: Any) -> Size | None:
    if isinstance(value, Tensor) and value.ndim == 4:
        return value.shape[2], value.shape[3]
    return None
