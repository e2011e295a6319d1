"""Shapes and types of a graph's values, also of those the file says nothing of.

What a file leaves out is inferred by onnx on a copy without the large weights, so the model stays
as it is. Where sizes are unknown, even inference gives the two operands of a residual addition
different unknown sizes; whether they are alike is then seen by inferring again with the inputs set
to known sizes, through what is known to be gates.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir

Dims = tuple[int | str | None, ...]
Known = dict[str, tuple[int, Dims | None]]

# Larger constants hold weights; inference needs only shapes and axes.
_MOST_BYTES = 1024
# Sizes by axis that unknown inputs are set to: multiples of 32, as networks with skips need them.
_SETTINGS = ({0: 2, 2: 64, 3: 96}, {0: 3, 2: 160, 3: 32})
_OTHER_AXIS = 3


class Shapes:
    """Shapes and types by value, recorded or inferred; a guess is never among them."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._inferred: Known | None = None
        self._concrete: list[Known] | None = None
        self._kept: dict[str, str] = {}

    def dims(self, value: ir.Value) -> Dims | None:
        """Sizes of `value` along its axes: numbers, names, or None; None for an unknown rank."""
        recorded = _recorded(value)
        if recorded is not None and None not in recorded:
            return recorded
        inferred = self._known(value)[1]
        return recorded if inferred is None else inferred

    def dtype(self, value: ir.Value) -> ir.DataType:
        """Type of the elements of `value`; UNDEFINED where it cannot be known."""
        return value.dtype or ir.DataType(self._known(value)[0])

    def note_kept(self, value: ir.Value, source: ir.Value) -> None:
        """Let it be known that `value` has the shape of `source`, though onnx may not see it."""
        self._kept[value.name or ""] = source.name or ""
        self._concrete = None

    def alike(self, value: ir.Value, other: ir.Value) -> bool:
        """Whether two values have the same shape for all inputs, as far as can be told."""
        dims = self.dims(value)
        whole = dims is not None and None not in dims
        if value is other or (whole and dims == self.dims(other)):
            return True
        if self._concrete is None:
            copies = [_with_sizes(self._model, sizes) for sizes in _SETTINGS]
            self._concrete = [_infer(copy, self._kept) for copy in copies]
        for known in self._concrete:
            one = known.get(value.name or "", (0, None))[1]
            if one is None or not all(isinstance(size, int) for size in one):
                return False
            if one != known.get(other.name or "", (0, None))[1]:
                return False
        return True

    def _known(self, value: ir.Value) -> tuple[int, Dims | None]:
        if self._inferred is None:
            self._inferred = _infer(self._model.clone(), {})
        return self._inferred.get(value.name or "", (0, None))


def _recorded(value: ir.Value) -> Dims | None:
    if value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else size.value for size in value.shape)


def _with_sizes(model: ir.Model, by_axis: dict[int, int]) -> ir.Model:
    """A copy whose inputs have the given sizes, and no other value has a shape yet."""
    copy = model.clone()
    named: dict[str, int] = {}
    for value in copy.graph.inputs:
        sizes: list[int | ir.SymbolicDim | str | None] = []
        for axis, size in enumerate(_recorded(value) or ()):
            if isinstance(size, int):
                sizes.append(size)
            else:
                wanted = by_axis.get(axis, _OTHER_AXIS)
                sizes.append(wanted if size is None else named.setdefault(size, wanted))
        value.shape = None if value.shape is None else ir.Shape(sizes)
    for node in copy.graph:
        for value in node.outputs:
            value.shape = None
    return copy


def _infer(model: ir.Model, kept: Mapping[str, str]) -> Known:
    """Types and shapes by name; what fails is left out.

    Args:
        model: a copy, which is changed.
        kept: names of values, each with that of a value of the same shape.
    """
    make_weights_inputs(model.graph)
    proto = ir.to_proto(model)
    for node in proto.graph.node:
        if (source := kept.get(node.output[0])) is not None:
            node.CopyFrom(onnx.helper.make_node("Identity", [source], node.output[:1]))
    return infer_shapes(proto)


def infer_shapes(proto: onnx.ModelProto) -> Known:
    """Types and shapes by name, as far as onnx can tell."""
    try:
        graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    except Exception:  # onnx answers graphs it cannot follow in many ways; then nothing is known.
        return {}
    weights = {tensor.name: (tensor.data_type, tuple(tensor.dims)) for tensor in graph.initializer}
    return weights | {
        info.name: (info.type.tensor_type.elem_type, _dims(info.type.tensor_type))
        for info in (*graph.input, *graph.value_info, *graph.output)
    }


def forget_names_of_sizes(graph: ir.Graph) -> None:
    """Leave free sizes of inner values without a name, in place.

    Exporters name sizes that differ alike, such as those of three outputs. ONNX Runtime takes equal
    names for equal sizes where it plans memory, and fails when they are not.
    """
    outputs = set(graph.outputs)
    for value in (value for node in graph for value in node.outputs if value not in outputs):
        if value.shape is not None:
            value.shape = ir.Shape([s if isinstance(s, int) else None for s in value.shape])


def make_weights_inputs(graph: ir.Graph) -> None:
    """Let large weights be inputs, in place: inference needs only their shapes."""
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > _MOST_BYTES:
            value.shape, value.dtype = ir.Shape(list(tensor.shape.numpy())), tensor.dtype
            del graph.initializers[name]
            value.const_value = None
            if not value.is_graph_input():
                graph.inputs.append(value)


def _dims(tensor: onnx.TypeProto.Tensor) -> Dims | None:
    if not tensor.HasField("shape"):
        return None
    return tuple(
        size.dim_value if size.HasField("dim_value") else size.dim_param or None
        for size in tensor.shape.dim
    )
