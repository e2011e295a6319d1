"""The spatial attention M_s of each gate of an ONNX file, as the file computes it.

A gate's function gets its inner value as a second output, so ONNX Runtime gives what the deployed
file itself uses, in its own precision, and not what a reference would.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from cbam_deploy.artefacts import open_onnx
from cbam_deploy.data.network_input import network_input
from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.half.conversion import settle_types
from cbam_deploy.exporters.half.rounding import round_in_fp32
from cbam_deploy.gates.operators import DOMAIN
from cbam_deploy.library_errors import said_of_the_file
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.runtimes.onnxruntime import OnnxRuntimeRunner

_INNER = "spatial_attention"  # Its name in the bodies of `graphs.gate_bodies`.


@dataclass(frozen=True)
class SpatialMaps:
    """What one file attends to.

    Attributes:
        maps: M_s [N, h, w] float32 by the gate's name, in the graph's order.
        logits: [N, classes] float64, the file's first output.
        class_names: in the order of the logits; empty when unknown.
    """

    maps: dict[str, NDArray[np.float32]]
    logits: NDArray[np.float64]
    class_names: tuple[str, ...]


@said_of_the_file
def spatial_maps(
    path: Path,
    images: NDArray[np.float32],
    preprocessing: Preprocessing,
    *,
    as_recorded: bool = True,
) -> SpatialMaps:
    """Run the ONNX file on `images` [N, C, H, W] and keep what its gates attend to.

    Args:
        path: of the file; one of integer inputs gets levels.
        images: normalized as `preprocessing` says.
        preprocessing: of the pictures.
        as_recorded: refuse a file that records another one.

    Raises:
        BadInput: the file cannot be read or run, wants its pictures prepared in another way, or
            has no fused gate with spatial attention.
    """
    opened = open_onnx(path)
    if as_recorded and opened.recorded_preprocessing not in (None, preprocessing):
        raise BadInput(
            f"{path}: wants pictures prepared differently from the networks",
            "give a file of one of these networks",
        )
    model = ir.external_data.load_to_model(opened.model)
    if opened.precision == "bf16":  # ONNX Runtime has no kernels for it on CPUs.
        model = model.clone()
        settle_types(model)
        round_in_fp32(model)
    proto = ir.to_proto(model)
    watched = _watch(proto)
    if not watched:
        raise BadInput(
            f"{path}: has no fused gate with spatial attention",
            "export a model with attention cbam",
        )
    with OnnxRuntimeRunner(proto, precision=opened.precision, exact_biases=True) as runner:
        (spec,) = runner.inputs
        outputs = runner.infer(
            {spec.name: network_input(images, preprocessing, spec.dtype, spec.name)}
        )
        logits = outputs[runner.outputs[0].name].astype(np.float64)
    maps = {gate: _map(outputs[value]) for gate, value in watched.items()}
    return SpatialMaps(maps, logits, opened.provenance.class_names if opened.provenance else ())


def _watch(proto: onnx.ModelProto) -> dict[str, str]:
    """Make M_s an output of `proto`, in place; its name by that of the gate."""
    bodies = {
        function.name
        for function in proto.functions
        if function.domain == DOMAIN and any(_INNER in node.output for node in function.node)
    }
    for function in proto.functions:
        if function.domain == DOMAIN and function.name in bodies:
            function.output.append(_INNER)
    watched = {}
    for node in proto.graph.node:
        if node.domain == DOMAIN and node.op_type in bodies:
            name = f"{node.output[0]}/{_INNER}"
            node.output.append(name)
            proto.graph.output.append(onnx.ValueInfoProto(name=name))
            watched[node.name or node.output[0]] = name
    return watched


def _map(value: NDArray[Any]) -> NDArray[np.float32]:
    return value[:, 0].astype(np.float32)


def correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float | None:
    """Pearson's, over all pictures and positions; None where a map is the same everywhere."""
    a, b = (np.asarray(maps, np.float64).ravel() for maps in (one, other))
    a, b = a - a.mean(), b - b.mean()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms > 0 else None
