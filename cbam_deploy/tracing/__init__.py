"""A PyTorch module as an ONNX graph."""
