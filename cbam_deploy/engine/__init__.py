"""TensorRT engines: building them, and the manifest beside each."""
