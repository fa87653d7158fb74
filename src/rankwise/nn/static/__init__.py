"""One training step on a CUDA device: batches of a few fixed shapes, each recorded as a graph.

`nn.ragged` has the same files, but for `graphs`, for CPUs.
"""
