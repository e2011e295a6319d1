"""Gates pasted from anywhere and exported by either exporter of torch are fused, and rightly.

An export is a network of all the gates, so this is eight spellings of a gate by eight ways to
write a file.
"""

import copy
import logging
import warnings
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from gated_networks import lively
from pasted_gates import FUSED, Network, Official, Views

BATCH, HEIGHT, WIDTH = 2, 16, 12
# Of the largest output. FP32: sums of some hundred terms with a relative error of 2^-24 each, in
# two convolutions and a gate. FP16: every one of some ten layers rounds to 2^-11.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 10 * 2**-11}


@dataclass(frozen=True)
class Way:
    """A way to export."""

    dynamo: bool
    opset: int
    free: tuple[str, ...] = ()  # Axes of unknown size.
    folded: bool = True  # Constants.
    dtype: torch.dtype = torch.float32

    def __str__(self):
        parts = ["dynamo" if self.dynamo else "torchscript", str(self.opset), *self.free]
        parts += [] if self.folded else ["unfolded"]
        return "-".join([*parts, str(self.dtype).removeprefix("torch.")])


AXES = {"batch": 0, "height": 2, "width": 3}
ALL = tuple(AXES)
WAYS = [
    Way(True, 18, ("batch",)),
    Way(True, 18, ALL),
    Way(False, 11),
    Way(False, 13, folded=False),
    Way(False, 17, ("batch",), folded=False),
    Way(False, 17, dtype=torch.float16),
    Way(False, 20, ALL),
]


def can_export(gate, way):
    """Windows as large as the map are exported for one size, by TorchScript for one batch too.

    For the others, one of dynamo's exports is enough, which take seconds.
    """
    if gate is Official:
        return not way.free or (way.dynamo and "height" not in way.free)
    return not way.dynamo or "height" in way.free


def network(way):
    gates = [gate for gate in FUSED if can_export(gate, way)]
    return lively(Network(gates)).to(way.dtype)


def picture(way, batch=BATCH, height=HEIGHT, width=WIDTH):
    generator = torch.Generator().manual_seed(batch)
    return torch.randn((batch, 3, height, width), generator=generator).to(way.dtype)


def export(module, way, path):
    logging.disable(logging.WARNING)
    options = {"opset_version": way.opset, "input_names": ["input"], "verbose": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if way.dynamo:
            free = {AXES[name]: torch.export.Dim(name, min=2) for name in way.free}
            torch.onnx.export(
                module, (picture(way),), path, dynamo=True, dynamic_shapes=(free,), **options
            )
        else:
            free = {AXES[name]: name for name in way.free}
            torch.onnx.export(
                *(module, (picture(way),), path),
                dynamo=False,
                dynamic_axes={"input": free},
                do_constant_folding=way.folded,
                **options,
            )
    logging.disable(logging.NOTSET)


def assert_computes(path, module, way, **sizes):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = picture(way, **sizes)
    with torch.inference_mode():
        references = copy.deepcopy(module).double()(x.double())
    for found, reference in zip(session.run(None, {"input": x.numpy()}), references, strict=True):
        largest = reference.abs().max().item()
        assert largest > 0
        assert np.abs(found - reference.numpy()).max() < TOLERANCE[way.dtype] * largest


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_pasted_gates_are_fused(way, tmp_path, fused, capfd):
    module = network(way)
    export(module, way, tmp_path / "exported.onnx")
    report, path = fused(tmp_path / "exported.onnx")
    expected = [f"{op}AddRelu" for gate, op in FUSED.items() if can_export(gate, way)]
    assert ([op for _, op in report.fused], report.refused) == (expected, ())
    onnx.checker.check_model(path, full_check=True)
    assert_computes(path, module, way)
    if "height" in way.free:
        assert_computes(path, module, way, batch=3, height=9, width=21)
    elif way.free:
        assert_computes(path, module, way, batch=1)


class Row(torch.nn.Module):
    """Two residual blocks, one behind the other."""

    def __init__(self):
        super().__init__()
        self.convs = torch.nn.ModuleList(torch.nn.Conv2d(3, 3, 1) for _ in range(2))
        self.gates = torch.nn.ModuleList(Views(3) for _ in range(2))

    def forward(self, x):
        for conv, gate in zip(self.convs, self.gates, strict=True):
            x = torch.relu(gate(conv(x)) + x)
        return (x,)


def test_size_of_a_block_is_known_behind_a_gate_that_hides_it(tmp_path, fused):
    """onnx cannot infer shapes through the first gate's views."""
    way = Way(False, 13, ("batch",))
    module = lively(Row())
    export(module, way, tmp_path / "exported.onnx")
    report, path = fused(tmp_path / "exported.onnx")
    assert [op for _, op in report.fused] == ["CbamGateAddRelu"] * 2
    assert_computes(path, module, way, batch=3)


@pytest.mark.parametrize("way", [WAYS[4], WAYS[5]], ids=str)
def test_fusing_pasted_gates_twice_changes_nothing(way, tmp_path, fused):
    export(network(way), way, tmp_path / "exported.onnx")
    _, path = fused(tmp_path / "exported.onnx")
    before = path.read_bytes()
    report, path = fused(path)
    assert report.fused == ()
    assert path.read_bytes() == before
