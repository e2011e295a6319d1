"""Gates of the libraries people build with are fused, and what is near them is not."""

import copy
import logging
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from gated_networks import lively
from library_gates import FUSED, LEFT, REFUSED, LeavingMap, Network

from cbam_deploy.exporters.gates.fusion import fuse_model

SIZE = (2, 3, 16, 12)
# Of the largest output: sums of some hundred terms with a relative error of 2^-24 each.
TOLERANCE = 1e-5
GATES = (*FUSED, *REFUSED)


def export(module, path):
    picture = torch.randn(SIZE, generator=torch.Generator().manual_seed(0))
    free = {"input": {0: "batch", 2: "height", 3: "width"}}
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (picture,),
            path,
            dynamo=False,
            dynamic_axes=free,
            opset_version=13,
            input_names=["input"],
        )
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The network of all gates, its file, the report and the fused file."""
    folder = tmp_path_factory.mktemp("gates")
    module = lively(Network(GATES))
    export(module, folder / "source.onnx")
    model = ir.load(folder / "source.onnx")
    report = fuse_model(model)
    ir.save(model, folder / "fused.onnx")
    return module, folder, report


def test_each_is_fused_or_refused_as_the_table_says(exported):
    _, folder, report = exported
    nodes = onnx.load(folder / "fused.onnx").graph.node
    assert [node.op_type for node in nodes if node.domain == "cbam_deploy"] == [
        op for ops in FUSED.values() for op in ops
    ], report.refused
    expected = [*LEFT[LeavingMap], *REFUSED.values()]
    reasons = [reason for _, reason in report.refused]
    assert len(reasons) == len(expected), report.refused
    for why, reason in zip(sorted(expected), sorted(reasons), strict=True):
        assert reason.startswith(why) or why in reason


def test_fused_network_computes_what_the_modules_do(exported):
    module, folder, _ = exported
    onnx.checker.check_model(folder / "fused.onnx", full_check=True)
    session, before = (
        onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
        for name in ("fused.onnx", "source.onnx")
    )
    picture = torch.randn((3, *SIZE[1:]), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        references = copy.deepcopy(module).double()(picture.double())
    feeds = {"input": picture.numpy()}
    all_outputs = session.run(None, feeds), before.run(None, feeds), references
    for ours, theirs, reference in zip(*all_outputs, strict=True):
        largest = reference.abs().max().item()
        assert largest > 0
        assert np.abs(ours - reference.numpy()).max() < TOLERANCE * largest
        assert np.abs(ours - theirs).max() < TOLERANCE * largest
