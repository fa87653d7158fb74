"""Training on CUDA: batches of a few shapes, so that a step can be recorded as a graph. Mirrors `nn.ragged`."""
