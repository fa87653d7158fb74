"""One training step on a CPU: batches of exactly the tokens there are, without padding.

`nn.static` has the same files for CUDA devices.
"""
