"""Run a gate of standard ops against the node that shall replace it, on random and extreme inputs.

Both compute in FP32 and round differently, so they may differ by about what rounding does to the
gate in question: little on most inputs, much where large terms cancel in front of a sigmoid. That
is measured. The original gate is run again on inputs whose last bits (relative 2^-20, sixteen units
in the last place) are changed at random, `DRAWS` times, as a single draw may by chance spare the
one element that matters. The replacement may differ by `SENSITIVITIES` times the largest change,
plus 2^-20 of the largest input: a sigmoid near 0 is exact to about 2^-24 of 1, not of itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.exporters.gates.extraction import FUSED, ORIGINAL, R, X, extract_gate
from cbam_deploy.exporters.gates.matching import Refused
from cbam_deploy.exporters.gates.search import FoundGate
from cbam_deploy.graphs.session import open_session
from cbam_deploy.graphs.shapes import Dims, Shapes

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

SENSITIVITIES = 8
DRAWS = 4
LAST_BITS = 2.0**-20

Map = NDArray[np.float32]
Size = tuple[int, int, int]

# What inputs are like, and the batch, height and width of each.
_SIZES: dict[str, Size] = {
    "noise": (2, 7, 9),
    "one position": (3, 1, 1),
    "negative values": (2, 5, 4),
    "large values": (1, 8, 8),
    "tiny values": (1, 4, 9),
    "zeros": (1, 3, 3),
    "a spike": (1, 6, 5),
}
# C where neither weights nor shapes tell.
_CHANNELS = (8, 5, 12)


def find_difference(gate: FoundGate, opset: int, shapes: Shapes) -> str | None:
    """A sentence that says where `gate` and its replacement differ, None where they agree.

    They are run on maps of several sizes, and where the graph fixes the size, on one of that size.
    A gate that can only be run on its own size is checked on that in full.

    Args:
        gate: a gate of a graph.
        opset: version of ONNX's own operators in its model.
        shapes: of its graph.
    """
    try:
        model = extract_gate(gate, opset, shapes).SerializeToString()
        session = open_session(model, "the gate", threads=1)
    except Refused as refusal:
        return str(refusal)
    except Exception as error:  # What graphs there are may not be made alone in many ways.
        return _cannot_run(error.__cause__ or error)
    dims = shapes.dims(gate.x.value) or (None,) * 4
    if gate.x.channels_last:
        dims = (dims[0], dims[3], *dims[1:3])
    fixed = any(isinstance(dims[axis], int) for axis in (0, 2, 3))
    difference = _difference(session, gate, _SIZES)
    if not fixed:
        return difference
    if difference is None:
        return _difference(session, gate, {"noise": _SIZES["noise"]}, dims)
    return _difference(session, gate, _SIZES, dims)


def _difference(
    session: InferenceSession, gate: FoundGate, sizes: dict[str, Size], dims: Dims = (None,) * 4
) -> str | None:
    """Where the two differ on maps of `sizes`, but for what `dims` fixes."""
    random = np.random.default_rng(gate.channels or 0)
    for number, (name, (batch, height, width)) in enumerate(sizes.items()):
        channels = gate.channels or _CHANNELS[number % len(_CHANNELS)]
        wanted = (batch, channels, height, width)
        shape = tuple(
            fixed if isinstance(fixed, int) else size
            for fixed, size in zip(dims, wanted, strict=True)
        )
        maps = {X: _map(name, shape, random)}
        if gate.residual is not None:
            maps[R] = random.permutation(maps[X].reshape(-1)).reshape(shape)
        try:
            original, fused = session.run([ORIGINAL, FUSED], maps)
            if original.shape != fused.shape:
                return f"it makes a map of another shape, {list(original.shape)}"
            change = 0.0
            for _ in range(DRAWS):
                shaken = {key: _shaken(array, random) for key, array in maps.items()}
                (moved,) = session.run([ORIGINAL], shaken)
                change = max(change, _largest(moved - original))
        except Exception as error:  # ONNX Runtime has no common base for its exceptions.
            return _cannot_run(error)
        allowed = SENSITIVITIES * change + LAST_BITS * max(map(_largest, maps.values()))
        differs = _largest(fused - original)
        if not differs <= allowed:
            return f"on {name} its replacement differs by {differs:.1e}, {allowed:.1e} is allowed"
    return None


def _map(kind: str, shape: tuple[int, ...], random: np.random.Generator) -> Map:
    """A map of `shape`, of a kind of `_SIZES`."""
    noise = random.standard_normal(shape, dtype=np.float32)
    if kind == "a spike":
        noise[tuple(size // 2 for size in shape)] = 1e4
        return noise
    if kind == "negative values":
        return -np.abs(noise) - np.float32(1)
    scale = {"large values": 1e4, "tiny values": 1e-30, "zeros": 0.0}
    return noise * np.float32(scale.get(kind, 1.0))


def _cannot_run(error: BaseException) -> str:
    return f"it cannot be run alone ({' '.join(str(error).split())[:120]})"


def _shaken(array: Map, random: np.random.Generator) -> Map:
    """`array` with a random sign times `LAST_BITS` of each element added to it."""
    signs = random.choice(np.array([-1, 1], np.float32), size=array.shape)
    return (array * (1 + signs * LAST_BITS)).astype(np.float32)


def _largest(array: Map) -> float:
    return float(np.abs(array).max())
