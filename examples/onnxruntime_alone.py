"""Run a file of cbam-deploy with NumPy and ONNX Runtime alone: gates are functions in the file.

    python onnxruntime_alone.py MODEL.onnx PICTURES.npy

PICTURES.npy holds pictures of the network's size, uint8 [N, height, width, 3], red first. What the
file records says how they become inputs and what the classes are called.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

KEY = "cbam_deploy.provenance"


def network_input(pictures: NDArray[np.uint8], recorded: dict[str, Any]) -> NDArray[np.float32]:
    """Pictures [N, H, W, 3] as float32 [N, 3, H, W], scaled and normalized as recorded."""
    if recorded["colour"] != "rgb" or recorded["layout"] != "nchw" or recorded["function"]:
        raise SystemExit(f"this example does not know the preprocessing {recorded}")
    scaled = (pictures / recorded["scale"] - recorded["mean"]) / recorded["std"]
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32)


def main(model: str, pictures: str) -> None:
    """Print the likeliest class of each picture, and how likely it is."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    recorded = json.loads(session.get_modelmeta().custom_metadata_map[KEY])
    (given,) = session.get_inputs()
    inputs = network_input(np.load(pictures), recorded["preprocessing"])
    (logits,) = session.run(None, {given.name: inputs})
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    names = recorded["class_names"] or [f"class {index}" for index in range(logits.shape[1])]
    for share in shares:
        print(f"{names[share.argmax()]}  {share.max():.2%}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
