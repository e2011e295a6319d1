"""Name attentions that no fused gate computes, so that nobody wonders why they stay.

    SimAM                   x·σ(d²/(4(Σd²/(HW−1)+λ))+½), d = x − mean(x)
    coordinate attention    x·σ(Wh·z_h)·σ(Ww·z_w), z = act(BN(W·[mean over W; mean over H]))
    BAM                     x·(1 + σ(Mc·Ms)), x + x·σ(Mc + Ms)
    Attention U-Net         x·σ(ψ(ReLU(Wx·x + Wg·g)))
    non-local block         x + W·(V·softmax(QK))
    gates of [N, C, L] and [N, C, D, H, W]

Each is told by what lies between a map and the factors of a product: a part of the graph that is
computed from that map alone. Activations such as SiLU and GELU, GLUs, normalizations and the
attention of transformers have such parts too, but not these nodes in them.

Sources: Yang et al., "SimAM", ICML 2021; Hou, Zhou, Feng, "Coordinate Attention", CVPR 2021; Park,
Woo, Lee, Kweon, "BAM", BMVC 2018; Oktay et al., "Attention U-Net", MIDL 2018; Wang et al.,
"Non-local Neural Networks", CVPR 2018.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import onnx_ir as ir

from cbam_deploy.exporters.gates.matching import (
    behind_copies,
    find_constant,
    is_constant,
    is_op,
)
from cbam_deploy.exporters.gates.search import FoundGate, RefusedGate
from cbam_deploy.graphs.name_scopes import scopes_of
from cbam_deploy.graphs.shapes import Shapes

# A part of a graph with more nodes is no attention.
_MOST_NODES = 100
_MOST_FACTORS = 4
_GATE_FUNCTIONS = ("Sigmoid", "HardSigmoid", "Clip", "Tanh", "Exp")
_LEARNED = ("Conv", "Gemm", "MatMul")
_POOLS = ("AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax")
# What follows the first input, whatever the others say of shapes.
_BY_FIRST_INPUT = (
    *("Reshape", "Expand", "Squeeze", "Unsqueeze", "Flatten", "Cast", "Identity", "Dropout"),
    *("Transpose", "Split", "Slice", "Resize", "ReduceSum", *_POOLS),
)
_VIEWS = ("Reshape", "Expand", "Squeeze", "Unsqueeze", "Flatten", "Cast", "Identity", "Transpose")
_CHANNEL, _ROWS, _COLUMNS = 1, 2, 3
_EVERYWHERE = "its standard operators run everywhere"


@dataclass(frozen=True)
class _Part:
    """What is computed from a map, and nothing else.

    Attributes:
        x: the map.
        nodes: all between it and what is computed, last first.
        shapes: of the graph.
    """

    x: ir.Value
    nodes: tuple[ir.Node, ...]
    shapes: Shapes

    def of(self, *ops: str) -> Iterator[ir.Node]:
        """Its nodes of ONNX's own operators `ops`."""
        return (node for node in self.nodes if not node.domain and node.op_type in ops)

    def has(self, *ops: str) -> bool:
        """Whether there is such a node."""
        return next(self.of(*ops), None) is not None

    def takes_x(self, node: ir.Node) -> bool:
        """Whether the map is what `node` is computed from first."""
        return node.inputs[0] is not None and behind_copies(node.inputs[0]) is self.x

    def pooled_axes(self) -> Iterator[frozenset[int]]:
        """For each pool of the map itself, the axes that it takes together."""
        for node in self.of(*_POOLS):
            if self.takes_x(node):
                yield _axes(node, self.shapes)


def name_others(
    graph: ir.Graph, shapes: Shapes, found: Sequence[FoundGate], refused: Sequence[RefusedGate]
) -> list[RefusedGate]:
    """The gates that stay as they are: `refused`, and attentions that no reader knows.

    What a reader refused and is known here gets this module's reason.

    Args:
        graph: what they are in.
        shapes: of it.
        found: gates to be fused.
        refused: what was read as a gate and is none.
    """
    taken = {node for gate in found for node in gate.nodes}
    read = {node for gate in refused for node in gate.nodes}
    named: list[RefusedGate] = []
    covered: set[ir.Node] = set()
    for node in graph:
        known = _recognize(node, shapes, read)
        if known is None or not taken.isdisjoint(known.nodes):
            continue
        if covered.isdisjoint(known.nodes):  # Else it is around one that is named.
            named.append(known)
        covered.update(known.nodes)
    return [gate for gate in refused if covered.isdisjoint(gate.nodes)] + named


def _recognize(node: ir.Node, shapes: Shapes, read: set[ir.Node]) -> RefusedGate | None:
    """What `node` is the last one of, None for anything else."""
    if node.domain or node.op_type not in ("Mul", "Add"):
        return None
    known = _non_local(node) if node.op_type == "Add" else _product(node, shapes, read)
    if known is None:
        return None
    reason, nodes = known
    scopes = _common_scopes(nodes)
    where = scopes[-1] if scopes else node.outputs[0].name
    return RefusedGate(where or "", reason, tuple(nodes))


def _product(node: ir.Node, shapes: Shapes, read: set[ir.Node]) -> tuple[str, list[ir.Node]] | None:
    """Why the attention that `node` scales a map by is not fused, and all its nodes."""
    users = [user for user in node.outputs[0].consumers() if is_op(user.outputs[0], "Mul")]
    if len(node.outputs[0].uses()) == 1 and users and not any(map(is_constant, users[0].inputs)):
        return None  # A factor of a larger product.
    factors, products = _factors(node)
    for x in factors:
        others = [factor for factor in factors if factor is not x]
        if (additive := _additive(x, others)) is not None:
            return additive[0], [*products, *additive[1]]
        part = _part(others, x, shapes)
        if part is None or not part.has(*_GATE_FUNCTIONS):
            continue
        nodes = [*products, *part.nodes]
        for kind in _KINDS if read.isdisjoint(nodes) else _KINDS[:-1]:
            if (reason := kind(part)) is not None:
                return reason, nodes
    return None


def _factors(node: ir.Node) -> tuple[list[ir.Value], list[ir.Node]]:
    """What is multiplied by `node` and products before it, and all those nodes."""
    factors: list[ir.Value] = []
    products, ahead = [node], list(node.inputs)
    while ahead:
        value = ahead.pop()
        if value is None or is_constant(value):
            continue
        value = behind_copies(value)
        before = value.producer()
        inner = before is not None and is_op(value, "Mul") and len(value.uses()) == 1
        if inner and before is not None and len(products) < _MOST_FACTORS:
            products.append(before)
            ahead += before.inputs
        else:
            factors.append(value)
    return factors, products


def _part(values: Sequence[ir.Value], x: ir.Value, shapes: Shapes) -> _Part | None:
    """What computes `values` from `x`, None where anything else is needed too."""
    nodes: dict[ir.Node, None] = {}
    ahead = list(values)
    reached = False
    while ahead:
        value = ahead.pop()
        if value is x:
            reached = True
            continue
        node = value.producer()
        weight = ir.convenience.get_const_tensor(value) is not None and not value.is_graph_input()
        if weight or node in nodes or is_op(value, "Shape", "Size"):
            continue
        if node is None or node.domain or len(nodes) == _MOST_NODES:
            return None
        nodes[node] = None
        inputs = node.inputs[:1] if node.op_type in _BY_FIRST_INPUT else node.inputs
        ahead += [source for source in inputs if source is not None]
    return _Part(x, tuple(nodes), shapes) if reached else None


def _simam(part: _Part) -> str | None:
    centred = any(
        source is not None and is_op(source, "ReduceMean", "GlobalAveragePool")
        for node in part.of("Sub")
        if part.takes_x(node)
        for source in node.inputs[1:]
    )
    if part.has(*_LEARNED) or not centred or not part.has("Div"):
        return None
    if frozenset({_ROWS, _COLUMNS}) not in part.pooled_axes():
        return None
    return (
        "it is SimAM, x·σ(d²/(4(Σd²/(HW−1)+λ))+½) with d = x−mean(x); it needs the variance of "
        f"each channel, which the fused kernel does not compute; {_EVERYWHERE}"
    )


def _coordinate(part: _Part) -> str | None:
    axes = set(part.pooled_axes())
    if not part.has("Conv") or not {frozenset({_ROWS}), frozenset({_COLUMNS})} <= axes:
        return None
    return (
        "it is coordinate attention, x·σ(Wh·z_h)·σ(Ww·z_w); z is made of the means of each row and "
        f"of each column, which the fused kernel does not compute; {_EVERYWHERE}"
    )


def _bam(part: _Part) -> str | None:
    for gate in part.of("Sigmoid"):
        logits = gate.inputs[0]
        join = None if logits is None else logits.producer()
        if logits is None or join is None or not is_op(logits, "Add", "Mul"):
            continue
        sides = [_part([value], part.x, part.shapes) for value in join.inputs if value is not None]
        pooled = [side for side in sides if side and any(side.pooled_axes())]
        others = [side for side in sides if side and not any(side.pooled_axes())]
        if len(pooled) != 1 or len(others) != 1:
            continue
        last = next(others[0].of("Conv"), None)
        if pooled[0].has(*_LEARNED) and last is not None and _channels_out(last) == 1:
            return (
                "it is BAM, x·σ(Mc + Ms) or x·σ(Mc·Ms) beside x, with Ms of convolutions of all "
                f"channels of x, which the fused kernel does not compute; {_EVERYWHERE}"
            )
    return None


def _of_other_rank(part: _Part) -> str | None:
    dims = part.shapes.dims(part.x)
    if dims is None or len(dims) not in (3, 5) or not part.has(*_LEARNED):
        return None
    pooled = set(part.pooled_axes())
    of_channels = frozenset(range(2, len(dims))) in pooled
    if not of_channels and not (frozenset({_CHANNEL}) in pooled and part.has("Conv")):
        return None
    what = "sequences [N, C, L]" if len(dims) == 3 else "volumes [N, C, D, H, W]"
    return f"it gates {what}; gates of maps [N, C, H, W] are fused; {_EVERYWHERE}"


def _unknown(part: _Part) -> str | None:
    """What scales a map by what is learned of its means or maxima, where no reader says more."""
    if not part.has(*_LEARNED) or not any(part.pooled_axes()):
        return None
    return f"its map is scaled by an attention that no fused gate computes; {_EVERYWHERE}"


_KINDS: tuple[Callable[[_Part], str | None], ...] = (
    *(_simam, _coordinate, _bam, _of_other_rank, _unknown),
)


def _additive(x: ir.Value, others: Sequence[ir.Value]) -> tuple[str, list[ir.Node]] | None:
    """The gate of Attention U-Net."""
    nodes: list[ir.Node] = []
    psi = _conv_behind(others[0], nodes, "Sigmoid") if len(others) == 1 else None
    if psi is None or _channels_out(psi) != 1 or not any(n.op_type == "Sigmoid" for n in nodes):
        return None
    rectified = psi.inputs[0]
    total = None if rectified is None else _followed(rectified, nodes, "Relu").producer()
    if total is None or not is_op(total.outputs[0], "Add"):
        return None
    nodes.append(total)
    terms = [_conv_behind(term, nodes, "Resize") for term in total.inputs if term is not None]
    sources = {term.inputs[0] for term in terms if term is not None}
    if len(sources) != 2 or x not in map(behind_copies, filter(None, sources)):
        return None
    return (
        "it is the gate of Attention U-Net, x·σ(ψ(ReLU(Wx·x + Wg·g))); it is computed from x and a "
        f"second map g by convolutions of all channels, fused gates from x alone; {_EVERYWHERE}"
    ), nodes


def _conv_behind(value: ir.Value, nodes: list[ir.Node], *ops: str) -> ir.Node | None:
    """The Conv behind `ops`, views and BatchNorm; adds the `nodes` met."""
    value = _followed(value, nodes, *ops, *_VIEWS, "BatchNormalization")
    node = value.producer()
    if node is None or not is_op(value, "Conv"):
        return None
    nodes.append(node)
    return node


def _non_local(node: ir.Node) -> tuple[str, list[ir.Node]] | None:
    """A block that adds to a map what every position takes from every other one."""
    for x, value in (node.inputs, node.inputs[::-1]):
        if x is None or value is None:
            continue
        nodes: list[ir.Node] = [node]
        value = _followed(value, nodes, *_VIEWS, "Conv", "BatchNormalization", "Mul")
        if not is_op(value, "MatMul"):
            continue
        ends = _matmul_ends(value, nodes)
        attention = next((end for end in ends if is_op(end, "Softmax")), None)
        v = next((end for end in ends if is_op(end, "Conv")), None)
        if attention is None or v is None:
            continue
        scores = _followed(attention, nodes, "Softmax", "Mul", "Div", *_VIEWS)
        if not is_op(scores, "MatMul"):
            continue
        convs = [end.producer() for end in (*_matmul_ends(scores, nodes), v) if is_op(end, "Conv")]
        of_x = [
            conv
            for conv in convs
            if conv is not None and (source := conv.inputs[0]) is not None
            if behind_copies(_followed(source, nodes, "MaxPool")) is behind_copies(x)
        ]
        if len(of_x) == 3:
            return (
                "it is a non-local block, x + W·(V·softmax(QK)), in which each position sees all "
                f"others; that is no gate; {_EVERYWHERE}"
            ), [*nodes, *of_x]
    return None


def _matmul_ends(value: ir.Value, nodes: list[ir.Node]) -> list[ir.Value]:
    """What a MatMul multiplies, behind views and pooling; adds the `nodes` met."""
    product = value.producer()
    assert product is not None
    nodes.append(product)
    sources = [source for source in product.inputs if source is not None]
    return [_followed(source, nodes, *_VIEWS, "MaxPool") for source in sources]


def _followed(value: ir.Value, nodes: list[ir.Node], *ops: str) -> ir.Value:
    """Back from `value` through nodes `ops` with one computed input; adds the `nodes` met."""
    for _ in range(_MOST_NODES):
        node = value.producer()
        if node is None or not is_op(value, *ops):
            break
        inputs = node.inputs[:1] if node.op_type in _BY_FIRST_INPUT else node.inputs
        if len(inputs) > 1:
            inputs = [one for one in inputs if one is not None and not is_constant(one)]
        if len(inputs) != 1 or inputs[0] is None:
            break
        nodes.append(node)
        value = inputs[0]
    return value


def _channels_out(node: ir.Node) -> int | None:
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    shape = None if weight is None else weight.shape
    size = None if shape is None or not len(shape) else shape[0]
    return size if isinstance(size, int) else None


def _axes(node: ir.Node, shapes: Shapes) -> frozenset[int]:
    """Axes that a pool takes together; none where it pools windows, or these are unknown."""
    source = node.inputs[0]
    dims = None if source is None else shapes.dims(source)
    rank = len(dims) if dims else 4
    if node.op_type.startswith("Global"):
        return frozenset(range(2, rank))
    if "kernel_shape" in node.attributes:
        kernel = node.attributes["kernel_shape"].as_ints()
        sizes = dims[2:] if dims else ()
        if not all(k in (1, size) for k, size in zip_longest(kernel, sizes)):
            return frozenset()
        return frozenset(axis for axis, k in enumerate(kernel, start=2) if k != 1)
    if "axes" in node.attributes:
        axes = list(node.attributes["axes"].as_ints())
    else:
        given = find_constant(node.inputs[1]) if len(node.inputs) > 1 else None
        axes = list(range(rank)) if given is None else [int(axis) for axis in given.reshape(-1)]
    return frozenset(axis % rank for axis in axes)


def _common_scopes(nodes: Collection[ir.Node]) -> list[str]:
    """Modules that all `nodes` that say so are in, outermost first."""
    paths = [path for node in nodes if (path := scopes_of(node))]
    common = []
    for level in zip(*paths, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return [name for name in common if name]
