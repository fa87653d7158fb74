"""One module for each command: what `rankwise NAME` does, as a function."""
