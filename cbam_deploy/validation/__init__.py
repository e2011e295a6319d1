"""Proof that an artefact computes what PyTorch computes."""
