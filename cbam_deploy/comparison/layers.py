"""Find the first place where an ONNX file computes something else than its reference.

Values in our ONNX files bear the names of torch's exported program, so the reference is exported
the same way again, run node by node in PyTorch, and compared by name with what ONNX Runtime
computes for the file. Beside another ONNX file (`file_reference`), values of one name are compared.
Two ways to look:

- ``gates``: compares the output of each fused gate and of the network. When one leaves tolerance,
  the values between it and the last good ones are compared too, which leads to the node. Of a file
  without fused gates that is its outputs, and after a fault all that leads to them.
- ``all``: compares every value that both sides have.

A value of the file that the reference lacks, or has in another shape, is reported as not
comparable. Names can change with torch's version; when no value but the outputs is comparable,
that is an error.

What it sees depends on how far a fault stands out of the rounding noise of its own value: a weight
tensor off by a tenth of a percent does; one weight among a thousand terms of a sum, off by one
percent, mostly does. A fault close to the tolerance can show a few nodes later than it is, and one
behind a unit that no input activates cannot show at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export.graph_signature import InputKind

from cbam_deploy.comparison.layer_report import LayerError, LayerReport, Layers
from cbam_deploy.comparison.reference import Reference, as_tensor
from cbam_deploy.errors import BadInput
from cbam_deploy.graphs.origins import Place, places, stretch
from cbam_deploy.numerics.metrics import tensor_error
from cbam_deploy.numerics.tensors import Feeds, TensorSpec
from cbam_deploy.numerics.tolerances import Tolerance, check
from cbam_deploy.runtimes.base import Runner
from cbam_deploy.runtimes.pytorch import own_array
from cbam_deploy.tracing.torch_graph import export_program

if TYPE_CHECKING:
    import onnx_ir as ir

# The comparable values in the graph's order; the others and why they are not.
LayerComparison = tuple[list[LayerError], list[tuple[Place, str]]]
# A runner of the file that also gives out the values of these names.
Open = Callable[[Sequence[str]], Runner]


def compare_layers(
    model: ir.Model,
    program: Program,
    *,
    title: str,
    layers: Layers,
    tolerance: Tolerance,
    open_runner: Open,
) -> LayerReport:
    """Compare values inside `artefact` with the reference's on one small batch.

    Args:
        model: of an ONNX file.
        program: the model it was made from, and what to feed to both.
        title: what to call the file in messages.
        layers: which values, see the module's docstring.
        tolerance: for each value.
        open_runner: makes a runner of the file that gives out the values named to it as well.

    Raises:
        BadInput: no value is comparable.
    """
    search = _Search(model, program, tolerance, open_runner)
    begin = time.perf_counter()
    compared, unknown = search.everything() if layers == "all" else search.gates()
    outputs = {value.name for value in model.graph.outputs}
    if unknown and all(entry.place.value in outputs for entry in compared):
        raise BadInput(
            f"{title}: none of the values inside it bears a name of the reference's program",
            "give what it was made from; of a PyTorch model, export it again with this torch",
        )
    seconds = time.perf_counter() - begin
    return LayerReport(layers, tolerance, tuple(compared), tuple(unknown), seconds)


class Program(Protocol):
    """What the values of a file are compared with: the attributes and method of the next class."""

    @property
    def feeds(self) -> Feeds:
        """The batch by input name."""

    @property
    def names(self) -> frozenset[str]:
        """Of every value that there is."""

    @property
    def outputs(self) -> Collection[str]:
        """Names of the outputs, in the file's order."""

    def watch(self, wanted: Collection[str], visit: Callable[[str, NDArray[Any]], None]) -> None:
        """Run once; call `visit(name, value)` for each wanted value."""


class ReferenceProgram:
    """A reference as torch's exported program, with one batch of inputs that it runs on.

    Attributes:
        feeds: the batch by input name.
        names: of every value of the program.
        outputs: names of its outputs, in order.
    """

    def __init__(self, reference: Reference, feeds: Feeds, specs: Sequence[TensorSpec]) -> None:
        """Export `reference` for `feeds`, one small batch: every value of it is computed.

        Args:
            reference: the model.
            feeds: the batch by input name.
            specs: names and free axes of the inputs.
        """
        self.feeds = feeds
        self._inputs = inputs = [as_tensor(array) for array in feeds.values()]
        examples = [
            torch.zeros(
                (2 if isinstance(spec.shape[0], str) else len(tensor), *tensor.shape[1:]),
                dtype=tensor.dtype,
            )
            for tensor, spec in zip(inputs, specs, strict=True)
        ]
        exported = export_program(reference.module, examples, None, reference.label, specs)
        assert exported.exported_program is not None
        self._program = exported.exported_program
        self.names = frozenset(node.name for node in self._program.graph.nodes)
        self.outputs = self._program.graph_signature.user_outputs

    def watch(self, wanted: Collection[str], visit: Callable[[str, NDArray[Any]], None]) -> None:
        """Run once; call `visit(name, value)` for each wanted value as soon as it is there."""
        watcher = _Watcher(self.module, wanted, visit)
        with torch.inference_mode():
            watcher.run(*self.arguments(self._inputs), enable_io_processing=False)

    @property
    def module(self) -> torch.fx.GraphModule:
        """Its graph, to be run with `arguments`."""
        module: torch.fx.GraphModule = self._program.graph_module
        return module

    def arguments(self, tensors: Sequence[torch.Tensor]) -> list[Any]:
        """State, and `tensors` as inputs, in the order of the program's placeholders."""
        inputs = iter(tensors)
        state = {**self._program.state_dict, **self._program.constants}
        return [
            next(inputs) if spec.kind is InputKind.USER_INPUT else state[str(spec.target)]
            for spec in self._program.graph_signature.input_specs
        ]


class _Watcher(torch.fx.Interpreter):
    def __init__(
        self,
        module: torch.fx.GraphModule,
        wanted: Collection[str],
        visit: Callable[[str, NDArray[Any]], None],
    ) -> None:
        super().__init__(module, garbage_collect_values=True)
        self._wanted = wanted
        self._visit = visit

    def run_node(self, node: torch.fx.Node) -> Any:
        value = super().run_node(node)
        if node.name in self._wanted and isinstance(value, torch.Tensor):
            self._visit(node.name, own_array(value))
        return value


@dataclass(frozen=True)
class _Search:
    model: ir.Model
    program: Program
    tolerance: Tolerance
    open_runner: Open

    def everything(self) -> LayerComparison:
        return self._compare(places(self.model))

    def gates(self) -> LayerComparison:
        every_place = places(self.model)
        outputs = {value.name for value in self.model.graph.outputs}
        checkpoints = [p for p in every_place if p.is_gate or p.value in outputs]
        compared, unknown = self._compare(checkpoints)
        first = next((entry for entry in compared if entry.failures), None)
        if first is not None:
            good = {entry.place.value for entry in compared if not entry.failures}
            suspects = stretch(self.model, first.place.value, good) - {first.place.value}
            inner, inner_unknown = self._compare([p for p in every_place if p.value in suspects])
            order = {place.value: position for position, place in enumerate(every_place)}
            compared = sorted([*compared, *inner], key=lambda entry: order[entry.place.value])
            unknown = [*unknown, *inner_unknown]
        return compared, unknown

    def _compare(self, wanted: Sequence[Place]) -> LayerComparison:
        """Errors of the comparable values in the order of `wanted`, and why others are not."""
        names = self._reference_names(wanted)
        actual = self._run_onnx([place.value for place in wanted if place.value in names])
        by_reference_name = {names[value]: value for value in actual}
        found: dict[str, LayerError] = {}
        reasons = {p.value: "not in the reference" for p in wanted if p.value not in names}
        place_of = {place.value: place for place in wanted}

        def visit(name: str, reference: NDArray[Any]) -> None:
            value = by_reference_name[name]
            computed = actual.pop(value)
            if computed.shape != reference.shape:
                shapes = f"{list(computed.shape)}, in the reference {list(reference.shape)}"
                reasons[value] = f"of shape {shapes}"
                return
            error = tensor_error(value, reference, computed, self.tolerance.channels)
            found[value] = LayerError(place_of[value], error, check(error, self.tolerance))

        self.program.watch(frozenset(by_reference_name), visit)
        reasons.update(dict.fromkeys(actual, "not a tensor in the reference"))
        return (
            [found[place.value] for place in wanted if place.value in found],
            [(place, reasons[place.value]) for place in wanted if place.value in reasons],
        )

    def _reference_names(self, wanted: Sequence[Place]) -> dict[str, str]:
        """Name in the reference by value name; outputs correspond by position."""
        outputs = [value.name for value in self.model.graph.outputs]
        renamed = dict(zip(outputs, self.program.outputs, strict=False))
        names = {place.value: renamed.get(place.value, place.value) for place in wanted}
        return {value: name for value, name in names.items() if name in self.program.names}

    def _run_onnx(self, values: list[str]) -> dict[str, NDArray[np.generic]]:
        outputs = {value.name for value in self.model.graph.outputs}
        extra = tuple(value for value in values if value not in outputs)
        with self.open_runner(extra) as runner:
            computed = runner.infer(self.program.feeds)
        return {value: computed[value] for value in values}
