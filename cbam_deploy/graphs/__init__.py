"""An ONNX file: read, checked, written."""
