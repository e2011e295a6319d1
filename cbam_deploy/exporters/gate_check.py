"""Run a gate of standard ops against the node that shall replace it, on random and extreme inputs.

Both compute in FP32 and round differently, so they may differ by about what rounding does to the
gate in question: little on most inputs, much where large terms cancel in front of a sigmoid. That
is measured. The original gate is run again on inputs whose last bits (relative 2^-20, sixteen units
in the last place) are changed at random, `DRAWS` times, as a single draw may by chance spare the
one element that matters. The replacement may differ by `SENSITIVITIES` times the largest change,
plus 2^-20 of the largest input: a sigmoid near 0 is exact to about 2^-24 of 1, not of itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from cbam_deploy.exporters.gate_function import DOMAIN, GROUPS, VERSION, gate_function
from cbam_deploy.exporters.gate_search import FoundGate

SENSITIVITIES = 8
DRAWS = 4
LAST_BITS = 2.0**-20

_X, _R, _ORIGINAL, _FUSED = "X", "R", "original", "fused"
Maps = dict[str, NDArray[np.float32]]


def find_difference(gate: FoundGate, opset: int) -> str | None:
    """A sentence that says where `gate` and its replacement differ, None where they agree.

    Args:
        gate: a gate of a graph.
        opset: version of ONNX's own operators in its model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    channels = len(gate.weights["B1"])
    random = np.random.default_rng(channels)
    try:
        session = onnxruntime.InferenceSession(
            _both(gate, opset).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for name, maps in _trials(channels, gate.residual is not None, random):
            original, fused = session.run([_ORIGINAL, _FUSED], maps)
            change = 0.0
            for _ in range(DRAWS):
                shaken = {key: _shaken(array, random) for key, array in maps.items()}
                (moved,) = session.run([_ORIGINAL], shaken)
                change = max(change, _largest(moved - original))
            allowed = SENSITIVITIES * change + LAST_BITS * max(map(_largest, maps.values()))
            error = _largest(fused - original)
            if not error <= allowed:
                return f"on {name} its replacement differs by {error:.1e}, {allowed:.1e} is allowed"
    except Exception as error:  # ONNX Runtime has no common base for its exceptions.
        return f"it cannot be run alone ({' '.join(str(error).split())[:120]})"
    return None


def _both(gate: FoundGate, opset: int) -> onnx.ModelProto:
    """A model that computes the gate both ways from the same X and R."""
    helper = onnx.helper
    names = [_X] if gate.residual is None else [_X, _R]
    maps = {gate.x: _X, gate.output: _ORIGINAL}
    if gate.residual is not None:
        maps[gate.residual] = _R
    # Names of the graph get a prefix, so that none of them is one of ours.
    nodes, constants = [], {}
    for node in gate.nodes:
        proto = ir.to_proto(node)
        del proto.input[:], proto.output[:]
        for value in node.inputs:
            tensor = (
                None if value is None or value in maps else ir.convenience.get_const_tensor(value)
            )
            if value is not None and tensor is not None:
                constants[f"_{value.name}"] = tensor.numpy()
            proto.input.append("" if value is None else maps.get(value, f"_{value.name}"))
        proto.output.extend(maps.get(value, f"_{value.name}") for value in node.outputs)
        nodes.append(proto)
    nodes.append(helper.make_node(gate.op, [*names, *gate.weights], [_FUSED], domain=DOMAIN))
    channels = len(gate.weights["B1"])
    shape: list[int | str | None] = ["N", channels, "H", "W"]

    def value_info(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "gate",
        [value_info(name) for name in names],
        [value_info(_ORIGINAL), value_info(_FUSED)],
        [
            onnx.numpy_helper.from_array(array, name)
            for name, array in (constants | gate.weights).items()
        ],
    )
    function = gate_function(gate.op, opset, grouped=channels % GROUPS == 0)
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)],
        functions=[ir.serde.serialize_function(function)],
        ir_version=10,
    )


def _trials(
    channels: int, residual: bool, random: np.random.Generator
) -> Iterator[tuple[str, Maps]]:
    """Inputs by name, and what they are like."""

    def normal(batch: int, height: int, width: int) -> NDArray[np.float32]:
        return random.standard_normal((batch, channels, height, width), dtype=np.float32)

    spike = normal(1, 6, 5)
    spike[0, channels // 2, 3, 2] = 1e4
    kinds = {
        "noise": normal(2, 7, 9),
        "one position": normal(3, 1, 1),
        "negative values": -np.abs(normal(2, 5, 4)) - 1,
        "large values": 1e4 * normal(1, 8, 8),
        "tiny values": 1e-30 * normal(1, 4, 9),
        "zeros": np.zeros((1, channels, 3, 3), np.float32),
        "a spike": spike,
    }
    for name, x in kinds.items():
        maps = {_X: x.astype(np.float32)}
        if residual:
            maps[_R] = random.permutation(x.reshape(-1)).reshape(x.shape).astype(np.float32)
        yield name, maps


def _shaken(array: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """`array` with a random sign times `LAST_BITS` of each element added to it."""
    signs = random.choice(np.array([-1, 1], np.float32), size=array.shape)
    return (array * (1 + signs * LAST_BITS)).astype(np.float32)


def _largest(array: NDArray[np.float32]) -> float:
    return float(np.abs(array).max())
