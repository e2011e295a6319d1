"""From a PyTorch module to an ONNX graph of standard ops, through torch's own exporter.

torch.onnx (dynamo) folds constants, and each BatchNormalization into the convolution before it.
What it notes about the place of each node in the source text is left out, so that a file tells
nothing of the machine it was made on and the same model gives the same bytes. Paths of modules
stay, and values keep the names of torch's exported program: layers are compared by them.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from cbam_deploy.data.feeds import noise
from cbam_deploy.errors import BadInput
from cbam_deploy.foreign_code import exits_as_errors
from cbam_deploy.graphs.name_scopes import NAME_SCOPES
from cbam_deploy.numerics.tensors import TensorSpec
from cbam_deploy.tracing.network_inputs import BATCH, NetworkInputs, pictures
from cbam_deploy.tracing.whole_map_pools import WholeMapPools

OPSET = 18
# A batch of one would be taken for a constant.
EXAMPLE_BATCH = 2
_NO_COUNTERPART = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)'")


def trace(
    module: nn.Module, inputs: NetworkInputs | int, output: str | None, label: str
) -> ir.Model:
    """The ONNX graph of `module`.

    Args:
        module: on the CPU, in evaluation mode.
        inputs: what it takes; a number S stands for pictures [batch, 3, S, S].
        output: name for its one output; None keeps torch's names, however many there are.
        label: what to call the module in messages.

    Raises:
        BadInput: torch cannot export the module, or an input bears the name of a value within.
    """
    if isinstance(inputs, int):
        inputs = pictures((3, inputs, inputs))
    feeds = noise(inputs.specs, EXAMPLE_BATCH, seed=0, image_size=None, sizes=inputs.sizes)
    examples = [torch.from_numpy(array) for array in feeds.values()]
    model = export_program(module, examples, output, label, inputs.specs).model
    _check_names(model, label)
    _check_axes(model, inputs, label)
    if inputs.sizes:
        _name_axes(model, inputs.specs)
    return _without_notes(model)


def export_program(
    module: nn.Module,
    examples: Sequence[torch.Tensor],
    output: str | None,
    label: str,
    specs: Sequence[TensorSpec],
) -> torch.onnx.ONNXProgram:
    """The ONNX graph of `module`, and the exported program whose value names it bears.

    Args:
        module: on the CPU, in evaluation mode.
        examples: its inputs; two or more long on free axes, which would else be taken for fixed.
        output: as for `trace`.
        label: what to call the module in messages.
        specs: names and free axes of the inputs.

    Raises:
        BadInput: torch cannot export the module.
    """
    pools = WholeMapPools(label)
    try:
        with _quiet(), pools, exits_as_errors(), _tensors_alone(module):
            program = torch.onnx.export(
                module,
                tuple(examples),
                dynamo=True,
                opset_version=OPSET,
                input_names=[spec.name for spec in specs],
                output_names=[output] if output else None,
                dynamic_shapes=_free_axes(specs),
                verbose=False,
            )
    except Exception as error:  # Whatever is in the module may fail, in any way.
        if pools.fault is not None:
            raise pools.fault from error
        raise _refusal(error, label, examples, specs) from error
    assert program is not None
    return program


def _free_axes(specs: Sequence[TensorSpec]) -> tuple[dict[int, Any], ...]:
    """Free axes as torch has them. What it finds about their sizes, such as even, may hold."""
    batch = torch.export.Dim(BATCH)
    return tuple(
        {
            axis: batch if size == BATCH else torch.export.Dim.DYNAMIC
            for axis, size in enumerate(spec.shape)
            if isinstance(size, str)
        }
        for spec in specs
    )


def _check_names(model: ir.Model, label: str) -> None:
    graph = model.graph
    computed = (value.name for node in graph for value in node.outputs)
    taken = {*computed, *(name for name in graph.initializers)}
    for value in graph.inputs:
        if value.name in taken:
            raise BadInput(
                f"{label}: a value within it is called {value.name} like an input",
                "give the input another name with --input",
            )


def _check_axes(model: ir.Model, inputs: NetworkInputs, label: str) -> None:
    """Raise `BadInput` where tracing has fixed an axis that is to be free."""
    fixed = set()
    for value, spec in zip(model.graph.inputs, inputs.specs, strict=True):
        assert value.shape is not None
        for axis, (found, asked) in enumerate(zip(value.shape, spec.shape, strict=True)):
            if isinstance(asked, str) and isinstance(found, int):
                fixed.add(axis)
    if fixed:
        raise _constant(inputs, label, sorted(fixed))


def _name_axes(model: ir.Model, specs: Sequence[TensorSpec]) -> None:
    """Give free axes the names of `specs` in place of torch's symbols, such as ``s53``."""
    names: dict[str, str] = {}
    for value, spec in zip(model.graph.inputs, specs, strict=True):
        assert value.shape is not None
        for symbol, name in zip(value.shape, spec.shape, strict=True):
            if isinstance(name, str):
                names[str(symbol)] = name
    computed = (value for node in model.graph for value in node.outputs)
    for value in (*model.graph.inputs, *computed):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(size, names) for size in value.shape])


def _renamed(size: int | ir.SymbolicDim, names: Mapping[str, str]) -> int | str | None:
    if isinstance(size, int):
        return size
    if size.value is None:
        return None
    return re.sub(r"\w+", lambda word: names.get(word[0], word[0]), str(size.value))


def _without_notes(model: ir.Model) -> ir.Model:
    """The model without what torch notes about its source, except the path of modules."""
    graph = model.graph
    graph.metadata_props.clear()
    for node in graph:
        scopes = node.metadata_props.get(NAME_SCOPES)
        node.metadata_props.clear()
        if scopes is not None:
            node.metadata_props[NAME_SCOPES] = scopes
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
    return model


def _refusal(
    error: BaseException, label: str, examples: Sequence[torch.Tensor], specs: Sequence[TensorSpec]
) -> BadInput:
    """Torch's refusal in one line, with what helps as far as its kind is known."""
    texts = [f"{type(cause).__name__} {cause}" for cause in _causes(error)]
    text = " ".join(texts)
    static = re.findall(r"static shape of \d+ for dimension \S*?\.shape\[(\d+)\]", text)
    if static:
        sizes = {
            str(name): size
            for spec, example in zip(specs, examples, strict=True)
            for name, size in zip(spec.shape[1:], example.shape[1:], strict=True)
        }
        inputs = NetworkInputs(tuple(specs), sizes)
        return _constant(inputs, label, sorted({int(axis) for axis in static}))
    if missing := _NO_COUNTERPART.search(text):
        return BadInput(
            f"{label}: torch cannot export {missing[1]}, of which ONNX has no counterpart",
            "write it with other operators; a pool of the whole map is amax or mean",
        )
    shapes = ", ".join("x".join(map(str, example.shape)) for example in examples)
    remedy = "check that it runs on such a batch; --debug shows torch's own report"
    if "data-dependent" in text or "DataDependent" in text:
        remedy = (
            "its Python code depends on values of tensors (if, int(), .item()): write that with "
            "torch.where or other tensor operations"
        )
    return BadInput(
        f"{label}: torch cannot export it for inputs of {shapes} ({_root_reason(error)})", remedy
    )


def _constant(inputs: NetworkInputs, label: str, axes: Sequence[int]) -> BadInput:
    """The refusal of a network that fixes `axes` although they are to be free."""
    what = "the batch" if 0 in axes else f"axis {', '.join(map(str, axes))} of its input"
    fixed = inputs.as_options(
        batch=1 if 0 in axes else None, sizes_free=not any(axis > 0 for axis in axes)
    )
    return BadInput(
        f"{label}: its Python code makes {what} a constant when it is traced (a loop over it, "
        "int(), a shape or a weight of that size)",
        f"fix it ({fixed}), or take sizes from x.shape in tensor operations alone",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


@contextmanager
def _tensors_alone(module: nn.Module) -> Iterator[None]:
    """Leave what is no tensor out of what `module` returns: numbers, texts, objects."""

    def keep_tensors(_module: nn.Module, _inputs: object, outputs: object) -> object:
        leaves = tree_leaves(outputs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        return outputs if len(tensors) == len(leaves) else tensors

    handle = module.register_forward_hook(keep_tensors)
    try:
        yield
    finally:
        handle.remove()


def _root_reason(error: BaseException) -> str:
    """The first line of the first cause."""
    *_, first = _causes(error)
    lines = [line.strip() for line in str(first).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(first).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch prints, warns and logs off the terminal: the exception has what matters."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
