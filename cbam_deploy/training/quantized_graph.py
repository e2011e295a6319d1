"""The traced graph of a network, with BatchNorm folded and fake quantization where INT8 will be.

Values in our ONNX files bear the names of torch's exported program. So where `placement` puts Q and
DQ in the file, the same names say where to round in the program.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Graph, GraphModule, Node

from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.int8.placement import QuantizedNode, borrowed_scales
from cbam_deploy.training.fake_quantization import ActivationQuantizer, fake_quantize_weight

_aten = torch.ops.aten
_CONVOLUTIONS = (_aten.conv1d, _aten.conv2d, _aten.conv3d)
_NORM = _aten._native_batch_norm_legit_no_training.default


class QuantizedGraph:
    """The program of `network` as a graph to be trained.

    The graph computes with the parameters of `network` themselves. Its BatchNorms are folded into
    the convolutions before them as torch.onnx folds them: a folded weight and bias are written into
    `network`, whose BatchNorm then has statistics and factor that leave its input as it is, and the
    bias. So a network keeps what it computes, and its names, and folding it again at export changes
    no bit.

    Args:
        program: of `network`, on the CPU, in evaluation mode.
        network: is changed as described.

    Raises:
        BadInput: a convolution runs twice with a BatchNorm behind.
    """

    def __init__(self, program: ExportedProgram, network: nn.Module) -> None:
        self._graph = Graph()
        self._attributes: dict[str, Any] = {
            **program.constants,
            **dict(network.named_buffers(remove_duplicate=False)),
            **dict(network.named_parameters(remove_duplicate=False)),
        }
        self._values = self._copied(program)
        for norm in self._graph.find_nodes(op="call_function", target=_NORM):
            self._fold(norm)

    def quantize(
        self, chosen: Iterable[QuantizedNode], scales: Mapping[str, float], inputs: Iterable[str]
    ) -> dict[str, ActivationQuantizer]:
        """Round what the operations `chosen` read and write.

        Args:
            chosen: of the ONNX graph of the same program.
            scales: of its activations at first.
            inputs: names of that graph's inputs, in order.

        Returns:
            What rounds each activation; one that borrows another's scale has none of its own.

        Raises:
            BadInput: one of these tensors is not in the program.
        """
        chosen = tuple(chosen)
        placeholders = self._graph.find_nodes(op="placeholder")
        values = {**self._values, **dict(zip(inputs, placeholders, strict=True))}
        borrowed = borrowed_scales(chosen)
        quantizers = {
            tensor: ActivationQuantizer(scale)
            for tensor, scale in scales.items()
            if tensor not in borrowed
        }
        names = {tensor: f"quantizer_{tensor}" for tensor in quantizers}
        self._attributes |= {names[tensor]: module for tensor, module in quantizers.items()}
        for tensor in scales:
            name = names[borrowed.get(tensor, tensor)]
            self._round(_known(values, tensor), "call_module", name)
        weights = {node.target: node for node in self._graph.find_nodes(op="get_attr")}
        for weight in dict.fromkeys(one.weight for one in chosen if one.weight is not None):
            self._round(_known(weights, weight), "call_function", fake_quantize_weight)
        return quantizers

    def module(self) -> GraphModule:
        """The graph as a module that shares the network's parameters."""
        for node in self._graph.find_nodes(op="get_attr"):
            if not node.users:
                self._graph.erase_node(node)
        self._graph.lint()
        return GraphModule(self._attributes, self._graph)

    def _copied(self, program: ExportedProgram) -> dict[str, Node]:
        """Fill the graph; its nodes by the names of the program's."""
        inputs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        values: dict[Node, Node] = {}
        for node in program.graph.nodes:
            if node.op == "output":
                (result,) = node.args[0]
                self._graph.output(values[result])
            elif node.op == "placeholder" and inputs[node.name].kind is not InputKind.USER_INPUT:
                values[node] = self._graph.get_attr(str(inputs[node.name].target))
            else:
                values[node] = self._graph.node_copy(node, values.__getitem__)
        return {node.name: value for node, value in values.items()}

    def _fold(self, norm: Node) -> None:
        """Fold BatchNorm into the convolution before it, if that is one."""
        arguments: Any = norm.args  # Nodes, a number and None.
        convolution, factor, offset, mean, variance, _, epsilon = arguments
        if not _is_convolution(convolution) or len(convolution.users) != 1:
            return
        weight, bias = convolution.args[1], (*convolution.args, None)[2]
        if any(len(node.users) != 1 for node in (weight, mean)):
            raise BadInput(
                f"{weight.target}: a convolution and a BatchNorm that run more than once cannot be"
                " folded into one weight",
                "train without --quantize, and convert to INT8 by calibration",
            )
        nodes = (weight, bias, factor, offset, mean, variance)
        tensors = [None if x is None else self._attributes[x.target] for x in nodes]
        arguments = (*tensors, epsilon)
        fold_batch_norm(*arguments)
        (result,) = norm.users
        with self._graph.inserting_before(norm):
            shift = offset if offset is not None else self._graph.call_function(_aten.neg, (mean,))
            given = (*convolution.args[:2], shift, *convolution.args[3:])
            folded = self._graph.call_function(convolution.target, given, convolution.kwargs)
        result.replace_all_uses_with(folded)
        for name, value in self._values.items():
            if value is result:
                self._values[name] = folded
        for node in (result, norm, convolution):
            self._graph.erase_node(node)

    def _round(self, node: Node, kind: str, target: Any) -> None:
        with self._graph.inserting_after(node):
            rounded = self._graph.create_node(kind, target, (node,))
        node.replace_all_uses_with(rounded, delete_user_cb=lambda user: user is not rounded)


@torch.no_grad()
def fold_batch_norm(
    weight: Tensor,
    bias: Tensor | None,
    factor: Tensor | None,
    offset: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    epsilon: float,
) -> None:
    """Fold a BatchNorm into the convolution before it, in place.

    What remains is a BatchNorm that divides by exactly 1 in FP32 and adds what the folded bias is,
    by `offset`, or by `mean` where it has none.

    Args:
        weight: [channels, ...]; `bias` and the others [channels].
        bias: of the convolution; 0 afterwards.
        factor: gamma.
        offset: beta.
        mean: running mean.
        variance: running variance.
        epsilon: what is added to it.
    """
    scale = (variance.double() + epsilon).rsqrt()
    if factor is not None:
        scale *= factor.double()
        factor.fill_(1)
    shift = -mean.double() * scale
    if bias is not None:
        shift += bias.double() * scale
        bias.zero_()
    weight.copy_(weight.double() * scale.reshape(-1, *(1,) * (weight.ndim - 1)))
    variance.fill_(1 - epsilon)
    if offset is None:
        mean.copy_(-shift)
    else:
        offset.copy_(shift + offset.double())
        mean.zero_()


def _is_convolution(node: Any) -> bool:
    packet = getattr(getattr(node, "target", None), "overloadpacket", None)
    return packet in _CONVOLUTIONS and node.args[1].op == "get_attr"


def _known(nodes: Mapping[Any, Node], name: str) -> Node:
    if name not in nodes:
        raise BadInput(
            f"{name}: INT8 concerns this tensor of the ONNX file, and the network in PyTorch has"
            " none of that name",
            "train without --quantize, and convert to INT8 by calibration",
        )
    return nodes[name]
