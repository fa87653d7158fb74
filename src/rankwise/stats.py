"""Intervals."""

from __future__ import annotations

from scipy.stats import binomtest


def accuracy_interval(right: int, texts: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), as fractions.

    Args:
        right: texts answered rightly.
        texts: texts asked, at least 1.
        confidence: coverage that is aimed at.

    >>> low, high = accuracy_interval(1829, 2000)
    >>> f"{low:.4f} {high:.4f}"
    '0.9014 0.9260'
    """
    interval = binomtest(right, texts).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)
