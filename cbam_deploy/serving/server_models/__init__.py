"""Models of Triton's Python backend, which `package` copies; only a server loads them."""
