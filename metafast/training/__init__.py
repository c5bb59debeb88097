"""Meta-training with its checkpoints, evaluation and networks."""
