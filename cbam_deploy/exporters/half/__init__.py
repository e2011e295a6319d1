"""FP32 to FP16."""
