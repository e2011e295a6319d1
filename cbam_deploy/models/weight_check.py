"""What may be loaded into what, and whether a network's tensors are weights at all.

A parameter or buffer of floating-point numbers takes FP16, BF16, FP32 and FP64; one of integers
takes integers, and one of booleans booleans, that it can hold exactly; any other takes its own type
alone. Codes of a quantization (integers, FP8) without their scales are no weights. BatchNorm's
``num_batches_tracked``, which inference never uses and which averaging tools leave as fractions,
takes any real number.

Parameters, and BatchNorm's statistics, must be finite, variances not negative; other buffers may be
infinite, as attention masks are, but not NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cbam_deploy.errors import BadInput
from cbam_deploy.numerics.finiteness import Demand, fault

COUNTER = "num_batches_tracked"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_STATISTICS = ("running_mean", "running_var")


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of `model` without what is no tensor (a module's extra state).

    Raises:
        BadInput: the module cannot give its state dict.
    """
    from cbam_deploy.foreign_code import foreign_code

    with foreign_code(f"{type(model).__name__}: its state_dict()"):
        state = model.state_dict()
        return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def storage_fault(tensor: Tensor) -> str | None:
    """Why a tensor has no plain values to read, such as ``is sparse``; None where it has."""
    if nn.parameter.is_lazy(tensor):
        return "is lazy, without a shape yet"
    if tensor.is_meta:
        return "has no values (it is on the meta device)"
    if tensor.is_quantized:
        return f"is quantized ({_name(tensor.dtype)})"
    if tensor.is_nested:
        return "is a nested tensor"
    if tensor.layout is not torch.strided:
        return f"is sparse ({_name(tensor.layout)})"
    return None


def check_stored(state_dict: Mapping[str, Tensor], where: str) -> None:
    """Raise `BadInput` for a tensor that has no plain values; `where` is the file and entry."""
    faults = {name: fault for name, t in state_dict.items() if (fault := storage_fault(t))}
    if faults:
        raise _refused(where, faults, "save plain values: tensor.to_dense(), tensor.dequantize()")


def check_kinds(own: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str) -> None:
    """Raise `BadInput` where a tensor of `given` may not be loaded into that of `own`.

    Args:
        own: parameters and buffers by name.
        given: what shall be loaded, of equal shapes, with plain values; other names are passed by.
        where: the file and entry, for the message.
    """
    faults = {
        name: text
        for name in sorted(own.keys() & given.keys())
        if (text := _kind_fault(name, own[name], given[name]))
    }
    if faults:
        raise _refused(where, faults, "give the checkpoint of the floating-point network")


def check_values(model: nn.Module, given: Mapping[str, Tensor] | None, where: str) -> None:
    """Raise `BadInput`, naming the tensor, where values are missing, NaN, or not to be used.

    Args:
        model: says which tensors are parameters, and which statistics.
        given: what shall be loaded, judged in the types of `model`; None for what `model` holds.
        where: the file and entry, or the model, for the message.
    """
    faults: dict[str, str] = {}
    for name, own, demand in _demands(model):
        tensor = own if given is None else given.get(name)
        if tensor is None:
            continue
        text = storage_fault(tensor)
        if text is None and (own.is_floating_point() or own.is_complex()):
            text = fault(_array(tensor.detach().to(own.dtype)), demand)
        if text is not None:
            faults[name] = text
    if faults:
        hint = "such a network computes nothing of use: give weights from before they broke"
        if given is None:
            hint = "let the factory give a network whose weights have values"
        raise _refused(where, faults, hint)


def _demands(model: nn.Module) -> Iterator[tuple[str, Tensor, Demand]]:
    """Every parameter and buffer, also those that are not saved, with what it must hold."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield name, parameter, "finite"
    for name, buffer in model.named_buffers(remove_duplicate=False):
        last = name.rpartition(".")[2]
        if last == COUNTER:
            continue
        demand: Demand = "finite" if last in _STATISTICS else "no NaN"
        yield name, buffer, "finite, not negative" if last == "running_var" else demand


def _kind_fault(name: str, own: Tensor, given: Tensor) -> str | None:
    if given.dtype == own.dtype or (own.dtype in _FLOATS and given.dtype in _FLOATS):
        return None
    if name.rpartition(".")[2] == COUNTER and not given.is_complex():
        return None
    if own.is_complex() and given.is_complex():
        return None
    counts = not (own.is_floating_point() or own.is_complex())
    if counts and not (given.is_floating_point() or given.is_complex()):
        if given.dtype == torch.bool:
            return f"has booleans for {_name(own.dtype)}"
        kept = given.to(own.dtype).to(torch.int64)
        exact = torch.equal(kept, given.to(torch.int64))
        return None if exact else f"has {_name(given.dtype)} values that {_name(own.dtype)} lacks"
    numbers = given.dtype in _FLOATS or given.dtype == torch.bool or given.is_complex()
    codes = "" if numbers else " codes, without the scale that makes them numbers,"
    return f"has {_name(given.dtype)}{codes} for {_name(own.dtype)}"


def _array(tensor: Tensor) -> Any:
    """As NumPy, without a copy where NumPy knows the type."""
    tensor = tensor.cpu().resolve_conj().resolve_neg()
    if (
        tensor.is_floating_point() and tensor.dtype not in _FLOATS
    ) or tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return tensor.numpy()


def _refused(where: str, faults: Mapping[str, str], hint: str) -> BadInput:
    (name, text), *others = faults.items()
    more = f", and {len(others)} more tensors like it" if others else ""
    return BadInput(f"{where}: {name} {_with_verb(text)}{more}", hint)


def _with_verb(text: str) -> str:
    return f"is no weight: {text}" if text[0].isdigit() else text


def _name(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")
