"""Attention gates of a graph: found, proven, replaced by one node."""
