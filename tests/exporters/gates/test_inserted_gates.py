"""Networks of other people, with gates put in, go all the way: export, fuse, engine, validation."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from cbam_deploy import build_engine, validate
from cbam_deploy.exporters import export_onnx

FACTORY = """
import sys
sys.path.insert(0, {folder!r})

import torch
from ungated_networks import PICTURE, lively

from cbam_deploy.models import insert_gates
from cbam_deploy.gates.description import GateSpec


def network():
    model = lively({name!r})
    insert_gates(
        model, GateSpec(reduction=4), {where!r}, example=torch.zeros(1, 3, PICTURE, PICTURE)
    )
    return model
"""
# The batch alone free, and height and width as well.
BATCH, SIZE = "image:Nx3x32x32", "image:Nx3xH=32xW=32"
RANGES = ("H=32,64,96", "W=32,64,96")


@pytest.mark.parametrize(
    ("name", "where", "inputs", "gates", "outputs"),
    [
        # ReLU stands before the gate in the plain stack: nothing to absorb behind it.
        ("Vgg", "stages", BATCH, {"CbamGate": 2}, 1),
        # An inverted residual block ends with the addition, which is absorbed without a ReLU.
        ("MobileNet", "blocks", BATCH, {"CbamGateAdd": 2}, 1),
        ("DenseNet", "stages", BATCH, {"CbamGate": 1, "CbamGateThenRelu": 1}, 1),
        ("UNet", "stages", SIZE, {"CbamGate": 5}, 1),
        ("Detector", "blocks", BATCH, {"CbamGateAddRelu": 4}, 4),
    ],
)
def test_gated_network_is_exported_fused_built_and_validated(
    tmp_path: Path, name: str, where: str, inputs: str, gates: dict[str, int], outputs: int
) -> None:
    folder = str(Path(__file__).parents[2] / "models")
    source = tmp_path / "net.py"
    source.write_text(FACTORY.format(folder=folder, name=name, where=where))
    path = tmp_path / "net.onnx"
    result = export_onnx(f"{source}:network", path, inputs=[inputs])
    assert (result.gates, result.refused) == (gates, ())
    assert len(onnx.load(path).graph.output) == outputs
    ranges = RANGES if inputs == SIZE else ()
    engine = build_engine(path, tmp_path / "net.engine", sizes=ranges, targets=("sm_89",))
    assert len(engine.gates) == sum(gates.values())
    report = validate(path, reference=f"{source}:network", batch_sizes=(1, 3))
    assert report.passed, report.failure()
    assert [len(batch.outputs) for batch in report.batches] == [outputs, outputs]
