"""Build a model of the user's own: ``package.module:factory`` or ``path/file.py:factory``."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel

from cbam_deploy.errors import BadInput
from cbam_deploy.foreign_code import foreign_code, importable, named_object

_FORM = "give package.module:factory or path/file.py:factory, a callable that returns an nn.Module"


def is_factory(name: str) -> bool:
    """Whether MODEL `name` means a factory, not a network of the zoo."""
    return ":" in name


def call_factory(name: str) -> nn.Module:
    """Import what `name` points to and call it without arguments.

    The file's folder, or the current one for a dotted module name, is importable meanwhile.

    Raises:
        BadInput: nothing is there, it fails, or what it returns is no nn.Module.
    """
    with importable(name):
        factory = named_object(name, "model", _FORM)
        with foreign_code(f"{name}: the factory"):
            model = factory()
    if not isinstance(model, nn.Module):
        raise BadInput(f"{name} returned a {type(model).__name__}, not an nn.Module", _FORM)
    if "_modules" not in vars(model):
        raise BadInput(
            f"{name} returned a {type(model).__name__} that was never initialized",
            "call super().__init__() in its __init__",
        )
    return unwrapped(model)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network within DataParallel, an average of weights or torch.compile."""
    while True:
        # torch.compile's class is told by its name: importing it takes seconds.
        compiled = type(model).__name__ == "OptimizedModule"
        if not (compiled or isinstance(model, nn.DataParallel | AveragedModel)):
            return model
        model = model.get_submodule("_orig_mod" if compiled else "module")
