"""Intervals, paired tests and the verdict on ranks: pure functions of arrays."""
