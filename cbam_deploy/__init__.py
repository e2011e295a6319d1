"""Deploy CNNs with attention gates: PyTorch to ONNX to a TensorRT engine, with proof of parity."""

__version__ = "0.1.0"
