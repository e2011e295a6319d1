"""What other tools make of our ONNX files: `docs/interop.md`."""
