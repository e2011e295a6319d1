"""Time the nodes of ONNX Runtime's graph by its own profiler, and name them as the file does."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from cbam_deploy.profiling.runs import middle_runs
from cbam_deploy.runtimes.base import Execution
from cbam_deploy.runtimes.onnxruntime import providers_of

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
    """The timer of an ONNX file; raises `BadInput` where ONNX Runtime cannot load it."""
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
            providers=providers_of(contender.source.device or "cpu"),
            threads=contender.source.threads,
            folder=file.path.parent,
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
        """The nodes, each with its mean over the middle half of the runs."""
        graph = onnx.load(self._optimized, load_external_data=False) if self._optimized else None
        names = OptimizedGraph(self._model, graph)
        written = self.end()
        assert written is not None
        nodes = node_times(json.loads(Path(written).read_bytes()))
        runs = middle_runs(np.sum([node.seconds for node in nodes], axis=0))
        return [
            Kernel(
                node.name,
                node.operator,
                float(node.seconds[runs].mean()),
                precision_of(node.types),
                names.nodes_of(node.name),
                CONVERSIONS.get(node.operator, ""),
            )
            for node in nodes
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


def node_times(events: Sequence[dict[str, Any]]) -> list[NodeTime]:
    """The nodes in the events that ONNX Runtime writes, run by run; all but the first run.

    A node that runs others, such as If, counts with what they take; they are left out. A run that
    is not complete is left out too.

    Raises:
        BadInput: the events hold no complete run but the first.
    """
    found: dict[tuple[str, str], _Durations] = {}
    run, ends = 0, -1.0
    nodes = (event for event in events if event.get("cat") == "Node")
    kernels = [event for event in nodes if str(event["name"]).endswith(_KERNEL)]
    bounds = [e["ts"] + e["dur"] for e in events if e.get("name") == "model_run"]
    for event in sorted(kernels, key=lambda event: (event["ts"], -event["dur"])):
        start, facts = event["ts"], event["args"]
        while run < len(bounds) and start > bounds[run]:
            run += 1
        if start + event["dur"] < ends:
            continue  # Within the node before.
        ends = start + event["dur"]
        name = str(event["name"]).removesuffix(_KERNEL)
        types = [next(iter(shape)) for kind in ("input", "output")
                 for shape in facts.get(f"{kind}_type_shape", []) if shape]  # fmt: skip
        key = (name, str(facts.get("node_index", "")))
        entry = found.setdefault(key, _Durations(str(facts.get("op_name", "")), tuple(types)))
        entry.seconds[run] = entry.seconds.get(run, 0.0) + event["dur"] * 1e-6
    counted = range(1, len(bounds))
    if not counted or not found:
        raise BadInput("ONNX Runtime's profiler saw no run to its end", "give it more time")
    return [
        NodeTime(name, node.operator, node.types, np.array([node.seconds.get(r, 0) for r in counted]))
        for (name, _), node in found.items()
    ]
