"""Intervals and paired tests for answers that are right or wrong.

A sweep asks every adapter the same texts, so its answers form a table of seeds by texts. Both are
samples: of the seeds that could have been drawn, and of the texts that could have been asked. The
variance of the table's mean counts both, by the crossed two-way layout with random effects
(Searle, Casella and McCulloch 1992, Variance Components, chapter 4), and its degrees of freedom
are Satterthwaite's (1946). Where several ranks are compared, the mean square of seeds is pooled over
all pairs, as in the analysis of variance: that of a single pair has too few degrees of freedom for
a correction of many tests. Resampling seeds instead would understate their share, by a third where
there are three; `bench/coverage.py` measures both.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, t

K = TypeVar("K", bound=Hashable)

Answers = NDArray[np.bool_]
"""(seeds, texts): whether the adapter of a seed answered a text rightly."""


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


def mean_accuracy_interval(answers: Answers, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a rank's mean accuracy, over texts and over seeds, as fractions.

    Wilson's interval with the number of independent answers that has the mean's variance (as for
    survey data: Franco et al. 2019, Journal of Survey Statistics and Methodology 7), and Student's
    t in place of the normal quantile. For one seed it is Wilson's interval over texts.
    """
    seeds, texts = answers.shape
    mean = float(answers.mean())
    if seeds == 1 or mean in (0.0, 1.0):
        # Without a single mistake, or success, nothing is known of how seeds differ.
        return accuracy_interval(round(mean * texts), texts, confidence)
    spread = _spread(_squares(answers.astype(np.float64)))
    number = mean * (1 - mean) / spread.variance
    quantile = float(t.ppf((1 + confidence) / 2, spread.freedom))
    shift = quantile**2 / number
    middle = (mean + shift / 2) / (1 + shift)
    half = quantile / (1 + shift) * math.sqrt((mean * (1 - mean) + shift / 4) / number)
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Difference:
    """How much more often one rank is right than another, on the same texts and seeds; fractions."""

    mean: float
    low: float  # 95 % interval
    high: float
    at_least: float  # one-sided 95 % bound
    at_most: float
    p: float  # two-sided; of no difference
    text_variance: float  # part of the mean's variance that more texts would shrink, and seeds would not
    seed_variance: float  # part that more seeds would shrink

    def reversed(self) -> Difference:
        """How much more often the other rank is right than the one."""
        turned = {"mean": -self.mean, "low": -self.high, "high": -self.low}
        return replace(self, **turned, at_least=-self.at_most, at_most=-self.at_least)


def difference(one: Answers, other: Answers) -> Difference:
    """The paired difference of two ranks' accuracies, where there are but two; see `differences`."""
    return differences({0: one, 1: other})[0, 1]


def differences(answers: Mapping[K, Answers]) -> dict[tuple[K, K], Difference]:
    """The paired difference of every two ranks' accuracies, in both directions: (rank, other).

    With several seeds, a t test on the crossed layout of seeds and texts; how much the differences vary
    with the seed is taken to be alike for all pairs of ranks. With one seed nothing is known of how
    seeds differ: the interval is over texts, and p is McNemar's, exact.
    """
    pairs = list(combinations(answers, 2))
    squares = [_squares(answers[a].astype(np.float64) - answers[b]) for a, b in pairs]
    pooled = float(np.mean([each.of_seeds for each in squares])) if pairs else 0.0
    found = {}
    for (a, b), each in zip(pairs, squares, strict=True):
        found[a, b] = _difference(answers[a], answers[b], each, pooled, len(answers) - 1)
        found[b, a] = found[a, b].reversed()
    return found


def _difference(
    one: Answers, other: Answers, squares: _Squares, pooled: float, independent: int
) -> Difference:
    """`pooled` is the mean square of seeds over all pairs, of which so many are independent."""
    spread = _spread(squares, pooled, independent)
    mean, error = squares.mean, math.sqrt(spread.variance)
    one_sided, two_sided = (np.asarray(t.ppf([0.95, 0.975], spread.freedom)) * error).tolist()
    if len(one) == 1:
        p = mcnemar(one[0], other[0])
    else:
        p = float(2 * t.sf(abs(mean) / error, spread.freedom)) if error else float(mean == 0)
    return Difference(
        mean=mean,
        low=max(-1.0, mean - two_sided),
        high=min(1.0, mean + two_sided),
        at_least=max(-1.0, mean - one_sided),
        at_most=min(1.0, mean + one_sided),
        p=p,
        text_variance=spread.texts,
        seed_variance=spread.seeds,
    )


def mcnemar(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Exact two-sided p that two classifiers err equally often (McNemar 1947), from (texts,) answers.

    >>> mcnemar(np.array([True] * 9 + [False]), np.array([False] * 9 + [True]))
    0.021484375
    """
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    if only_one + only_other == 0:
        return 1.0
    return float(binomtest(only_one, only_one + only_other).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Each p adjusted for the number of tests (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p)
    largest = 0.0
    for place, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - place) * p[i]))
        adjusted[i] = largest
    return adjusted


@dataclass(frozen=True)
class _Squares:
    """Mean of a (seeds, texts) table, and its mean squares: of seeds, of texts, of what is left."""

    seeds: int
    texts: int
    mean: float
    of_seeds: float
    of_texts: float
    left: float


def _squares(table: NDArray[np.float64]) -> _Squares:
    seeds, texts = table.shape
    mean, by_seed, by_text = table.mean(), table.mean(axis=1), table.mean(axis=0)
    rest = table - by_seed[:, None] - by_text + mean
    of_seeds = texts * ((by_seed - mean) ** 2).sum() / max(1, seeds - 1)
    of_texts = seeds * ((by_text - mean) ** 2).sum() / max(1, texts - 1)
    left = (rest**2).sum() / max(1, (seeds - 1) * (texts - 1))
    return _Squares(seeds, texts, float(mean), float(of_seeds), float(of_texts), float(left))


@dataclass(frozen=True)
class _Spread:
    """Variance of the mean of a (seeds, texts) table, its parts, its degrees of freedom."""

    variance: float
    texts: float
    seeds: float
    freedom: float


def _spread(squares: _Squares, of_seeds: float | None = None, tables: int = 1) -> _Spread:
    """Spread of a table's mean, the mean square of seeds being that of so many independent tables."""
    seeds, texts, left = squares.seeds, squares.texts, squares.left
    cells = seeds * texts
    if seeds == 1:
        return _Spread(squares.of_texts / cells, squares.of_texts / cells, 0.0, max(1, texts - 1))
    of_seeds = squares.of_seeds if of_seeds is None else of_seeds
    of_texts = max(squares.of_texts, left)
    # A component of variance is not below 0. One that is not above 0 has no uncertainty either.
    by_seed = max(0.0, of_seeds - left)
    total = by_seed + of_texts
    if total == 0.0:
        return _Spread(0.0, 0.0, 0.0, float(seeds - 1))
    freedom = np.array([tables * (seeds - 1), max(1, texts - 1), (seeds - 1) * max(1, texts - 1)])
    # Satterthwaite's formula takes a small mean square of few degrees of freedom, which is often
    # luck, at its word. The factor, 1.25 for two degrees, makes up for it, as `bench/coverage.py` shows.
    # The degrees are not fewer than those of seeds alone.
    used = np.array([of_seeds * (1 + 0.5 / freedom[0]) if by_seed else 0.0, of_texts, left])
    degrees = total**2 / float((used**2 / freedom).sum())
    by_text = of_texts - left
    return _Spread(total / cells, by_text / cells, (by_seed + left) / cells, max(float(freedom[0]), degrees))
