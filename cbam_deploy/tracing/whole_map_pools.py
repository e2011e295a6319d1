"""Pools that torch's exporter exports wrongly or not at all, in words that it does export.

The window of ``F.avg_pool2d(x, x.size()[2:])`` is the whole map, whatever its size. Where height
and width are free, torch.export makes of it the number that the size happens to be in the example,
and the file pools rightly at that size alone. ``F.adaptive_max_pool3d`` has no ONNX counterpart.
While a module is traced in `WholeMapPools`, both are reductions over axes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.overrides import TorchFunctionMode

from cbam_deploy.errors import BadInput

_POOL = re.compile(r"(avg|max|lp)_pool([123])d(_with_indices)?")
_ADAPTIVE = re.compile(r"adaptive_(max)_pool(3)d(_with_indices)?")
# First arguments of pools, in order.
_WINDOW = ("input", "kernel_size", "stride", "padding")
_LP_WINDOW = ("input", "norm_type", "kernel_size")
_OUTPUT = ("input", "output_size")


class WholeMapPools(TorchFunctionMode):
    """Write pools of whole maps as reductions.

    Attributes:
        fault: why the module cannot be exported, where the window of a pool is the reason.
    """

    def __init__(self, label: str) -> None:
        super().__init__()
        self.fault: BadInput | None = None
        self._label = label

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        adaptive = _ADAPTIVE.fullmatch(name)
        found = adaptive or _POOL.fullmatch(name)
        if found is None:
            return func(*args, **kwargs)
        names = _OUTPUT if adaptive else _LP_WINDOW if found[1] == "lp" else _WINDOW
        given = dict(zip(names, args, strict=False)) | kwargs
        axes = int(found[2])
        if adaptive:
            whole = all(size == 1 for size in _per_axis(given["output_size"], axes))
        else:
            whole = self._is_whole(name, given, axes)
        if not whole:
            return func(*args, **kwargs)
        x, over = given["input"], tuple(range(-axes, 0))
        if found[3]:
            return tuple(part[(..., *[None] * axes)] for part in x.flatten(-axes).max(-1))
        if found[1] == "lp":
            norm = given["norm_type"]
            return x.pow(norm).sum(over, keepdim=True).pow(1 / norm)
        return (x.mean if found[1] == "avg" else x.amax)(over, keepdim=True)

    def _is_whole(self, name: str, given: dict[str, Any], axes: int) -> bool:
        """Whether a window that follows from a free size is the whole map; False for other windows.

        Raises:
            BadInput: it follows from a free size and is something else.
        """
        window = _per_axis(given["kernel_size"], axes)
        if not any(isinstance(size, torch.SymInt) for size in window):
            return False
        sides = given["input"].shape[-axes:]
        same = all(statically_known_true(a == b) for a, b in zip(window, sides, strict=True))
        if same and not any(_per_axis(given.get("padding", 0), axes)):
            return True
        self.fault = BadInput(
            f"{self._label}: {name} has a window that follows from a free height or width and is "
            "not the whole map; ONNX has windows of fixed sizes only",
            "fix height and width with --input, or use an adaptive pool",
        )
        raise self.fault


def _per_axis(value: Any, axes: int) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return values * axes if len(values) == 1 else values
