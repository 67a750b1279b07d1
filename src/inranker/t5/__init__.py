"""monoT5 in torch: one forward pass that computes what the score needs and nothing else."""
