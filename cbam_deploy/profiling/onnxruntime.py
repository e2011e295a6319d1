"""Time the nodes of ONNX Runtime's graph by its own profiler, and name them as the file does."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from cbam_deploy.artefacts import OnnxFile
from cbam_deploy.benchmarking.benchmark import Contender
from cbam_deploy.errors import BadInput
from cbam_deploy.graphs.onnx_file import MAX_EMBEDDED_BYTES
from cbam_deploy.graphs.session import open_session, refusal
from cbam_deploy.numerics.tensors import Arrays
from cbam_deploy.outputs import scratch_folder
from cbam_deploy.profiling.kernels import CONVERSIONS, Kernel, LayerTimer, precision_of
from cbam_deploy.profiling.optimized import OptimizedGraph, with_own_names
from cbam_deploy.profiling.runs import typical
from cbam_deploy.runtimes.base import Execution

_KERNEL = "_kernel_time"


@dataclass(frozen=True)
class NodeTime:
    """What one node took in the runs that ended.

    Attributes:
        name: as ONNX Runtime calls it.
        operator: its type.
        types: of its inputs, then of its outputs.
        seconds: of each run, shape [runs].
    """

    name: str
    operator: str
    types: tuple[str, ...]
    seconds: NDArray[np.float64]


@contextmanager
def layer_timer(contender: Contender) -> Iterator[LayerTimer]:
    """The timer of an ONNX file on the CPU; raises `BadInput` where ONNX Runtime cannot load it."""
    file = contender.file
    assert isinstance(file, OnnxFile)
    model = with_own_names(file.model)
    weights = (value.const_value for value in model.graph.initializers.values())
    small = sum(weight.nbytes for weight in weights if weight is not None) < MAX_EMBEDDED_BYTES
    with scratch_folder() as folder:
        optimized = folder / "optimized.onnx"
        session = open_session(
            ir.to_proto(model).SerializeToString(),
            str(file.path),
            threads=contender.source.threads,
            folder=file.path.parent,
            precision=file.precision,
            profile=folder / "nodes",
            optimized=optimized if small else None,
        )
        timer = _Timer(
            session, contender.feeds, model, optimized if small else None, str(file.path)
        )
        try:
            yield timer
        finally:
            timer.end()


class _Timer(LayerTimer):
    def __init__(
        self, session: Any, feeds: Arrays, model: ir.Model, optimized: Path | None, title: str
    ) -> None:
        self.execution = _Profiled(session, feeds, title)
        self._session, self._model, self._optimized = session, model, optimized

    def end(self) -> str | None:
        """End profiling, if that was not done; the name of the file that holds the times."""
        session, self._session = self._session, None
        return None if session is None else str(session.end_profiling())

    def kernels(self) -> Sequence[Kernel]:
        """The nodes, each with what it typically takes."""
        graph = onnx.load(self._optimized, load_external_data=False) if self._optimized else None
        names = OptimizedGraph(self._model, graph)
        written = self.end()
        assert written is not None
        nodes = node_times(Path(written).read_bytes())
        return [
            Kernel(
                node.name,
                node.operator,
                float(seconds),
                precision_of(node.types),
                names.nodes_of(node.name),
                "reorder" if node.name in names.moves else CONVERSIONS.get(node.operator, ""),
            )
            for node, seconds in zip(nodes, typical([n.seconds for n in nodes]), strict=True)
        ]


class _Profiled(Execution):
    def __init__(self, session: Any, feeds: Arrays, title: str) -> None:
        self._session, self._feeds, self._title = session, dict(feeds), title

    def measure(self, runs: int) -> NDArray[np.float64]:
        """Wall-clock seconds of each run, the profiler's work in it."""
        seconds = np.empty(runs)
        for index in range(runs):
            start = time.perf_counter_ns()
            try:
                self._session.run(None, self._feeds)
            except Exception as error:  # ONNX Runtime's exceptions share no base class but this.
                raise refusal(self._title, "run", error) from error
            seconds[index] = (time.perf_counter_ns() - start) * 1e-9
        return seconds


@dataclass
class _Durations:
    operator: str
    types: tuple[str, ...]
    seconds: dict[int, float] = field(default_factory=dict)


class _Facts(msgspec.Struct):
    op_name: str = ""
    node_index: str = ""
    input_type_shape: list[dict[str, Any]] = []
    output_type_shape: list[dict[str, Any]] = []


class _Event(msgspec.Struct):
    """What ONNX Runtime writes of one thing it did; times in microseconds."""

    cat: str = ""
    name: str = ""
    ts: int = 0
    dur: int = 0
    args: _Facts = msgspec.field(default_factory=_Facts)


def node_times(written: bytes) -> list[NodeTime]:
    """The nodes in what ONNX Runtime's profiler writes, run by run; all but the first run.

    A node within another, such as in a branch of If, counts with that one.

    Raises:
        BadInput: it holds no complete run but the first.
    """
    events = msgspec.json.decode(written, type=list[_Event])
    kernels = [event for event in events if event.cat == "Node" and event.name.endswith(_KERNEL)]
    bounds = [event.ts + event.dur for event in events if event.name == "model_run"]
    found: dict[tuple[str, str], _Durations] = {}
    run, end = 0, -1
    for event in sorted(kernels, key=lambda event: (event.ts, -event.dur)):
        while run < len(bounds) and event.ts > bounds[run]:
            run += 1
        if event.ts + event.dur < end:
            continue
        end = event.ts + event.dur
        key = (event.name.removesuffix(_KERNEL), event.args.node_index)
        if key not in found:
            read, made = event.args.input_type_shape, event.args.output_type_shape
            types = tuple(next(iter(shape)) for shape in (*read, *made) if shape)
            found[key] = _Durations(event.args.op_name, types)
        seconds = found[key].seconds
        seconds[run] = seconds.get(run, 0.0) + event.dur * 1e-6
    counted = range(1, len(bounds))
    if not counted or not found:
        raise BadInput("ONNX Runtime's profiler saw no run to its end", "give it more time")
    return [
        NodeTime(
            name, node.operator, node.types, np.array([node.seconds.get(r, 0) for r in counted])
        )
        for (name, _), node in found.items()
    ]
