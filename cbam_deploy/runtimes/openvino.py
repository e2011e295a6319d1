"""Run ONNX files with OpenVINO, on the CPU.

OpenVINO refuses operators of a domain that it does not know, whatever the file says they mean, so
it gets the model with its functions inlined, in a scratch file.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import ShapeInferencePass

from cbam_deploy.artefacts import Artefact, OnnxFile
from cbam_deploy.errors import BadInput, MissingCapability, in_one_line, installation_of
from cbam_deploy.graphs.function_inlining import inline_functions
from cbam_deploy.graphs.onnx_file import read_model, write_model
from cbam_deploy.graphs.signature import specs_of
from cbam_deploy.numerics.feeds import check_feeds
from cbam_deploy.numerics.tensors import Arrays, TensorSpec
from cbam_deploy.outputs import scratch_folder
from cbam_deploy.runtimes.base import Execution, Runner, check_batch_axis

_TELEMETRY = "openvino_telemetry"


class OpenVinoRunner(Runner):
    """An ONNX model in OpenVINO.

    Floats are computed in FP32, FP16 ones too. OpenVINO's own choice is BF16 where the CPU has it,
    also where FP16 is asked for: 8 bits of precision, of which no file says anything.

    Args:
        file: an ONNX file, opened or not.
        threads: threads within one operator; OpenVINO's choice (one per core) by default.
        extra_outputs: names of values inside the graph to return as outputs too.
        counting: take the time of each operator, for `executed`.

    Creating raises:
        MissingCapability: OpenVINO is not installed.

    Activating raises:
        BadInput: the file cannot be read or run, or has no value of a name in `extra_outputs`.
    """

    def __init__(
        self,
        file: OnnxFile | str | Path,
        *,
        threads: int | None = None,
        extra_outputs: Sequence[str] = (),
        counting: bool = False,
    ) -> None:
        self.name = "openvino-cpu"
        self._openvino = load_openvino()
        self._file, self._threads, self._extra = file, threads, tuple(extra_outputs)
        self._counting = counting
        self.title = str(file.path if isinstance(file, OnnxFile) else file)
        self._compiled: Any = None
        self._request: Any = None

    @classmethod
    def of(
        cls,
        file: Artefact | Path,
        _device: str | None,
        threads: int | None,
        extra_outputs: Sequence[str] = (),
    ) -> OpenVinoRunner:
        """The runner of a file, opened or not, whose device is the CPU."""
        opened = file if isinstance(file, OnnxFile | Path) else file.path
        return cls(opened, threads=threads, extra_outputs=extra_outputs)

    def activate(self) -> None:
        """Inline the model's functions and compile it."""
        file = self._file
        model = file.model.clone() if isinstance(file, OnnxFile) else read_model(file)
        _add_outputs(model, self._extra, self.title)
        self.inputs = tuple(map(_all_named, specs_of(model.graph.inputs)))
        check_batch_axis(self.title, self.inputs)
        inline_functions(model)
        if self._extra:  # What is an output must have a type, which values inside may lack.
            ShapeInferencePass()(model)
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if self._threads is not None:
            options["INFERENCE_NUM_THREADS"] = self._threads
        if self._counting:
            options["PERF_COUNT"] = True
        core = self._openvino.Core()
        with scratch_folder() as folder:
            path = folder / "inlined.onnx"
            write_model(model, path)
            try:
                network = core.read_model(path)
                self._compiled = core.compile_model(network, "CPU", options)
            except Exception as error:  # OpenVINO raises RuntimeError, and more from its bindings.
                raise _refusal(self.title, "load", error) from error
        self.outputs = tuple(map(_all_named, specs_of(model.graph.outputs)))
        self._request = self._compiled.create_infer_request()

    def deactivate(self) -> None:
        """Free the network."""
        self._compiled = self._request = None

    def infer(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run once; raises `BadInput` when `feeds` do not fit the inputs, or a node cannot run."""
        arrays = self._bind(self._request, feeds)
        try:
            self._request.infer(share_outputs=True)
        except Exception as error:
            raise _refusal(self.title, "run", error) from error
        del arrays  # Whose memory was read until here.
        tensors = (self._request.get_output_tensor(index) for index in range(len(self.outputs)))
        return {
            spec.name: np.array(tensor.data)
            for spec, tensor in zip(self.outputs, tensors, strict=True)
        }

    def prepare(self, feeds: Arrays) -> Execution:
        """Put `feeds` into a request of their own; raises like `infer`."""
        request = self._compiled.create_infer_request()
        return _BoundRequest(request, self._bind(request, feeds))

    def executed(self) -> list[dict[str, str]]:
        """OpenVINO's facts of each operator of the graph that it runs, in its order.

        Under the keys that it gives them, such as ``execTimeMcs``: the mean time of all runs so
        far, in whole microseconds, of a network that is `counting`. Its name is under ``name``, and
        that of the operator whose result it reads first under ``reads``.
        """
        facts = []
        for operator in self._compiled.get_runtime_model().get_ordered_ops():
            known = {key: value.astype(str) for key, value in operator.get_rt_info().items()}
            sources = [port.get_source_output().get_node() for port in operator.inputs()]
            reads = sources[0].get_friendly_name() if sources else ""
            facts.append({**known, "name": operator.get_friendly_name(), "reads": reads})
        return facts

    def _bind(self, request: Any, feeds: Arrays) -> list[NDArray[np.generic]]:
        """Let `request` read its inputs where they lie; what is returned must live as long."""
        check_feeds(feeds, self.inputs, self.batch_range)
        arrays = [np.ascontiguousarray(feeds[spec.name]) for spec in self.inputs]
        for spec, array in zip(self.inputs, arrays, strict=True):
            request.set_tensor(spec.name, self._openvino.Tensor(array, shared_memory=True))
        return arrays


class _BoundRequest(Execution):
    """A request with its inputs bound, its outputs left in place: no copies while it is timed."""

    def __init__(self, request: Any, arrays: list[NDArray[np.generic]]) -> None:
        self._request, self._arrays = request, arrays

    def measure(self, runs: int) -> NDArray[np.float64]:
        """Wall-clock seconds of each run, until the outputs are complete."""
        infer = self._request.infer
        seconds = np.empty(runs)
        for index in range(runs):
            start = time.perf_counter_ns()
            infer(share_outputs=True)
            seconds[index] = (time.perf_counter_ns() - start) * 1e-9
        return seconds


def load_openvino() -> Any:
    """OpenVINO, imported so that it reports nothing.

    Raises:
        MissingCapability: it is not installed.
    """
    # Its conversion tools, imported with it, send an event to their makers and leave files in HOME;
    # without the package for that, which is what None says here, they take a stand-in of their own.
    silenced = _TELEMETRY not in sys.modules
    if silenced:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise MissingCapability(
            "running ONNX files in OpenVINO needs the package openvino", installation_of("openvino")
        ) from error
    finally:
        if silenced:
            del sys.modules[_TELEMETRY]
    return openvino


def _add_outputs(model: ir.Model, names: Sequence[str], title: str) -> None:
    """Make `model` also return the values `names` of its top-level graph."""
    computed = {value.name: value for node in model.graph for value in node.outputs}
    for name in dict.fromkeys(names):
        if name not in computed:
            raise BadInput(f"{title}: no node computes {name!r}", "check the value's name")
        if not computed[name].is_graph_output():
            model.graph.outputs.append(computed[name])


def _all_named(spec: TensorSpec) -> TensorSpec:
    """`spec` with a name for each size that the graph leaves open, as in `OnnxRuntimeRunner`."""
    shape = (f"{spec.name}_{n}" if size == "?" else size for n, size in enumerate(spec.shape))
    return replace(spec, shape=tuple(shape))


def _refusal(title: str, verb: str, error: Exception) -> BadInput:
    """What OpenVINO's `error` says of `title`, which it cannot `verb`."""
    reason = in_one_line(error)
    return BadInput(f"{title}: OpenVINO cannot {verb} it ({reason})", "run it in ONNX Runtime")
