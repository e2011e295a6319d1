"""PyTorch with the rounding of a file: what another correct program of its precision would give.

The reference runs as torch's exported program, whose values bear the names of the file's, node by
node in FP32. Where the file stores a value in fewer bits, PyTorch rounds it to these, by
`torch.bfloat16`, `torch.float16` and `torch.float8_e4m3fn`: to nearest, halves to even; FP8, behind
the file's own scale, saturates as ONNX says. Weights are PyTorch's own, with the BatchNorm that
follows folded in, and rounded likewise. What is inside a fused gate is no value of the file, so it
stays FP32, as in the file's kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_weights

from cbam_deploy.artefacts import Artefact, OnnxFile
from cbam_deploy.comparison.file_reference import FileReference
from cbam_deploy.comparison.layers import ReferenceProgram
from cbam_deploy.comparison.reference import Reference, as_tensor
from cbam_deploy.comparison.rounding import in_float64
from cbam_deploy.data.feeds import InputStream
from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.half.rules import PRODUCTS, is_standard
from cbam_deploy.exporters.int8.qdq import SMALLEST_SCALE
from cbam_deploy.exporters.int8.quantized_types import FP8, QuantizedType, quantized_type
from cbam_deploy.numerics.tensors import Feeds, TensorSpec
from cbam_deploy.runtimes.pytorch import own_array

_PRECISIONS = ("bf16", "fp8")  # So coarse that FP32 is no sharp reference.
_HALVES = {ir.DataType.FLOAT16: torch.float16, ir.DataType.BFLOAT16: torch.bfloat16}
_STEPS = ("Cast", "QuantizeLinear", "DequantizeLinear")
_BATCH_NORM = "_native_batch_norm_legit_no_training"
# What they give of rounded values is as rounded.
_EXACT = (
    *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GlobalMaxPool", "Identity"),
    *("MaxPool", "Pad", "ReduceMax", "Relu", "Reshape", "Slice", "Split", "Squeeze"),
    *("Transpose", "Unsqueeze"),
)
_PRODUCTS = ("conv1d", "conv2d", "conv3d", "convolution", "linear")

# From FP32 or FP64 to the same, through fewer bits.
Rounding = Callable[[Tensor], Tensor]


class RoundedReference:
    """A reference that rounds like a file.

    Attributes:
        beyond: values that the file rounds and PyTorch does not have, as it computes several of the
            file's steps in one, such as SiLU.

    Args:
        reference: the model.
        model: of the file.
        feeds: a small batch by input name, to export the reference for.
        specs: names and free axes of the inputs.

    Creating raises:
        BadInput: torch cannot export the reference, its values do not bear the file's names, or the
            file rounds a value for one reader and not for another.
    """

    def __init__(
        self, reference: Reference, model: ir.Model, feeds: Feeds, specs: Sequence[TensorSpec]
    ) -> None:
        self._program = ReferenceProgram(reference, feeds, specs)
        outputs = [value.name or "" for value in model.graph.outputs]
        names = {name: name for name in self._program.names}
        names |= dict(zip(outputs, self._program.outputs, strict=False))
        self._plan = _plan(model, names)
        products = {
            _result(node).name for node in self._program.module.graph.nodes if _is_product(node)
        }
        missing = sorted(self._plan.products.keys() - products)
        if missing or not self._plan.products:
            raise BadInput(
                f"{reference.label} has no convolution or linear layer {', '.join(missing[:1])}",
                "export it again with this torch",
            )
        self.beyond = self._plan.beyond
        self._inputs = [self._plan.inputs.get(value.name or "", ()) for value in model.graph.inputs]

    def run(self, inputs: Sequence[NDArray[Any]], *, wide: bool = False) -> list[NDArray[Any]]:
        """Outputs in the module's order: float32, or float64 where sums are `wide`."""
        arguments = self._program.arguments(
            [
                _through(roundings, as_tensor(array))
                for array, roundings in zip(inputs, self._inputs, strict=True)
            ]
        )
        if wide:
            arguments = [_widened(argument) for argument in arguments]
        interpreter = _Interpreter(self._program.module, self._plan)
        with torch.inference_mode(), in_float64() if wide else nullcontext():
            found = interpreter.run(*arguments, enable_io_processing=False)
        return [own_array(value) for value in found]


def rounded_like(
    artefact: Artefact, reference: Reference | FileReference, inputs: InputStream
) -> tuple[RoundedReference | None, str]:
    """PyTorch rounded like a BF16 or FP8 file, and what is not alike; None where it cannot be."""
    if artefact.precision not in _PRECISIONS or not isinstance(artefact, OnnxFile):
        return None, ""
    if isinstance(reference, FileReference):
        return None, ""
    feeds = next(inputs.batches(max(1, artefact.batch_range[0])))
    try:
        rounded = RoundedReference(reference, artefact.model, feeds, inputs.specs)
    except BadInput as error:
        return None, f"not held against PyTorch rounded the same way: {error.message}"
    beyond = rounded.beyond
    if not beyond:
        return rounded, ""
    number = "1 value" if len(beyond) == 1 else f"{len(beyond)} values"
    return rounded, (
        f"the file rounds {number} more than PyTorch, which computes in one step what it has in"
        f" several: {', '.join(beyond[:3])}"
    )


@dataclass(frozen=True)
class _Product:
    """How the file rounds the weight and the bias of a convolution or matrix product."""

    weight: Rounding
    bias: Rounding


@dataclass(frozen=True)
class _Plan:
    """Roundings by the name of a value in the program; of inputs by their name in the file.

    Attributes:
        beyond: names of rounded values that the program has not.
    """

    values: dict[str, tuple[Rounding, ...]]
    products: dict[str, _Product]
    inputs: dict[str, tuple[Rounding, ...]]
    beyond: tuple[str, ...]


def _plan(model: ir.Model, names: dict[str, str]) -> _Plan:
    """The roundings of a file; `names` are what the program calls values of the file's names."""
    values: dict[str, tuple[Rounding, ...]] = {}
    products: dict[str, _Product] = {}
    inputs = {value.name or "": tuple(_steps(value)) for value in model.graph.inputs}
    known, beyond = set(names.values()), []
    for node in model.graph:
        if is_standard(node, *_STEPS):
            continue
        for value in node.outputs:
            name = _name(value, names)
            values[name] = tuple(_steps(value))
            if values[name] and name not in known and not is_standard(node, *_EXACT):
                beyond.append(name)
            if is_standard(node, *PRODUCTS):
                weight, bias = (_of_weight(one) for one in (*node.inputs[1:3], None)[:2])
                if weight is not None or bias is not None:
                    products[name] = _Product(weight or _as_it_is, bias or _as_it_is)
    return _Plan(values, products, inputs, tuple(beyond))


def _name(value: ir.Value, names: dict[str, str]) -> str:
    """What the program calls a value, whose former name may be that of a cast behind it."""
    last = value
    while last.name not in names:
        (reader, *others) = last.consumers() or (None,)
        if others or reader is None or not is_standard(reader, *_STEPS):
            return value.name or ""
        last = reader.outputs[0]
    return names[last.name or ""]


def _steps(value: ir.Value) -> Iterator[Rounding]:
    """What happens to a value on the way to all who read it."""
    if value.dtype in _HALVES:
        yield _to_half(value.dtype)
    readers = value.consumers()
    steps = [node for node in readers if is_standard(node, *_STEPS) and _narrows(node)]
    if not steps:
        return
    if len(readers) > 1 or value.is_graph_output():
        raise BadInput(f"{value.name} is rounded for some of its readers alone", "")
    (node,) = steps
    if node.op_type == "QuantizeLinear":
        kind = quantized_type(node)
        assert kind is not None
        readers = node.outputs[0].consumers()
        yield _quantizing(kind, _constant(node.inputs[1]), _constant(readers[0].inputs[1]))
        yield from _steps(readers[0].outputs[0])
    else:
        yield from _steps(node.outputs[0])


def _narrows(node: ir.Node) -> bool:
    return node.op_type == "QuantizeLinear" or node.outputs[0].dtype in _HALVES


def _of_weight(value: ir.Value | None) -> Rounding | None:
    """How a weight is rounded; None where it is not."""
    if value is None:
        return None
    producer = value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        kind, scale = quantized_type(producer), producer.inputs[1]
        assert kind is not None
        dtype = scale.dtype if scale is not None else None

        def quantize(weight: Tensor) -> Tensor:
            others = tuple(range(1, weight.ndim))
            largest = weight.abs().amax(others, keepdim=True)
            scales = (largest / kind.largest).clamp(min=SMALLEST_SCALE)
            stored = _in_half(scales, dtype)
            return _in_half(_quantizing(kind, scales, stored)(weight), dtype)

        return quantize
    return _to_half(value.dtype) if value.dtype in _HALVES else None


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _quantizing(kind: QuantizedType, before: Tensor, after: Tensor) -> Rounding:
    """Q by the scale `before` and DQ by `after`, which differ where one has fewer bits."""

    def quantize(tensor: Tensor) -> Tensor:
        units = tensor / before
        if kind is FP8:
            narrow = units.clamp(kind.lowest, kind.largest).to(torch.float8_e4m3fn)
            return narrow.to(tensor.dtype) * after
        return units.round().clamp(kind.lowest, kind.largest) * after

    return quantize


def _to_half(dtype: ir.DataType) -> Rounding:
    return lambda tensor: _in_half(tensor, dtype)


def _in_half(tensor: Tensor, dtype: ir.DataType | None) -> Tensor:
    return tensor.to(_HALVES[dtype]).to(tensor.dtype) if dtype in _HALVES else tensor


def _widened(value: Any) -> Any:
    wide = isinstance(value, Tensor) and value.is_floating_point()
    return value.double() if wide else value


def _constant(value: ir.Value | None) -> Tensor:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is None:
        raise BadInput("a scale of the file is computed", "")
    return torch.from_numpy(tensor.numpy().astype(np.float32))


def _through(roundings: Sequence[Rounding], tensor: Tensor) -> Tensor:
    for rounding in roundings:
        tensor = rounding(tensor)
    return tensor


class _Interpreter(torch.fx.Interpreter):
    """Runs the program with a plan's roundings."""

    def __init__(self, module: torch.fx.GraphModule, plan: _Plan) -> None:
        super().__init__(module, garbage_collect_values=True)
        self._plan = plan
        self._of_norms: dict[torch.fx.Node, Tensor] = {}

    def run_node(self, node: torch.fx.Node) -> Any:
        if node.op != "call_function":
            return super().run_node(node)
        product = self._plan.products.get(_result(node).name)
        if product is not None and _is_product(node):
            norm = _norm_behind(node)
            value = self._computed(node, product, norm)
            if norm is not None:
                self._of_norms[norm] = value
        elif node in self._of_norms:
            value = (self._of_norms[node],)
        else:
            value = super().run_node(node)
        if isinstance(value, Tensor) and value.is_floating_point():
            return _through(self._plan.values.get(node.name, ()), value)
        return value

    def _computed(self, node: torch.fx.Node, product: _Product, norm: torch.fx.Node | None) -> Any:
        """What a product gives with weight and bias, BatchNorm folded in, as the file has them."""
        (source, weight, *rest), kwargs = self.fetch_args_kwargs_from_env(node)
        bias, *others = rest or (None,)
        if norm is not None:
            values: Any = self.map_nodes_to_values(norm.args[1:], norm)
            gamma, beta, mean, variance, _, epsilon = values
            weight, bias = fuse_conv_bn_weights(weight, bias, mean, variance, epsilon, gamma, beta)
        bias = None if bias is None else product.bias(bias)
        return self.call_function(
            node.target, (source, product.weight(weight), bias, *others), kwargs
        )


def _is_product(node: torch.fx.Node) -> bool:
    return _operator(node) in _PRODUCTS


def _norm_behind(node: torch.fx.Node) -> torch.fx.Node | None:
    """The BatchNorm that alone reads a convolution, and that exporting folds into it."""
    (user, *others) = node.users or (None,)
    folds = user is not None and not others and _operator(user) == _BATCH_NORM
    transposed = _operator(node) == "convolution" and node.args[6]
    return user if folds and _operator(node) != "linear" and not transposed else None


def _result(node: torch.fx.Node) -> torch.fx.Node:
    """The value of a product that the file has: behind the BatchNorm that is folded into it."""
    norm = _norm_behind(node)
    return node if norm is None else next(u for u in norm.users if u.args[1:] == (0,))


def _operator(node: torch.fx.Node) -> str:
    """Such as ``conv2d`` of ``aten.conv2d.default``."""
    return str(node.target).removeprefix("aten.").partition(".")[0]
