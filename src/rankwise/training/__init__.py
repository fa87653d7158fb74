"""Training: the trainer, its state, checkpoints, and how a run resumes."""
