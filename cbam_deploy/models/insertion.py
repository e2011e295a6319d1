"""Put attention gates into a CNN that was written without them.

"CBAM can be integrated into any CNN architectures seamlessly" (Woo et al., section 1): a gate
refines the map that some module returns, and nothing else of the network has to know.

How a gate gets behind a module M, such that everything that handles networks goes on working:

- M gets a subclass of its own class, whose `forward` passes M's result through a child module
  ``attention_gate``. M stays the same object under the same name: the names of its parameters stay,
  `isinstance` holds, and its parent may go on reading its attributes. It is ordinary Python for
  `torch.export` and `torch.compile`; `copy.deepcopy` and `pickle` rebuild the subclass.
- An `nn.Sequential` gets the gate as its last child: it would run one more child anyway.

Not chosen: an `nn.Sequential` or another wrapper in M's place renames M's parameters, or has to
rename them back on each way in and out, and hides M's attributes; a forward hook is skipped where a
network calls `forward` itself, and is lost or refused by some tools.

Tools that put another module in M's place (`nn.SyncBatchNorm.convert_sync_batchnorm`) belong before
the gates.
"""

from __future__ import annotations

import copyreg
import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cbam_deploy.errors import BadInput
from cbam_deploy.gates.description import CBAM, GateSpec
from cbam_deploy.models.gate import AttentionGate
from cbam_deploy.models.initialization import initialize
from cbam_deploy.models.insertion_points import after_blocks, after_stages
from cbam_deploy.models.observation import Call, observe
from cbam_deploy.report.content import Section, Table
from cbam_deploy.report.result import Result

GATE = "attention_gate"
_EXAMPLE = (1, 3, 224, 224)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class GatePlace:
    """Where one gate is.

    Attributes:
        module: path of the module whose result it refines.
        gate: its own path, which the names of its parameters begin with.
        channels: of the map.
    """

    module: str
    gate: str
    channels: int


@dataclass(frozen=True)
class InsertedGates(Result):
    """What `insert_gates` did.

    Attributes:
        spec: the variant of all gates.
        places: where they are, in the order in which `where` names or finds them.
    """

    spec: GateSpec
    places: tuple[GatePlace, ...]

    def sections(self) -> tuple[Section, ...]:
        """Where they are."""
        rows = tuple((place.module, place.gate, str(place.channels)) for place in self.places)
        table = Table(("after", "gate", "channels"), rows, text_columns=2)
        return (Section(f"{len(self.places)} gates inserted", tables=(table,)),)


def insert_gates(
    model: nn.Module,
    spec: GateSpec = CBAM,
    where: Literal["blocks", "stages"] | Sequence[str] = "blocks",
    *,
    example: Tensor | Sequence[Tensor] | None = None,
    seed: int = 0,
) -> InsertedGates:
    """Put attention gates into `model`, in place.

    The names of its parameters and buffers, their values and the modes of its modules stay as they
    are, so that checkpoints from before fit (``load_state_dict(..., strict=False)``; the gates'
    names are new). New gates halve maps and more: the network is to be trained with them.

    Args:
        model: any CNN, on any device, in any mode.
        spec: the variant of the gates.
        where: paths of modules that return maps [N, C, H, W]; or ``blocks``: after the last
            normalization of each residual block; or ``stages``: after the last module before
            height and width change. `insertion_points` says how these are found.
        example: inputs that the network takes, to find the channels by running it once; by default
            one picture [1, 3, 224, 224]. Its values do not matter.
        seed: of the gates' initial weights; torch's generator stays as it was.

    Raises:
        BadInput: a module is not there, is not called, has a gate, or does not return one map of
            always as many channels; nothing was found to put gates after; or the network does not
            run on `example`, or not with gates there. The network is then as it was.
    """
    inputs = _example(model, example)
    before = observe(model, inputs)
    if where == "blocks":
        paths: Sequence[str] = after_blocks(model, inputs)
    elif where == "stages":
        paths = after_stages(before)
    elif isinstance(where, str):
        raise BadInput(f"where={where!r} is unknown", "give blocks, stages or a list of modules")
    else:
        paths = tuple(dict.fromkeys(where))
    maps = [_map(model, path, before) for path in paths]
    modules = [model.get_submodule(path) for path in paths]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module, tensor in zip(modules, maps, strict=True):
            _attach(module, _new_gate(tensor, spec, module.training))
    try:
        _check_calls(modules, before, observe(model, inputs))
    except BadInput:
        for module in modules:
            _detach(module)
        raise
    return InsertedGates(
        spec,
        tuple(
            GatePlace(path, f"{path}.{GATE}", tensor.shape[1])
            for path, tensor in zip(paths, maps, strict=True)
        ),
    )


class Gated(nn.Module):
    """What the subclasses of gated modules have in common.

    Attributes:
        plain: the module's class without gate.
    """

    plain: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As any object, but for the class, which no import finds: that is made again."""
        reduced = super().__reduce_ex__(protocol)
        if reduced[0] is copyreg.__newobj__:  # type: ignore[attr-defined]
            return (_empty, (self.plain,), *reduced[2:])
        return reduced


@functools.cache
def _gated_class(plain: Any) -> Any:
    """The subclass of the class `plain` whose result passes through a gate."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.attention_gate(plain.forward(self, *args, **kwargs))

    body = {"plain": plain, "forward": forward, "__doc__": plain.__doc__, "__module__": __name__}
    return type(f"Gated{plain.__name__}", (Gated, plain), body)


def _empty(plain: Any) -> Any:
    gated = _gated_class(plain)
    return gated.__new__(gated)


def _example(model: nn.Module, given: Tensor | Sequence[Tensor] | None) -> tuple[Tensor, ...]:
    if given is None:
        like = next(model.parameters(), torch.empty(0))
        return (torch.zeros(_EXAMPLE, dtype=like.dtype, device=like.device),)
    return (given,) if isinstance(given, Tensor) else tuple(given)


def _map(model: nn.Module, path: str, network: Call) -> Tensor:
    """The map that the module at `path` returned, which a gate can refine; raises `BadInput`."""
    hint = "name modules as model.named_modules() does, such as layer1.0.bn2"
    try:
        module = model.get_submodule(path)
    except AttributeError as error:
        raise BadInput(f"{type(model).__name__} has no module {path!r}", hint) from error
    if not path:
        raise BadInput("the whole network was named as a module to put a gate after", hint)
    if GATE in module._modules or isinstance(module, AttentionGate):
        raise BadInput(f"module {path}: has a gate already", "name each module once")
    if isinstance(module, torch.jit.ScriptModule):
        raise BadInput(f"module {path}: is TorchScript, which cannot be changed", hint)
    if isinstance(module, _CONTAINERS) and type(module).forward is not nn.Sequential.forward:
        raise BadInput(
            f"module {path}: is a {type(module).__name__} that runs its children in its own way, "
            "and would run a gate among them",
            "name a module within or behind it",
        )
    results = [call.result for call in network.walk() if call.module is module]
    if not results:
        raise BadInput(f"module {path}: the network does not call it on this example", hint)
    for result in results:
        if not isinstance(result, Tensor) or result.ndim != 4:
            what = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise BadInput(
                f"module {path}: returns {what}, where a gate takes a map [N, C, H, W]", hint
            )
    channels = sorted({result.shape[1] for result in results})
    if len(channels) > 1:
        raise BadInput(f"module {path}: is called for maps of {channels} channels", hint)
    first: Tensor = results[0]
    return first


def _new_gate(tensor: Tensor, spec: GateSpec, training: bool) -> AttentionGate:
    """A gate for maps like `tensor`, of its dtype and on its device."""
    gate = AttentionGate(tensor.shape[1], spec)
    initialize(gate)
    return gate.to(tensor.device, tensor.dtype).train(training)


def _attach(module: nn.Module, gate: AttentionGate) -> None:
    if type(module).forward is not nn.Sequential.forward:
        plain: Any = type(module)
        module.__class__ = _gated_class(plain)
    module.add_module(GATE, gate)


def _detach(module: nn.Module) -> None:
    if isinstance(module, Gated):
        module.__class__ = module.plain  # type: ignore[assignment]
    module._modules.pop(GATE, None)


def _check_calls(modules: Sequence[nn.Module], before: Call, after: Call) -> None:
    """Every module, and its gate, has to be called as often as the module was without gates."""
    expected = Counter(call.module for call in before.walk())
    found = Counter(call.module for call in after.walk())
    for module in modules:
        gate = module.get_submodule(GATE)
        if not found[module] == found[gate] == expected[module]:
            path = next(call.path for call in before.walk() if call.module is module)
            raise BadInput(
                f"module {path}: was called {expected[module]} times, its gate {found[gate]} times",
                "name the module around it",
            )
