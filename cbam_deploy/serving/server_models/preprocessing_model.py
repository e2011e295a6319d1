"""A model of Triton's Python backend: encoded pictures to a network's input.

It does what ``preprocessing.json`` beside it says, by the modules of cbam-deploy beside it. It
needs numpy and Pillow of the server's Python.
"""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

# Those beside this file, whatever version is installed.
sys.path.insert(0, str(Path(__file__).parent))

from cbam_deploy.data.network_input import network_input
from cbam_deploy.data.pictures import (
    UnreadablePicture,
    decode,
    fit,
    mode_of,
    normalize,
    require_pillow,
)
from cbam_deploy.preprocessing import Preprocessing


class TritonPythonModel:
    """The model, as the backend calls it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read what is to be done.

        Args:
            args: by name, strings; ``model_config`` is the configuration as JSON.
        """
        require_pillow()
        (self.output,) = json.loads(args["model_config"])["output"]
        self.dtype = pb_utils.triton_string_to_numpy(self.output["data_type"])
        text = Path(__file__).with_name("preprocessing.json").read_text(encoding="utf-8")
        self.preprocessing = Preprocessing(**json.loads(text))

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request: its pictures as one batch, or what is wrong with one."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        encoded = pb_utils.get_input_tensor_by_name(request, "PICTURES").as_numpy().ravel()
        try:
            images = np.stack([self._prepared(picture) for picture in encoded])
        except (UnreadablePicture, ValueError) as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"picture: {error}"))
        name = self.output["name"]
        made = network_input(images, self.preprocessing, np.dtype(self.dtype).name, name)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, made)])

    def _prepared(self, encoded: bytes) -> NDArray[np.float32]:
        picture = decode(io.BytesIO(encoded), mode_of(self.preprocessing))
        return normalize(fit(picture, self.preprocessing), self.preprocessing)
