"""The tools, what pip installs for each, and what to do about what they refuse."""

from __future__ import annotations

import re
from dataclasses import dataclass

ONNXRUNTIME_MINORS = 6  # The newest, and those before it.


@dataclass(frozen=True)
class Tool:
    """A way to use our files.

    Attributes:
        name: as the page calls it.
        package: whose version the page shows.
        probe: what `probe.py` calls it.
        requirements: for pip, in an environment of their own; tools of the same share it.
        precisions: of the files it is given.
        converts: whether it is meant to change what is computed.
    """

    name: str
    package: str
    probe: str
    requirements: tuple[str, ...]
    precisions: tuple[str, ...] = ("fp32", "fp16", "int8")
    converts: bool = False


def tools(newest_onnxruntime: str) -> tuple[Tool, ...]:
    """All of them; versions of ONNX Runtime end at the newest, such as ``1.32.0``."""
    onnx = ("onnx",)
    polygraphy = ("polygraphy", "onnx", "onnxruntime", "onnx-graphsurgeon", "numpy<2.4")
    major, minor = map(int, newest_onnxruntime.split(".")[:2])
    return (
        *(
            Tool(
                f"ONNX Runtime {major}.{older}",
                "onnxruntime",
                "onnxruntime",
                (f"onnxruntime=={major}.{older}.*",),
            )
            for older in range(minor, minor - ONNXRUNTIME_MINORS, -1)
        ),
        Tool("OpenVINO", "openvino", "openvino", ("openvino",)),
        Tool("onnx.checker, full", "onnx", "checker", onnx),
        Tool("onnx.inliner", "onnx", "inliner", onnx),
        Tool("onnxslim", "onnxslim", "onnxslim", ("onnxslim",)),
        Tool("onnxsim", "onnxsim", "onnxsim", ("onnxsim", "onnxruntime")),
        Tool("Polygraphy inspect", "polygraphy", "polygraphy_inspect", polygraphy),
        Tool("Polygraphy run", "polygraphy", "polygraphy_run", polygraphy),
        Tool("Polygraphy surgeon sanitize", "polygraphy", "polygraphy_sanitize", polygraphy),
        Tool("onnx2torch", "onnx2torch", "onnx2torch", ("onnx2torch", "setuptools<81")),
        Tool("pnnx, then ncnn", "pnnx", "pnnx", ("pnnx", "ncnn", "onnx", "numpy")),
        Tool(
            "ModelOpt to INT8",
            "nvidia-modelopt",
            "modelopt",
            ("nvidia-modelopt[onnx]",),
            precisions=("fp32",),
            converts=True,
        ),
    )


# By words of a refusal, what a person can do about it.
REMEDIES: tuple[tuple[str, str], ...] = (
    ("cbam_deploy", "`export --portable`, or `inline` for a file that there is"),
    ("CastLike", "`export --portable`, or `inline`: it has no CastLike"),
    ("QuantizeLinear|Tensor.to|pnnx.Expression", "none but the FP32 file"),
)


def remedy(words: str) -> str:
    """What to do about a refusal; empty where nothing of ours helps."""
    return next((text for pattern, text in REMEDIES if re.search(pattern, words)), "")
