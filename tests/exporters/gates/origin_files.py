"""Networks as files of either exporter, and whether a file computes what its network does."""

import copy
import logging
import warnings

import numpy as np
import onnxruntime
import torch

BATCH, HEIGHT, WIDTH = 2, 10, 12
# Of the largest output: FP32 sums of some hundred terms, through two convolutions and a gate.
TOLERANCE = 1e-5


def picture(batch=BATCH, height=HEIGHT, width=WIDTH):
    return torch.randn((batch, 3, height, width), generator=torch.Generator().manual_seed(batch))


def export(module, path, **options):
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (picture(),), path, input_names=["input"], verbose=False, **options
        )
    logging.disable(logging.NOTSET)


def assert_computes(path, module, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.inference_mode():
        references = copy.deepcopy(module).double()(x.double())
    for ours, reference in zip(found, references, strict=True):
        largest = reference.abs().max().item()
        assert largest > 0
        assert np.abs(ours - reference.numpy()).max() <= TOLERANCE * largest
