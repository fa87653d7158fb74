"""Intervals and paired tests for answers that are right or wrong.

A sweep asks every adapter the same texts, so its answers form a table of seeds by texts. Both are
samples: of the seeds that could have been drawn, and of the texts that could have been asked. The
variance of the table's mean counts both, by the crossed two-way layout with random effects
(Searle, Casella and McCulloch 1992, Variance Components, chapter 4), and its degrees of freedom
are Satterthwaite's (1946). Resampling seeds instead would understate their share, by a third where
there are three.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, t

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
    spread = _spread(answers.astype(np.float64))
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
    p: float  # two-sided; of no difference
    text_variance: float  # part of the mean's variance that more texts would shrink, and seeds would not
    seed_variance: float  # part that more seeds would shrink


def difference(one: Answers, other: Answers) -> Difference:
    """The paired difference of two ranks' accuracies.

    With several seeds, a t test on the crossed layout of seeds and texts. With one seed nothing is
    known of how seeds differ: the interval is over texts, and p is McNemar's, exact.
    """
    values = one.astype(np.float64) - other
    spread = _spread(values)
    mean, error = float(values.mean()), math.sqrt(spread.variance)
    quantile = float(t.ppf(0.975, spread.freedom)) * error
    p = mcnemar(one[0], other[0])
    if len(values) > 1:
        p = float(2 * t.sf(abs(mean) / error, spread.freedom)) if error else float(mean == 0)
    return Difference(
        mean=mean,
        low=max(-1.0, mean - quantile),
        high=min(1.0, mean + quantile),
        at_least=max(-1.0, mean - float(t.ppf(0.95, spread.freedom)) * error),
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
class _Spread:
    """Variance of the mean of a (seeds, texts) table, its parts, its degrees of freedom."""

    variance: float
    texts: float
    seeds: float
    freedom: float


def _spread(table: NDArray[np.float64]) -> _Spread:
    seeds, texts = table.shape
    mean, by_seed, by_text = table.mean(), table.mean(axis=1), table.mean(axis=0)
    if seeds == 1:
        variance = float(table.var(ddof=1) / texts) if texts > 1 else 0.0
        return _Spread(variance, variance, 0.0, max(1, texts - 1))
    rest = table - by_seed[:, None] - by_text + mean
    freedom = np.array([seeds - 1, texts - 1, (seeds - 1) * max(1, texts - 1)], dtype=np.float64)
    squares = np.array(
        [texts * ((by_seed - mean) ** 2).sum(), seeds * ((by_text - mean) ** 2).sum(), (rest**2).sum()]
    )
    # Mean squares of seeds, of texts, of what is left. A component of variance is not below 0.
    of_seeds, of_texts, left = (squares / np.maximum(freedom, 1)).tolist()
    parts = max(0.0, of_seeds - left), max(0.0, of_texts - left), left
    total = sum(parts)
    if total == 0.0:
        return _Spread(0.0, 0.0, 0.0, float(freedom[2]))
    # The seeds' mean square stays in even where it is small: with few seeds a small one is often luck.
    used = np.array([of_seeds, of_texts if parts[1] else 0.0, left])
    degrees = total**2 / float((used**2 / np.maximum(freedom, 1)).sum())
    cells = seeds * texts
    return _Spread(total / cells, parts[1] / cells, (parts[0] + left) / cells, max(1.0, degrees))
