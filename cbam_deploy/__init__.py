"""Deploy CNNs with attention gates: PyTorch to ONNX to a TensorRT engine, with proof of parity.

Every command is one function here, by the names of the stub beside this file. Functions are
imported when first used, so that importing the package costs nothing.
"""

import os

import lazy_loader

# ONNX Runtime leaves a device id and a database of events in HOME when it is imported, and sends
# them. Its switch is read at that moment: here nothing of ours, nor a process of ours, precedes it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
