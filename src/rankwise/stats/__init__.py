"""Confidence intervals, paired tests and the verdict on ranks, as pure functions of arrays."""
