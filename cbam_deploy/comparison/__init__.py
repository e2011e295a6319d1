"""A PyTorch module run beside a graph, down to every value inside."""
