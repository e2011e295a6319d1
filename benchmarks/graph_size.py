"""CPU seconds of `fuse` and `inspect` by the number of nodes of the graph.

    OMP_NUM_THREADS=1 python benchmarks/graph_size.py

Four kinds of graph: chains of Identity, of Relu, and of Conv nodes (each with a weight of 1.6 kB of
its own), and a chain of Relu nodes with a CBAM gate of standard ops, residual and ReLU, 16 nodes,
in every 400. Each figure is the user and system time of one call in a process that has fused and
inspected a small graph before.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cbam_deploy.exporters.gates.fusion import fuse
from cbam_deploy.inspection import inspect

CHANNELS, HIDDEN, EVERY = 20, 4, 400


def chain(nodes: int, op: str, *, gates: bool) -> onnx.ModelProto:
    """A graph of about `nodes` nodes."""
    made: list[onnx.NodeProto] = []
    last = "x"

    def add(kind: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(made)}"
        made.append(helper.make_node(kind, inputs, [name], name=f"n{len(made)}", **attributes))
        return name

    convolutions = []
    while len(made) < nodes:
        if gates and len(made) % EVERY >= EVERY - 20:
            last = gate(add, last)
        inputs = [last]
        if op == "Conv":
            array = np.full((CHANNELS, CHANNELS, 1, 1), 0.1, np.float32)
            convolutions.append(numpy_helper.from_array(array, f"c{len(made)}"))
            inputs.append(convolutions[-1].name)
        last = add(op, *inputs)
    shape = ["N", CHANNELS, "H", "W"]
    made.append(helper.make_node("Identity", [last], ["y"]))
    graph = helper.make_graph(
        made,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [*weights(), *convolutions],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def weights() -> list[onnx.TensorProto]:
    random = np.random.default_rng(0)
    arrays = {
        "w0": random.normal(0, 0.3, (HIDDEN, CHANNELS, 1, 1)).astype(np.float32),
        "w1": random.normal(0, 0.3, (CHANNELS, HIDDEN, 1, 1)).astype(np.float32),
        "ws": random.normal(0, 0.1, (1, 2, 7, 7)).astype(np.float32),
        "positions": np.array([2, 3]),
        "channels": np.array([1]),
    }
    return [numpy_helper.from_array(array, name) for name, array in arrays.items()]


def gate(add: Callable[..., str], x: str) -> str:
    """relu(CBAM(x) + x)."""
    logits = [
        add("Conv", add("Relu", add("Conv", add(pool, x, "positions"), "w0")), "w1")
        for pool in ("ReduceMean", "ReduceMax")
    ]
    z = add("Mul", x, add("Sigmoid", add("Add", *logits)))
    pooled = [add(pool, z, "channels") for pool in ("ReduceMax", "ReduceMean")]
    spatial = add("Conv", add("Concat", *pooled, axis=1), "ws", pads=[3] * 4)
    return add("Relu", add("Add", add("Mul", z, add("Sigmoid", spatial)), x))


def cpu_seconds(call: Callable[[], object]) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF)
    call()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    sizes = parser.parse_args().nodes
    print("| graph | nodes | fuse, CPU s | inspect, CPU s |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        source, fused = Path(folder) / "chain.onnx", Path(folder) / "fused.onnx"
        onnx.save(chain(400, "Relu", gates=True), source)
        fuse(source, fused), inspect(fused)
        for name, op, gates in (
            ("Identity", "Identity", False),
            ("Relu", "Relu", False),
            ("Conv", "Conv", False),
            ("Relu and gates", "Relu", True),
        ):
            for nodes in sizes:
                onnx.save(chain(nodes, op, gates=gates), source)
                fusing = cpu_seconds(lambda: fuse(source, fused))
                inspecting = cpu_seconds(lambda: inspect(fused))
                print(f"| {name} | {nodes:,} | {fusing:.2f} | {inspecting:.2f} |", flush=True)


if __name__ == "__main__":
    main()
