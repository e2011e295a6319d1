"""Tiny networks that metrics judge, and the pictures they are judged on."""

from pathlib import Path

import numpy as np
import onnx
from PIL import Image

from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.provenance import METADATA_KEY, Provenance

SIZE = 16
AS_IT_IS = Preprocessing(SIZE, SIZE, mean=(0, 0, 0), std=(1, 1, 1))


def save_network(
    path: Path, body: str, outputs: str, preprocessing=AS_IT_IS, class_names=(), **weights
) -> Path:
    """A network of pictures ``image`` [batch, 3, SIZE, SIZE], made of the nodes of `body`.

    Args:
        path: file to write.
        body: nodes, in ONNX's textual form.
        outputs: their types and names, in that form.
        preprocessing: as recorded in the file.
        class_names: the same.
        weights: values of the initializers, by name.
    """
    head = (
        f'<ir_version: 9, opset_import: ["" : 18]> judged (float[batch, 3, {SIZE}, {SIZE}] image)'
    )
    model = onnx.parser.parse_model(f"{head} => ({outputs}) {{ {body} }}")
    for name, value in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    for node in model.graph.node:
        node.name = node.output[0]
    recorded = Provenance(preprocessing=preprocessing, class_names=class_names)
    onnx.helper.set_model_props(model, {METADATA_KEY: recorded.dumps()})
    onnx.save(model, path)
    return path


def save_picture(path: Path, pixels) -> Path:
    """Write levels [H, W, 3], or [H, W] as indices, as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return path
