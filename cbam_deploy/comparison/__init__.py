"""A PyTorch module or an ONNX file run beside a graph, down to every value inside."""
