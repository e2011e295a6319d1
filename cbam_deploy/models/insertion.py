"""Put attention gates into any convolutional network, without a change to its code or its weights.

"It can be integrated into any CNN architectures seamlessly" (Woo et al., ECCV 2018, abstract). A
gate becomes a submodule `gate` of the module whose output it refines, and a forward hook applies
it. So no module changes its name, and every state_dict of the network without gates still fits
(`load_state_dict(..., strict=False)` then misses the gates' own weights only).

    before    y = norm(x)              after    y = norm.gate(norm(x))
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from cbam_deploy.errors import BadInput
from cbam_deploy.models.gate import AttentionGate
from cbam_deploy.models.spec import CBAM, GateSpec

NAME = "gate"
BLOCKS, STAGES = "blocks", "stages"

_EXAMPLE_SHAPE = (2, 3, 224, 224)
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm, nn.InstanceNorm2d)
_ADDITIONS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


@dataclass(frozen=True)
class _Call:
    """One run of a module: its name and the sizes of its output, empty where that is no map."""

    name: str
    size: tuple[int, ...]


def insert_gates(
    model: nn.Module,
    spec: GateSpec = CBAM,
    where: str | Sequence[str] = BLOCKS,
    *,
    example: Tensor | Sequence[Tensor] | None = None,
    seed: int | None = None,
) -> tuple[str, ...]:
    """Put a gate behind modules of `model`, in place; the gates need to be trained.

    Args:
        model: a network that works on maps [N, C, H, W].
        spec: the variant of the gate.
        where: names of modules, as in `model.named_modules()`; ``blocks``, the last normalization
            of each residual block; or ``stages``, the last module of each size of the map. Behind
            an `nn.Sequential` means behind its last module.
        example: inputs that the model takes; by default two pictures of 224 pixels.
        seed: of the gates' initial weights; None draws them from torch's current state.

    Returns:
        The names of the gates, in the order in which the modules run.

    Raises:
        BadInput: a name is unknown, its module does not run exactly once or gives no map, it has a
            gate already, or no residual block or stage is found.
    """
    if example is None:
        example = torch.zeros(_EXAMPLE_SHAPE)
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    calls = _run(model, inputs)
    if where == BLOCKS:
        names = _blocks(model, inputs)
    elif where == STAGES:
        names = _stages(model, calls)
    elif isinstance(where, str):
        raise BadInput(f"where {where!r}", f"give {BLOCKS}, {STAGES} or a list of module names")
    else:
        names = [_last_of_sequence(model, name) for name in where]
    if not names:
        raise BadInput(f"the network has no {where} that are recognised", "give names of modules")
    channels = {name: _channels(model, name, calls) for name in names}
    order = [call.name for call in calls]
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return tuple(
            _insert(model, name, AttentionGate(channels[name], spec))
            for name in sorted(channels, key=order.index)
        )


def _insert(model: nn.Module, name: str, gate: AttentionGate) -> str:
    module = model.get_submodule(name)
    tensor = next((p for p in (*module.parameters(), *model.parameters())), torch.empty(0))
    module.add_module(NAME, gate.to(tensor.device, tensor.dtype).train(module.training))
    module.register_forward_hook(_apply_gate)
    return f"{name}.{NAME}"


def _apply_gate(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """The forward hook; at module level, so that a network with gates can be copied and pickled."""
    refined: Tensor = module.get_submodule(NAME)(output)
    return refined


def _channels(model: nn.Module, name: str, calls: Sequence[_Call]) -> int:
    """C of the map that module `name` makes in its only run."""
    if hasattr(model.get_submodule(name), NAME):
        raise BadInput(f"module {name} has a gate already", "leave it out")
    runs = [call for call in calls if call.name == name]
    if len(runs) != 1:
        raise BadInput(
            f"module {name} runs {len(runs)} times", "name a module that runs once per picture"
        )
    if not runs[0].size:
        raise BadInput(f"module {name} gives no map [N, C, H, W]", "name a module that does")
    return runs[0].size[1]


def _last_of_sequence(model: nn.Module, name: str) -> str:
    """`name`, or its last module's: a child of a Sequential would run as one of the sequence."""
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise BadInput(
            f"the network has no module {name!r}", "see the names in model.named_modules()"
        ) from error
    while isinstance(module, nn.Sequential) and len(module):
        last, module = list(module.named_children())[-1]
        name = f"{name}.{last}" if name else last
    return name


def _run(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[_Call]:
    """Run the model once; the calls of its modules, in the order in which they end."""
    calls: list[_Call] = []

    def note(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            calls.append(_Call(name, _map_size(output)))

        return model.get_submodule(name).register_forward_hook(hook)

    handles = [note(name) for name, _ in model.named_modules() if name]
    training = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(*inputs)
    except Exception as error:  # The user's code may fail in any way.
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"the network fails on the example ({reason})", "give another") from error
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    return calls


def _map_size(output: object) -> tuple[int, ...]:
    return tuple(output.shape) if isinstance(output, Tensor) and output.ndim == 4 else ()


def _stages(model: nn.Module, calls: Sequence[_Call]) -> list[str]:
    """The last module of each series of maps of one size that has weights.

    Maps of one position are pooled ones, not a stage.
    """
    maps = [call for call in calls if call.size]
    names = []
    for size, series in itertools.groupby(maps, lambda call: call.size[2:]):
        stage = [call.name for call in series]
        own = (model.get_submodule(name).parameters(recurse=False) for name in stage)
        if size != (1, 1) and any(True for parameters in own for _ in parameters):
            names.append(_last_of_sequence(model, stage[-1]))
    return list(dict.fromkeys(names))


def _blocks(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[str]:
    """The normalizations whose output is added to a shortcut."""
    training = {module: module.training for module in model.modules()}
    try:
        graph = torch.export.export(model.eval(), inputs).graph
    except Exception as error:  # Whatever is in the module may fail, in any way.
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            f"torch cannot trace the network, so its blocks are unknown ({reason})",
            "give names of modules",
        ) from error
    finally:
        for module, mode in training.items():
            module.training = mode
    names = []
    for node in graph.nodes:
        if node.target in _ADDITIONS and all(isinstance(a, fx.Node) for a in node.args[:2]):
            stack = (_longer_branch(*node.args[:2]).meta.get("nn_module_stack") or {}).values()
            name = next((name for name, _ in reversed(list(stack))), "")
            if name and isinstance(model.get_submodule(name), _NORMS):
                names.append(name)
    return list(dict.fromkeys(names))


def _longer_branch(one: fx.Node, other: fx.Node) -> fx.Node:
    """Which of two summands is farther from where they part: the block, not its shortcut."""
    of_one, of_other = _distances(one), _distances(other)
    common = of_one.keys() & of_other.keys()
    parting = min(common, key=lambda node: of_one[node] + of_other[node], default=None)
    if parting is None:
        return one
    return one if of_one[parting] >= of_other[parting] else other


def _distances(node: fx.Node) -> dict[fx.Node, int]:
    """How many steps before `node` each node is that it is computed from."""
    distances = {node: 0}
    ahead = deque([node])
    while ahead:
        behind = ahead.popleft()
        for source in behind.all_input_nodes:
            if source not in distances:
                distances[source] = distances[behind] + 1
                ahead.append(source)
    return distances
