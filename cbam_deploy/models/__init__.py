"""What is deployed: the gate module, the zoo, checkpoints."""
