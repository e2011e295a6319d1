"""INT8 within an accuracy budget: the layers that add the most noise go back to float.

The noise of a layer is the signal-to-noise ratio of its output with only that layer quantized:
once it computes on what the float network gives it, once on the same and its weight rounded to
INT8. In that order `exporters.fewest_kept` looks for the fewest layers to give back such that the
budget holds; the accuracy is measured with each choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from cbam_deploy.errors import CheckFailed
from cbam_deploy.exporters.fewest_kept import fewest_kept
from cbam_deploy.exporters.int8.calibration import Calibration, Images, watch
from cbam_deploy.exporters.int8.placement import QuantizedNode, quantized_nodes
from cbam_deploy.exporters.int8.qdq import weight_scales
from cbam_deploy.exporters.int8.quantization import activation_scales, fake_quantize
from cbam_deploy.graphs.session import open_session
from cbam_deploy.numerics.metrics import ErrorAccumulator
from cbam_deploy.progress import progress
from cbam_deploy.report.content import Section, Table
from cbam_deploy.report.result import Result
from cbam_deploy.report.units import TOP1, MetricUnit

_NAMED = 3  # Layers that a row of the report has room for; which are float, the INT8 section says.


@dataclass(frozen=True)
class LayerNoise:
    """The noise one layer adds: `snr_db` of its output, infinite where rounding changes nothing."""

    node: str
    operator: str
    snr_db: float


@dataclass(frozen=True)
class BudgetStep:
    """One measurement: the metric's value with the layers `given_back`, the noisiest first."""

    given_back: tuple[str, ...]
    accuracy: float


@dataclass(frozen=True)
class BudgetReport(Result):
    """How the budget was met, or that it was not.

    Attributes:
        baseline: the metric's value of the float32 network.
        max_accuracy_drop: the budget, on the same scale.
        ranking: every layer that INT8 concerns, the noisiest first; empty where none had to be
            given back.
        steps: the measurements, in order.
        unit: how the metric's values are written.
    """

    schema: ClassVar[str] = "cbam_deploy.budget"
    schema_version: ClassVar[int] = 2

    baseline: float
    max_accuracy_drop: float
    ranking: tuple[LayerNoise, ...]
    steps: tuple[BudgetStep, ...]
    unit: MetricUnit = TOP1

    @property
    def given_back(self) -> tuple[str, ...]:
        """Names of the layers that are float again: of the fewest, what holds best."""
        return self._chosen.given_back

    @property
    def passed(self) -> bool:
        """Whether a measurement is within the budget."""
        return self._holds(self._chosen)

    def _holds(self, step: BudgetStep) -> bool:
        return within(self.baseline, step.accuracy, self.max_accuracy_drop)

    @property
    def _chosen(self) -> BudgetStep:
        holding = [step for step in self.steps if self._holds(step)]
        if not holding:
            return max(self.steps, key=lambda step: step.accuracy)
        return min(holding, key=lambda step: (len(step.given_back), -step.accuracy))

    def failure(self) -> tuple[str, str]:
        """What to tell a person when the budget cannot be met: a message and a hint."""
        best = self._chosen
        return (
            f"INT8 stays more than {self.unit.text(self.max_accuracy_drop)} below the float32"
            f" network's {self.unit.label} of {self.unit.text(self.baseline)}: the best is"
            f" {self.unit.text(best.accuracy)}, with {len(best.given_back)} of"
            f" {len(self.ranking)} layers given back to float",
            "allow a larger drop, calibrate on more pictures or by another method, or use fp16",
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return {**super().to_json(), "given_back": list(self.given_back)}

    def sections(self) -> tuple[Section, ...]:
        """The measurements, and the noisiest layers where any had to be given back."""
        steps = [("(float32)", self.unit.text(self.baseline), "")]
        steps += (
            (
                _listed(step.given_back) or "(all in INT8)",
                self.unit.text(step.accuracy),
                self.unit.signed(step.accuracy - self.baseline),
            )
            for step in self.steps
        )
        change = "points" if self.unit.share else "change"
        tables = [Table(("given back to float", self.unit.label, change), tuple(steps))]
        noisiest = self.ranking[: max(10, len(self.given_back))]
        if noisiest:
            rows = tuple((x.node, x.operator, f"{x.snr_db:.1f} dB") for x in noisiest)
            tables.append(Table(("noisiest layers", "operator", "SNR"), rows, text_columns=2))
        return (Section("Accuracy budget", passed=self.passed, tables=tuple(tables)),)


def _listed(layers: tuple[str, ...]) -> str:
    return ", ".join(layers) if len(layers) <= _NAMED else f"{len(layers)} layers"


def meet_budget(
    model: ir.Model,
    calibration: Calibration,
    *,
    baseline: float,
    max_accuracy_drop: float,
    evaluate: Callable[[frozenset[str]], float],
    sample: Callable[[], Iterable[Images]],
    unit: MetricUnit = TOP1,
) -> BudgetReport:
    """Find the fewest layers to give back to float such that the budget holds.

    Args:
        model: a float32 network, as `quantization.prepare` gives it.
        calibration: its ranges.
        baseline: its value of a metric, the larger the better.
        max_accuracy_drop: how far that may fall.
        evaluate: the value of the quantized network with the layers of these names in float.
        sample: gives network inputs to measure the layers' noise on; called only when layers must
            be given back.
        unit: how the metric's values are written.

    Raises:
        CheckFailed: the budget does not even hold with every layer in float.
        BadInput: the budget is negative, or above 1 where the metric is a share.
    """
    unit.check_drop(max_accuracy_drop)
    steps = [BudgetStep((), evaluate(frozenset()))]
    ranking: tuple[LayerNoise, ...] = ()

    def holds(kept: frozenset[str]) -> bool:
        given_back = tuple(layer.node for layer in ranking if layer.node in kept)
        steps.append(BudgetStep(given_back, evaluate(kept)))
        return within(baseline, steps[-1].accuracy, max_accuracy_drop)

    if not within(baseline, steps[0].accuracy, max_accuracy_drop):
        ranking = rank_layers(model, calibration, sample())
        fewest_kept([(layer.node,) for layer in ranking], holds)
    result = BudgetReport(baseline, max_accuracy_drop, ranking, tuple(steps), unit)
    if not result.passed:
        raise CheckFailed(*result.failure())
    return result


def rank_layers(
    model: ir.Model, calibration: Calibration, batches: Iterable[Images]
) -> tuple[LayerNoise, ...]:
    """The layers that INT8 concerns, the noisiest first.

    Memory does not grow with the number of pictures (see `calibration.watch`).

    Args:
        model: a float32 network, as `quantization.prepare` gives it.
        calibration: its ranges.
        batches: network inputs, float32 [N, C, H, W] each.
    """
    chosen = quantized_nodes(model)
    scales = activation_scales(calibration, chosen)
    nodes = {node.name: node for node in model.graph}
    layers = [_Layer(model, nodes[operation.node], operation, scales) for operation in chosen]
    tensors = dict.fromkeys(name for layer in layers for name in layer.activations)
    with progress() as bar:
        task = bar.add_task("measuring the noise of each layer", total=None)
        for values, count in watch(model, list(tensors), batches):
            for layer in layers:
                layer.add(values)
            bar.advance(task, count)
    return tuple(sorted((layer.noise() for layer in layers), key=lambda noise: noise.snr_db))


def within(baseline: float, accuracy: float, max_drop: float) -> bool:
    """Whether a metric's value is not further below the baseline than allowed."""
    # Most metrics are quotients of counts, rounded to float64.
    return baseline - accuracy <= max_drop + 1e-12


class _Layer:
    """One layer by itself: a session that computes it, fed with values as they are and rounded."""

    def __init__(
        self, model: ir.Model, node: ir.Node, operation: QuantizedNode, scales: Mapping[str, float]
    ) -> None:
        self._operation = operation
        self._error = ErrorAccumulator(operation.node)
        self._session = _session_of(model, node)
        names = [value.name for value in node.inputs if value is not None and value.name]
        weights = model.graph.initializers
        self.activations = tuple(name for name in names if name not in weights)
        self._weights = {name: _array(weights[name]) for name in names if name in weights}
        self._rounded = dict(self._weights)
        if operation.weight is not None and operation.axis is not None:
            self._rounded[operation.weight] = _rounded_weight(
                self._weights[operation.weight], operation.axis
            )
        self._scales = {name: scales[name] for name in operation.reads}
        self._result_scale = scales[operation.writes] if operation.writes is not None else None

    def add(self, values: dict[str, NDArray[np.float32]]) -> None:
        """Compute the layer on one batch of its inputs, both ways."""
        inputs = {name: values[name] for name in self.activations}
        rounded = {
            name: fake_quantize(value, self._scales[name]) if name in self._scales else value
            for name, value in inputs.items()
        }
        reference = self._session.run(None, {**inputs, **self._weights})[0]
        actual = self._session.run(None, {**rounded, **self._rounded})[0]
        if self._result_scale is not None:
            actual = fake_quantize(actual, self._result_scale)
        self._error.add(reference, actual)

    def noise(self) -> LayerNoise:
        """The result over all batches."""
        return LayerNoise(
            self._operation.node, self._operation.operator, self._error.result().snr_db
        )


def _rounded_weight(weight: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    shape = [-1 if dimension == axis else 1 for dimension in range(weight.ndim)]
    return fake_quantize(weight, weight_scales(weight, axis).reshape(shape))


def _array(value: ir.Value) -> NDArray[Any]:
    if value.const_value is None:
        raise ValueError(f"initializer {value.name!r} has no data")
    return value.const_value.numpy()


def _session_of(model: ir.Model, node: ir.Node) -> Any:
    """A session of one node; its weights are inputs like the others."""
    import onnx

    node_proto = ir.to_proto(node)
    body = model.functions.get(node.op_identifier())
    types = {value.name: value.dtype for value in node.inputs if value is not None}
    inputs = [
        onnx.helper.make_tensor_value_info(name, int(types[name] or ir.DataType.FLOAT), None)
        for name in dict.fromkeys(node_proto.input)
        if name
    ]
    output = onnx.helper.make_tensor_value_info(node_proto.output[0], onnx.TensorProto.FLOAT, None)
    alone = onnx.helper.make_model(
        onnx.helper.make_graph([node_proto], "layer", inputs, [output]),
        functions=[] if body is None else [ir.to_proto(body)],
        opset_imports=[onnx.helper.make_opsetid(*item) for item in model.opset_imports.items()],
        ir_version=model.ir_version,
    )
    return open_session(alone.SerializeToString(), f"layer {node.name}")
