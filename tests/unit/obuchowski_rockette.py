"""The customary analysis of multi-reader multi-case studies, to compare `rankwise.stats.paired` with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import f

from rankwise.stats.crossed import Floats


@dataclass(frozen=True)
class FTest:
    """A test of the hypothesis that all ranks are equally good."""

    f: float
    freedom: float  # of the numerator: ranks - 1
    error_freedom: float  # of the denominator, by Hillis (2007)
    p: float


def f_test(scores: Mapping[int, Floats]) -> FTest:
    """The multi-reader multi-case F test of (seeds, texts) scores of ranks (Hillis 2007).

    The verdict does not use it, because with two or three seeds it is anti-conservative. The squares of the
    paired t statistics that the verdict does use are its F for two ranks.
    """
    table = np.stack([np.asarray(each, dtype=np.float64) for each in scores.values()])
    _, seeds, texts = table.shape
    # The difference of the mean squares of ranks x texts and ranks x seeds x texts gives the difference of
    # the covariances of two seeds within a rank and between ranks.
    of_texts = seeds * _interaction(table.mean(axis=1))
    left = _interaction(table)
    return obuchowski_rockette(table.mean(axis=2), (of_texts - left) / (seeds * texts))


def obuchowski_rockette(means: Floats, covariance: float) -> FTest:
    """The F test from the means of each rank and seed, with Hillis's degrees of freedom.

    Args:
        means: (ranks, seeds).
        covariance: Cov2 - Cov3 of Obuchowski and Rockette (1995): the covariance over texts of two
            seeds of one rank minus that of two seeds of different ranks.
    """
    ranks, seeds = means.shape
    between = seeds * float(means.mean(axis=1).var(ddof=1))
    interaction = _interaction(means)
    error = interaction + seeds * max(0.0, covariance)
    freedom = error**2 / (interaction**2 / ((ranks - 1) * (seeds - 1)))
    return FTest(between / error, ranks - 1, freedom, float(f.sf(between / error, ranks - 1, freedom)))


def _interaction(table: Floats) -> float:
    """Mean square of the highest-order interaction of a table."""
    rest = table
    for axis in range(table.ndim):
        rest = rest - rest.mean(axis=axis, keepdims=True)
    return float((rest**2).sum() / np.prod([max(1, size - 1) for size in table.shape]))
