"""The fused gate on GPUs: kernels, their compilation and launch geometry, the plugin."""
