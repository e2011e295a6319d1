"""Run ONNX files with ONNX Runtime, on the CPU or on a CUDA GPU."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from cbam_deploy.artefacts import Artefact, OnnxFile
from cbam_deploy.errors import BadInput, MissingCapability, installation_of
from cbam_deploy.graphs.onnx_file import read_model
from cbam_deploy.graphs.session import CPU, open_session, refusal
from cbam_deploy.numerics.feeds import check_feeds
from cbam_deploy.numerics.tensors import Arrays, TensorSpec
from cbam_deploy.runtimes.base import Execution, Runner, check_batch_axis, known_device

INSTALL_CUDA = f"{installation_of('cuda')}, on a machine with an NVIDIA GPU; or use --device cpu"
CUDA = "CUDAExecutionProvider"
DTYPES = {"float": "float32", "double": "float64"}


class OnnxRuntimeRunner(Runner):
    """An ONNX model in ONNX Runtime, its graph optimizations on.

    Args:
        model: path of an ONNX file, or a model.
        device: ``cpu`` (also for None) or ``cuda``. On CUDA, FP32 stays FP32: TF32 is off.
        threads: threads within one operator; ONNX Runtime's choice (one per core) by default.
        extra_outputs: names of values inside the graph to return as outputs too. An optimization
            that would remove such a value is not made, so its numbers are those of the graph.
        folder: where a model's external data lies; of a file it is the file's own.
        title: what to call a model in messages; a file is called by its path.
        precision: of the model; like the next one, as `open_session` has it.
        exact_biases: leave the biases of 8-bit layers as they are.

    Activating raises:
        BadInput: the model cannot be read or run, or has no value of a name in `extra_outputs`.
        MissingCapability: `device` is ``cuda`` and ONNX Runtime cannot use CUDA here.
    """

    def __init__(
        self,
        model: str | Path | onnx.ModelProto,
        device: str | None = None,
        *,
        threads: int | None = None,
        extra_outputs: Sequence[str] = (),
        folder: str | Path | None = None,
        title: str = "the model",
        precision: str | None = None,
        exact_biases: bool = False,
    ) -> None:
        device = known_device(device)
        self.name = f"onnxruntime-{device}"
        self.title = title if isinstance(model, onnx.ModelProto) else str(model)
        self._model, self._device, self._threads = model, device, threads
        self._extra, self._folder = tuple(extra_outputs), folder
        self._precision, self.exact_biases = precision, exact_biases
        self._session: Any = None

    @classmethod
    def of(
        cls,
        file: Artefact | Path,
        device: str | None,
        threads: int | None,
        extra_outputs: Sequence[str] = (),
    ) -> OnnxRuntimeRunner:
        """The runner of a file, opened or not."""
        path = file.path if isinstance(file, Artefact) else file
        precision = file.precision if isinstance(file, Artefact) else None
        if extra_outputs and isinstance(file, OnnxFile):
            model, folder = ir.to_proto(file.model), path.parent
            return cls(
                model,
                device,
                threads=threads,
                extra_outputs=extra_outputs,
                folder=folder,
                title=str(path),
                precision=precision,
            )
        return cls(path, device, threads=threads, extra_outputs=extra_outputs, precision=precision)

    def activate(self) -> None:
        """Load the model into a session."""
        model, folder = self._model, self._folder
        if self._extra and not isinstance(model, onnx.ModelProto):
            # With weights behind links in it, which ONNX Runtime follows only from a path.
            model, folder = ir.to_proto(read_model(model)), Path(model).parent
        if isinstance(model, onnx.ModelProto):
            _add_outputs(model, self._extra, self.title)
        self._session = open_session(
            model.SerializeToString() if isinstance(model, onnx.ModelProto) else model,
            self.title,
            providers=_providers(self._device),
            threads=self._threads,
            folder=folder,
            precision=self._precision,
            exact_biases=self.exact_biases,
        )
        if self._device == "cuda" and CUDA not in self._session.get_providers():
            raise MissingCapability("ONNX Runtime cannot start CUDA on this machine", INSTALL_CUDA)
        self.inputs = tuple(_spec(value) for value in self._session.get_inputs())
        self.outputs = tuple(_spec(value) for value in self._session.get_outputs())
        check_batch_axis(self.title, self.inputs)

    def deactivate(self) -> None:
        """Free the session."""
        self._session = None

    def infer(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run once; raises `BadInput` when `feeds` do not fit the inputs, or a node cannot run."""
        check_feeds(feeds, self.inputs, self.batch_range)
        names = [spec.name for spec in self.outputs]
        try:
            return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        except Exception as error:  # ONNX Runtime's exceptions share no base class but this.
            raise refusal(self.title, "run", error) from error

    def prepare(self, feeds: Arrays) -> Execution:
        """Put `feeds` and room for the outputs on the device; raises like `infer`."""
        from onnxruntime import OrtValue

        binding = self._session.io_binding()
        outputs = self.infer(feeds)
        for name, array in feeds.items():
            value = OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._device, 0)
            binding.bind_ortvalue_input(name, value)
        for name, result in outputs.items():
            value = OrtValue.ortvalue_from_numpy(result, self._device, 0)
            binding.bind_ortvalue_output(name, value)
        return _BoundExecution(self._session, binding)


class _BoundExecution(Execution):
    """A session with its inputs and outputs bound: no copies while it is timed."""

    def __init__(self, session: Any, binding: Any) -> None:
        self._session, self._binding = session, binding

    def measure(self, runs: int) -> NDArray[np.float64]:
        """Wall-clock seconds of each run, until the outputs are complete on the device."""
        run, binding = self._session.run_with_iobinding, self._binding
        seconds = np.empty(runs)
        for index in range(runs):
            start = time.perf_counter_ns()
            run(binding)
            binding.synchronize_outputs()
            seconds[index] = (time.perf_counter_ns() - start) * 1e-9
        return seconds


def _add_outputs(model: onnx.ModelProto, names: Iterable[str], title: str) -> None:
    """Make `model` also return the values `names` of its top-level graph.

    Raises:
        BadInput: no node of its graph computes a value of that name.
    """
    computed = {name for node in model.graph.node for name in node.output}
    present = {output.name for output in model.graph.output}
    for name in dict.fromkeys(names):
        if name not in computed:
            raise BadInput(f"{title}: no node computes {name!r}", "check the value's name")
        if name not in present:
            model.graph.output.add(name=name)


def _providers(device: str) -> list[Any]:
    """What runs the operators, in order of preference; what CUDA lacks runs on the CPU."""
    if device == "cpu":
        return [*CPU]
    import onnxruntime as ort

    if CUDA not in ort.get_available_providers():
        raise MissingCapability("the installed ONNX Runtime was built without CUDA", INSTALL_CUDA)
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA and cuDNN from their pip packages
    return [(CUDA, {"use_tf32": "0"}), *CPU]


def _spec(value: Any) -> TensorSpec:
    """ONNX Runtime's description of an input or output; unnamed free sizes get a name."""
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(
        f"{value.name}_{axis}" if size is None else size for axis, size in enumerate(value.shape)
    )
    return TensorSpec(value.name, shape, DTYPES.get(kind, kind))
