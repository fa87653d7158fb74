"""A training step on a CUDA device: static-shape batches, with one recorded graph per shape.

`nn.ragged` has the same modules for CPUs, except `graphs`.
"""
