"""Where in a network gates belong that nobody placed: after residual blocks, or after stages.

A residual block is found by what it computes, in torch's exported program::

              ┌── conv ─ norm ─ relu ─ conv ─ norm ──┐        the branch: its last module
        x ────┤                                      add      is a place for a gate
              └────────── (conv ─ norm) ─────────────┘        the shortcut: one convolution at most

A stage is found by how the network runs: the modules that it calls one after the other, as long as
height and width stay the same, with two or more convolutions among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, fx, nn

from cbam_deploy.errors import BadInput, in_one_line
from cbam_deploy.models.observation import Call, Size, evaluating, returned

_NORMS = ("batch_norm", "group_norm", "instance_norm", "layer_norm")
_CONVS = ("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose2d")
_ADDS = ("add", "add_")
# What evaluation mode makes the identity.
_TRANSPARENT = ("dropout", "dropout_", "feature_dropout", "alias", "clone", "contiguous")
_NAME_THEM = "name the modules to put gates after: where=['encoder.conv3', ...]"


def after_blocks(model: nn.Module, example: Sequence[Tensor]) -> list[str]:
    """Paths of the last module on the branch of each residual block: a normalization, mostly.

    Where a block normalizes before it convolves, that is its last convolution.

    Raises:
        BadInput: torch cannot export the network, or it has no residual block.
    """
    try:
        with evaluating(model):
            program = torch.export.export(model, tuple(example), strict=False)
    except Exception as error:  # Whatever is in the network may fail, in any way.
        reason = in_one_line(error, 200)
        raise BadInput(
            f"{type(model).__name__}: torch cannot export it to find residual blocks ({reason})",
            _NAME_THEM,
        ) from error
    inputs = set(program.graph_signature.user_inputs)
    graph = _Graph(program.graph, inputs)
    paths = [graph.branch_end(node) for node in graph.nodes if _operator(node) in _ADDS]
    leaves = {path for path, module in model.named_modules() if not list(module.children())}
    found = list(dict.fromkeys(path for path in paths if path is not None and path in leaves))
    if not found:
        raise BadInput(f"{type(model).__name__}: no residual block was found", _NAME_THEM)
    return found


def after_stages(network: Call) -> list[str]:
    """Paths of the last module of each stage; modules that return the network's result are none.

    Args:
        network: the network's call, as `observation.observe` gives it.

    Raises:
        BadInput: the network has no stage.
    """
    calls = [call.module for call in network.walk()]
    outputs = returned(network)
    units = [call for call in _units(network) if call.size is not None]
    found = []
    for size, run in groupby(units, key=lambda call: call.size):
        stage = [
            call
            for call in run
            if calls.count(call.module) == 1
            and not any(call.result is output for output in outputs)
        ]
        if size != (1, 1) and sum(map(_convolutions, stage)) > 1:
            found.append(stage[-1].path)
    if not found:
        raise BadInput(f"{type(network.module).__name__}: no stage was found", _NAME_THEM)
    return found


def _units(call: Call) -> list[Call]:
    """What is called within, down to the modules that know no more than two sizes."""
    units = []
    for child in call.children:
        units += _units(child) if len(_sizes(child)) > 2 else [child]
    return units


def _sizes(call: Call) -> set[Size]:
    """Sizes of the maps that pass between the modules within; pooled vectors are none."""
    passed = (call.takes, call.size, *(child.size for child in call.children))
    return {size for size in passed if size is not None and size != (1, 1)}


def _convolutions(call: Call) -> int:
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    return sum(isinstance(inner.module, kinds) for inner in call.walk())


class _Graph:
    """The data flow of an exported program, parameters left out."""

    def __init__(self, graph: fx.Graph, inputs: set[str]) -> None:
        self.nodes = [n for n in graph.nodes if n.op == "call_function" or n.name in inputs]
        self._order = {node: position for position, node in enumerate(self.nodes)}
        self._before: dict[fx.Node, set[fx.Node]] = {}
        for node in self.nodes:
            self._before[node] = {node}.union(
                *(self._before[source] for source in self._sources(node))
            )

    def branch_end(self, add: fx.Node) -> str | None:
        """Path of the module that ends the branch of a block; None where `add` is in no block."""
        sources = self._sources(add)
        if len(sources) != 2:
            return None
        first, second = sources
        common = self._before[first] & self._before[second]
        if not common:
            return None
        start = max(common, key=self._order.__getitem__)
        branch, shortcut = sorted(
            sources, key=lambda end: self._convolutions(start, end), reverse=True
        )
        if self._convolutions(start, shortcut) > 1:
            return None
        if self._convolutions(start, branch) <= self._convolutions(start, shortcut):
            return None
        while _operator(branch) in _TRANSPARENT:
            branch = self._sources(branch)[0]
        if _operator(branch) not in (*_NORMS, *_CONVS):
            return None
        stack = branch.meta.get("nn_module_stack") or {}
        return next(reversed([path for path, _ in stack.values()]), None)

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        return [source for source in node.all_input_nodes if source in self._order]

    def _convolutions(self, start: fx.Node, end: fx.Node) -> int:
        """The most convolutions on a way from `start`, which does not count, to `end`."""
        most = {start: 0}
        between = (node for node in self._before[end] if start in self._before[node])
        for node in sorted(between, key=self._order.__getitem__):
            if node is not start:
                ways = [most[source] for source in self._sources(node) if source in most]
                most[node] = max(ways) + (_operator(node) in _CONVS)
        return most[end]


def _operator(node: fx.Node) -> str:
    """The name of the ATen operator, without its overload."""
    packet = getattr(node.target, "overloadpacket", None)
    return packet.__name__ if packet is not None else ""
