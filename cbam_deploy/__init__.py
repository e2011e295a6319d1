"""Deploy CNNs with attention gates: PyTorch to ONNX to a TensorRT engine, with proof of parity.

Every command is one function here. Functions are imported when first used, so that importing the
package costs nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import lazy_loader

from cbam_deploy.version import __version__

if TYPE_CHECKING:
    from cbam_deploy.benchmarking import bench
    from cbam_deploy.capabilities import doctor
    from cbam_deploy.costs import complexity
    from cbam_deploy.engines import build_engine
    from cbam_deploy.explain import gradcam
    from cbam_deploy.exporters import export_onnx, fuse
    from cbam_deploy.inspection import inspect
    from cbam_deploy.models import load_model
    from cbam_deploy.plugins.torch_gate import create_model
    from cbam_deploy.runtimes import open_runtime
    from cbam_deploy.studies import ablation
    from cbam_deploy.studies.demonstration import demo
    from cbam_deploy.training import train
    from cbam_deploy.validation import evaluate, validate
    from cbam_deploy.validation.conversion import convert

# ONNX Runtime leaves a device id and a database of events in HOME when it is imported, and sends
# them. Its switch is read at that moment: here nothing of ours, nor a process of ours, precedes it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "__version__",
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

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "benchmarking": ["bench"],
        "costs": ["complexity"],
        "engines": ["build_engine"],
        "explain": ["gradcam"],
        "exporters": ["export_onnx", "fuse"],
        "validation.conversion": ["convert"],
        "inspection": ["inspect"],
        "capabilities": ["doctor"],
        "models": ["load_model"],
        "plugins.torch_gate": ["create_model"],
        "runtimes": ["open_runtime"],
        "studies": ["ablation"],
        "studies.demonstration": ["demo"],
        "training": ["train"],
        "validation": ["evaluate", "validate"],
    },
)
