"""Training on a CPU: batches of exact shapes, without padding. Mirrors `nn.static`."""
