"""FP32 to INT8: calibration, placement of Q and DQ, the accuracy budget."""
