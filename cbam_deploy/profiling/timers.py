"""The profiler of each runtime."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib import import_module

from cbam_deploy.benchmarking.benchmark import Contender
from cbam_deploy.errors import BadInput
from cbam_deploy.profiling.kernels import LayerTimer

# By runtime: the module of this package whose `layer_timer` takes a contender.
TIMERS = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "pytorch": "pytorch",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt",
}


def open_timer(contender: Contender) -> AbstractContextManager[LayerTimer]:
    """The timer of a contender; enter it to use it.

    Raises:
        BadInput: it runs on a GPU and is no engine: the host's clock sees only launches there.

    Entering raises:
        BadInput: the runtime cannot load the network.
    """
    name = contender.runner.name
    if name.endswith("-cuda"):
        raise BadInput(
            f"{contender.source.name} in {name}: on a GPU only layers of engines are timed",
            "add --device cpu, or profile an engine of build-engine",
        )
    module = TIMERS.get(name) or TIMERS[name.rpartition("-")[0]]
    opened: AbstractContextManager[LayerTimer] = import_module(
        f"{__package__}.{module}"
    ).layer_timer(contender)
    return opened
