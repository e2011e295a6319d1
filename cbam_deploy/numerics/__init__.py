"""Tensors by their numbers: specs, errors, tolerances."""
