"""Deploy CNNs with attention gates: PyTorch to ONNX to a TensorRT engine, with proof of parity.

Every command is one function here. Functions are imported when first used, so that importing the
package costs nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cbam_deploy.benchmarking import bench
    from cbam_deploy.costs import complexity
    from cbam_deploy.engine import build_engine
    from cbam_deploy.explain import gradcam
    from cbam_deploy.exporters import export_onnx, fuse
    from cbam_deploy.exporters.convert import convert
    from cbam_deploy.inspection import inspect
    from cbam_deploy.machine import doctor
    from cbam_deploy.models import create_model, load_model
    from cbam_deploy.runtimes import open_runtime
    from cbam_deploy.studies import ablation
    from cbam_deploy.training import train
    from cbam_deploy.validation import evaluate, validate
    from cbam_deploy.walkthrough import demo

__version__ = "0.1.0"

# ONNX Runtime leaves a device id and a database of events in HOME when it is imported, and sends
# them. Its switch is read at that moment: here nothing of ours, nor a process of ours, precedes it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOME = {
    "ablation": "studies",
    "bench": "benchmarking",
    "build_engine": "engine",
    "complexity": "costs",
    "convert": "exporters.convert",
    "create_model": "models",
    "demo": "walkthrough",
    "doctor": "machine",
    "evaluate": "validation",
    "export_onnx": "exporters",
    "fuse": "exporters",
    "gradcam": "explain",
    "inspect": "inspection",
    "load_model": "models",
    "open_runtime": "runtimes",
    "train": "training",
    "validate": "validation",
}

__all__ = [
    "ablation",
    "bench",
    "build_engine",
    "complexity",
    "convert",
    "create_model",
    "demo",
    "doctor",
    "evaluate",
    "export_onnx",
    "fuse",
    "gradcam",
    "inspect",
    "load_model",
    "open_runtime",
    "train",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
