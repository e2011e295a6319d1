"""The nodes of a file that runtimes name in their own ways: operator, module, gate or not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from cbam_deploy.exporters.int8.int8_nodes import fp8_nodes, int8_nodes
from cbam_deploy.gates.operators import operator_of
from cbam_deploy.graphs.name_scopes import PASSING, module_of, weight_behind

# What a fused kernel is called after, before all else.
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_ASKED = {
    ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16",
}  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """A node of a file.

    Attributes:
        name: of the node, or of its first output where it has none.
        operator: its type.
        module: path of the PyTorch module that it comes from; empty where the file does not say.
        gate: whether it is a fused attention gate.
        precision: what the file asks for: ``int8`` or ``fp8`` of what stands between
            DequantizeLinear and QuantizeLinear, else the type of its output; empty where that is
            not known.
        of_weights: whether it works on a weight alone, so that its result never changes.
    """

    name: str
    operator: str
    module: str = ""
    gate: bool = False
    precision: str = ""
    of_weights: bool = False


class Origins:
    """The nodes of a graph by their names and by the values that they make."""

    def __init__(self, model: ir.Model) -> None:
        if any(value.dtype is None for node in model.graph for value in node.outputs):
            model = model.clone()
            ShapeInferencePass()(model)
        quantized = dict.fromkeys(int8_nodes(model.graph), "int8")
        quantized |= dict.fromkeys(fp8_nodes(model.graph), "fp8")
        self._nodes: dict[str, Origin] = {}
        self._makers: dict[str, str] = {}
        for node in model.graph:
            name = node.name or node.outputs[0].name or ""
            self._nodes[name] = Origin(
                name=name,
                operator=node.op_type,
                module=module_of(node),
                gate=operator_of(node) is not None,
                precision=quantized.get(node) or _asked(node),
                of_weights=weight_behind(node.inputs[0]) is not None if node.inputs else True,
            )
            self._makers.update((value.name, name) for value in node.outputs if value.name)

    def find(self, name: str) -> Origin | None:
        """The node of a name, or that makes a value of that name.

        Of ``NODE/more``, as bodies and rewritten nodes are called, it is NODE.
        """
        while name:
            origin = self._nodes.get(name) or self._nodes.get(self._makers.get(name, ""))
            if origin is not None:
                return origin
            name = name.rpartition("/")[0]
        return None

    def anchor(self, names: Iterable[str]) -> Origin | None:
        """The node after which a kernel that carries out several is called."""
        found = [origin for name in names if (origin := self.find(name)) is not None]
        return min(found, key=_rank, default=None)


def _rank(origin: Origin) -> int:
    if origin.operator in _PRODUCTS:
        return 0  # Also where a runtime adds up a gate's residual in the convolution that makes it.
    if origin.gate:
        return 1
    return 3 if origin.operator in (*PASSING, "Constant") else 2


def _asked(node: ir.Node) -> str:
    kind = node.outputs[0].dtype if node.outputs else None
    return _ASKED.get(kind, "") if kind is not None else ""
