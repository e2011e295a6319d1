"""From a PyTorch module to an ONNX graph of standard ops, through torch's own exporter.

torch.onnx (dynamo) folds constants, and each BatchNormalization into the convolution before it.
What it notes about the place of each node in the source text is left out, so that a file tells
nothing of the machine it was made on and the same model gives the same bytes. Paths of modules
stay, and values keep the names of torch's exported program: layers are compared by them.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import onnx_ir as ir
import torch
from torch import nn

from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.gate_search import NAME_SCOPES

OPSET = 18
INPUT = "input"
# A batch of one would be taken for a constant.
_EXAMPLE_BATCH = 2


def trace(module: nn.Module, image_size: int, output: str | None, label: str) -> ir.Model:
    """The ONNX graph of `module`, with a dynamic batch.

    Args:
        module: takes pictures [N, 3, image_size, image_size] float32, on the CPU, in evaluation
            mode.
        image_size: in pixels.
        output: name for its one output; None keeps torch's names, however many there are.
        label: what to call the module in messages.

    Raises:
        BadInput: torch cannot export the module.
    """
    example = torch.randn(
        (_EXAMPLE_BATCH, 3, image_size, image_size), generator=torch.Generator().manual_seed(0)
    )
    return _without_notes(export_program(module, [example], output, label).model)


def export_program(
    module: nn.Module, examples: Sequence[torch.Tensor], output: str | None, label: str
) -> torch.onnx.ONNXProgram:
    """The ONNX graph of `module`, and the exported program whose value names it bears.

    Args:
        module: on the CPU, in evaluation mode.
        examples: its inputs, with a batch of two or more; the first axis of each becomes free.
        output: as for `trace`.
        label: what to call the module in messages.

    Raises:
        BadInput: torch cannot export the module.
    """
    batch = torch.export.Dim("batch")
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                tuple(examples),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT] if len(examples) == 1 else None,
                output_names=[output] if output else None,
                dynamic_shapes=tuple({0: batch} for _ in examples),
                verbose=False,
            )
    except Exception as error:  # Whatever is in the module may fail, in any way.
        shapes = ", ".join("x".join(map(str, example.shape)) for example in examples)
        raise BadInput(
            f"{label}: torch cannot export it for inputs of {shapes} ({_root_reason(error)})",
            "check that it runs on such a batch; --debug shows torch's own report",
        ) from error
    assert program is not None
    return program


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
    logging.disable(logging.WARNING)
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
