"""The files that tools are given: three small networks, three precisions, two forms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cbam_deploy import convert, export_onnx, inline
from cbam_deploy.gates.description import parse_gate
from cbam_deploy.runtimes.onnxruntime import OnnxRuntimeRunner

PRECISIONS = ("fp32", "fp16", "int8")
FORMS = ("fused", "portable")
BATCH = 4
# Network, gate and side of its pictures in pixels.
NETWORKS = (("resnet20", "cbam", 32), ("mobilenet", "se", 64), ("resnet18", "eca", 64))


@dataclass(frozen=True)
class File:
    """One file, what it is fed, and what ONNX Runtime makes of that in the fused file."""

    network: str
    precision: str
    form: str
    path: Path
    feeds: Path
    expected: Path


def make_files(folder: Path) -> tuple[File, ...]:
    """Write what is not there yet."""
    files = []
    for network, gate, size in NETWORKS:
        feeds = folder / f"{network}-feeds.npz"
        random = np.random.default_rng(0)
        pictures = random.standard_normal((BATCH, 3, size, size), dtype=np.float32)
        np.savez(feeds, input=pictures)
        plain = folder / f"{network}-fp32-fused.onnx"
        if not plain.exists():
            export_onnx(
                network, plain, gate=parse_gate(gate), image_size=size, num_classes=10, seed=0
            )
        for precision in PRECISIONS:
            fused, portable = (folder / f"{network}-{precision}-{form}.onnx" for form in FORMS)
            if not fused.exists():
                calibration = {"calibration": "photos", "images": 8} if precision == "int8" else {}
                convert(plain, fused, precision=precision, **calibration)
            if not portable.exists():
                inline(fused, portable)
            expected = folder / f"{network}-{precision}-expected.npz"
            with OnnxRuntimeRunner(fused) as runner:
                np.savez(expected, **runner.infer({"input": pictures}))
            for form, path in zip(FORMS, (fused, portable), strict=True):
                files.append(File(network, precision, form, path, feeds, expected))
    return tuple(files)
