"""PyTorch to ONNX, and ONNX to ONNX: export, fusion of gates, files."""
