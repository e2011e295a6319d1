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

from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.name_scopes import NAME_SCOPES
from cbam_deploy.exporters.network_inputs import BATCH, NetworkInputs, pictures
from cbam_deploy.exporters.whole_map_pools import WholeMapPools
from cbam_deploy.runtimes.base import TensorSpec
from cbam_deploy.validation.inputs import noise

OPSET = 18
# A batch of one would be taken for a constant.
_EXAMPLE_BATCH = 2
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
        inputs = pictures(inputs)
    feeds = noise(inputs.specs, _EXAMPLE_BATCH, seed=0, image_size=None, sizes=inputs.sizes)
    examples = [torch.from_numpy(array) for array in feeds.values()]
    model = export_program(module, examples, output, label, inputs.specs).model
    _check_names(model, label)
    if inputs.sizes:
        _name_axes(model, inputs.specs)
    return _without_notes(model)


def export_program(
    module: nn.Module,
    examples: Sequence[torch.Tensor],
    output: str | None,
    label: str,
    specs: Sequence[TensorSpec] | None = None,
) -> torch.onnx.ONNXProgram:
    """The ONNX graph of `module`, and the exported program whose value names it bears.

    Args:
        module: on the CPU, in evaluation mode.
        examples: its inputs; two or more long on free axes, which would else be taken for fixed.
        output: as for `trace`.
        label: what to call the module in messages.
        specs: names and free axes of the inputs; None for torch's names and a free first axis.

    Raises:
        BadInput: torch cannot export the module.
    """
    if specs is None:
        free = [TensorSpec("", (BATCH, *example.shape[1:]), "") for example in examples]
        names = ["input"] if len(examples) == 1 else None
    else:
        free, names = list(specs), [spec.name for spec in specs]
    pools = WholeMapPools(label)
    try:
        with _quiet(), pools:
            program = torch.onnx.export(
                module,
                tuple(examples),
                dynamo=True,
                opset_version=OPSET,
                input_names=names,
                output_names=[output] if output else None,
                dynamic_shapes=_free_axes(free),
                verbose=False,
            )
    except Exception as error:  # Whatever is in the module may fail, in any way.
        if pools.fault is not None:
            raise pools.fault from error
        reason = _root_reason(error)
        if missing := _NO_COUNTERPART.search(reason):
            raise BadInput(
                f"{label}: torch cannot export {missing[1]}, of which ONNX has no counterpart",
                "write it with other operators; a pool of the whole map is amax or mean",
            ) from error
        shapes = ", ".join("x".join(map(str, example.shape)) for example in examples)
        raise BadInput(
            f"{label}: torch cannot export it for inputs of {shapes} ({reason})",
            "check that it runs on such a batch; --debug shows torch's own report",
        ) from error
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


def _root_reason(error: BaseException) -> str:
    """The first line of the first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


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
