"""A training step on a CPU: packed batches without padding.

`nn.static` has the same modules for CUDA devices.
"""
