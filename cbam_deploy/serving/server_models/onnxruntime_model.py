"""A model of Triton's Python backend: the ONNX file beside this one, in ONNX Runtime on the CPU.

It needs onnxruntime and numpy in the server's Python, and nothing else.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

# It would leave a device id and a database of events in HOME, and send them.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime


class TritonPythonModel:
    """The model, as the backend calls it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the ONNX file.

        Args:
            args: by name, strings; ``model_config`` is the configuration as JSON.
        """
        config = json.loads(args["model_config"])
        self.inputs = [one["name"] for one in config["input"]]
        self.outputs = [one["name"] for one in config["output"]]
        self.batched = config["max_batch_size"] > 0
        options = onnxruntime.SessionOptions()
        threads = config["parameters"].get("intra_op_thread_count")
        if threads:
            options.intra_op_num_threads = int(threads["string_value"])
        wrong = config["parameters"].get("disabled_optimizers", {"string_value": ""})
        self.session = onnxruntime.InferenceSession(
            str(Path(__file__).with_name("model.onnx")),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=wrong["string_value"].split(),
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request; those of a batch run together."""
        groups = [requests] if self.batched else [[request] for request in requests]
        return [response for group in groups for response in self._together(group)]

    def _together(self, requests: list[Any]) -> list[Any]:
        try:
            fed = [self._feeds(request) for request in requests]
            joined = fed[0]
            if len(fed) > 1:
                joined = {name: np.concatenate([one[name] for one in fed]) for name in self.inputs}
            made = self.session.run(self.outputs, joined)
            ends = np.cumsum([len(one[self.inputs[0]]) for one in fed])[:-1]
            parts = [[array] if len(fed) == 1 else np.split(array, ends) for array in made]
        except Exception as error:  # ONNX Runtime's exceptions share no base class but this.
            failure = pb_utils.TritonError(str(error))
            return [pb_utils.InferenceResponse(error=failure) for _ in requests]
        return [self._response(one) for one in zip(*parts, strict=True)]

    def _feeds(self, request: Any) -> dict[str, NDArray[Any]]:
        tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in self.inputs}
        return {name: tensor.as_numpy() for name, tensor in tensors.items()}

    def _response(self, arrays: Iterable[NDArray[Any]]) -> Any:
        named = zip(self.outputs, arrays, strict=True)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in named])
