"""Throughput and latency, measured side by side."""
