"""The configuration of DeepStream's nvinfer, which runs a network on the frames of a video.

nvinfer scales a frame to the network's input and computes net-scale-factor * (level - offset), with
one factor for all channels and an offset for each. What else a preprocessing does, it cannot.
Keys and values are those of NVIDIA's page on Gst-nvinfer (DeepStream 6 to 9).
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cbam_deploy.artefacts import Artefact, Engine, OnnxFile
from cbam_deploy.errors import BadInput
from cbam_deploy.plugins.native_library import LIBRARY
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.preprocessing.text import text_of
from cbam_deploy.serving.files import Files, artefact_files, label_lines
from cbam_deploy.serving.triton_config import LABELS, largest_batch

CONFIG = "config_infer.txt"
_COLOURS = {"rgb": "0", "bgr": "1", "grey": "2"}
_PRECISIONS = {"fp32": "0", "int8": "1", "fp16": "2"}
_BUILT = ("fp32", "fp16")
_CLASSIFIER, _SEGMENTATION, _OTHER = "1", "2", "100"
KINDS = {
    _CLASSIFIER: "classifier",
    _SEGMENTATION: "segmentation",
    _OTHER: "other: its outputs go on as they are",
}
_SAME = 1e-6  # What standard deviations of one value may differ by.
_log = logging.getLogger(__name__)


def nvinfer_files(
    artefacts: Sequence[OnnxFile | Engine],
    preprocessing: Preprocessing,
    *,
    max_batch: int | None,
    labels: tuple[str, ...],
    library: Path | None,
) -> Files:
    """A folder with nvinfer's configuration, and all that it names.

    Args:
        artefacts: one ONNX file, one engine, or both: nvinfer takes the engine, and builds one of
            the ONNX file where that does not load.
        preprocessing: of the network's pictures.
        max_batch: frames in a batch; None for the engine's largest, else 1.
        labels: names of the classes, if they are known.
        library: plugin library that one of them needs.

    Raises:
        BadInput: nvinfer cannot prepare the pictures so, or run the network.
    """
    first = artefacts[-1]
    files: Files = {}
    keys = {"gpu-id": "0", "gie-unique-id": "1"}
    for artefact in artefacts:
        _check_network(artefact)
        key, name = (
            ("model-engine-file", "model.engine")
            if isinstance(artefact, Engine)
            else ("onnx-file", "model.onnx")
        )
        files |= artefact_files(artefact, name)
        keys[key] = name
    if isinstance(first, OnnxFile) and first.precision not in _BUILT:
        raise BadInput(
            f"{first.title}: nvinfer builds engines of FP32 and FP16 alone from ONNX files, and of"
            f" INT8 by a table of ranges; this one is {first.precision.upper()} by its own nodes",
            "build the engine by trtexec --stronglyTyped or build-engine, and package it beside",
        )
    keys |= _picture_keys(first, preprocessing)
    batched = largest_batch(first, max_batch if isinstance(first, Engine) else max_batch or 1)
    keys["batch-size"] = str(batched or first.batch_range[1] or 1)
    if first.precision in _PRECISIONS:  # An engine has its own; nvinfer has no word for some.
        keys["network-mode"] = _PRECISIONS[first.precision]
    keys["network-type"] = network_type(first)
    if keys["network-type"] == _CLASSIFIER:
        keys["classifier-threshold"] = "0"
    if keys["network-type"] == _OTHER:
        keys["output-tensor-meta"] = "1"
    if labels:
        keys["labelfile-path"] = LABELS
        files[LABELS] = _labels(labels, classifier=keys["network-type"] == _CLASSIFIER)
    if library is not None:
        keys["custom-lib-path"] = LIBRARY
        files[LIBRARY] = library
    files[CONFIG] = "".join(["[property]\n", *(f"{key}={keys[key]}\n" for key in keys)])
    return files


def network_type(artefact: Artefact) -> str:
    """The number in nvinfer for what the outputs are."""
    if len(artefact.outputs) != 1:
        return _OTHER
    return {2: _CLASSIFIER, 4: _SEGMENTATION}.get(len(artefact.outputs[0].shape), _OTHER)


def _check_network(artefact: Artefact) -> None:
    first = artefact.inputs[0]
    if len(artefact.inputs) != 1 or len(first.shape) != 4:
        raise BadInput(
            f"{artefact.title}: nvinfer feeds one input of pictures, and it takes"
            f" {', '.join(spec.name for spec in artefact.inputs)}",
            "serve it with Triton",
        )
    if first.dtype != "float32":
        raise BadInput(
            f"{artefact.title}: nvinfer feeds float32, and input {first.name} takes {first.dtype}",
            "export it with --io-dtype fp32, or with an input of float32",
        )


def _picture_keys(artefact: Artefact, preprocessing: Preprocessing) -> dict[str, str]:
    """The keys that say how a frame becomes the input; `BadInput` where none can."""
    if preprocessing.function is not None:
        raise _cannot(artefact, preprocessing, "is a function", "say the same in steps")
    if preprocessing.colour not in _COLOURS:
        raise _cannot(artefact, preprocessing, "has four channels", "serve it with Triton")
    stds = preprocessing.std
    one_std = float(f"{sum(stds) / len(stds):.6g}")
    nearest = replace(
        preprocessing,
        std=(one_std,) * len(stds),
        fit="stretch" if preprocessing.fit == "crop" else preprocessing.fit,
        padding=0,
    )
    measure = (
        f"say what comes nearest, --preprocess {shlex.quote(text_of(nearest))}, and measure by"
        " evaluate with the same what it costs"
    )
    off = max(abs(one_std / std - 1) for std in stds)
    if off > _SAME:
        listed = " ".join(f"{std:g}" for std in stds)
        raise _cannot(
            artefact,
            preprocessing,
            f"divides each channel by its own std ({listed}), and nvinfer has one for all:"
            f" {one_std:g} would be off by up to {off:.1%}",
            measure,
        )
    if preprocessing.fit == "crop":
        raise _cannot(artefact, preprocessing, "cuts the middle out", measure)
    if preprocessing.fit == "letterbox" and preprocessing.padding != 0:
        why = f"fills the frame with level {preprocessing.padding}, and nvinfer fills it with 0"
        raise _cannot(artefact, preprocessing, why, measure)
    channels, (height, width) = len(preprocessing.mean), preprocessing.frame
    if preprocessing.fit == "keep":
        _log.warning(
            "%s: takes pictures of %dx%d alone; nvinfer stretches frames of another size",
            artefact.title,
            height,
            width,
        )
    letterbox = "1" if preprocessing.fit == "letterbox" else "0"
    keys = {
        "infer-dims": f"{channels};{height};{width}",
        "network-input-order": "1" if preprocessing.layout == "nhwc" else "0",
        "model-color-format": _COLOURS[preprocessing.colour],
        "net-scale-factor": f"{1 / (preprocessing.scale * stds[0]):.10g}",
        "maintain-aspect-ratio": letterbox,
        "symmetric-padding": letterbox,
        "scaling-filter": "1",  # Bilinear.
    }
    if any(preprocessing.mean):
        offsets = (mean * preprocessing.scale for mean in preprocessing.mean)
        keys["offsets"] = ";".join(f"{offset:.10g}" for offset in offsets)
    return keys


def _cannot(artefact: Artefact, preprocessing: Preprocessing, why: str, hint: str) -> BadInput:
    return BadInput(
        f"{artefact.title}: nvinfer cannot do {text_of(preprocessing)!r}: it {why}", hint
    )


def _labels(labels: tuple[str, ...], *, classifier: bool) -> str:
    """One class in a line; of a classifier all in one, with semicolons between them."""
    if not classifier:
        return label_lines(labels)
    if any(";" in label for label in labels):
        raise BadInput(
            "a class has a semicolon in its name, which nvinfer takes for the end of it",
            "rename the class",
        )
    return ";".join(" ".join(label.split()) for label in labels) + "\n"
