"""Training: the trainer, its state, checkpoints, and resuming a run."""
