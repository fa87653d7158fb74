"""The crossed design: all seeds of all ranks are evaluated on the same texts.

Diagnostic radiology calls this a multi-reader multi-case study: readers correspond to seeds, cases to
texts, and modalities to ranks. Both readers and cases are random samples, so the mean of a (seeds, texts)
table varies with both (Dorfman, Berbaum and Metz 1992; Obuchowski and Rockette 1995; unified by
Hillis 2007, Statistics in Medicine 26):

    variance of the mean  =  MS_seeds / (seeds texts)                        varies with the seed
                          +  max(0, MS_texts - MS_left) / (seeds texts)      varies with the text alone

The first term has seeds - 1 degrees of freedom, which is 1 or 2 in most sweeps. Hillis (2007) combines
both terms into one t distribution by Satterthwaite's formula. This is nearly exact with five or more seeds,
but with two seeds the error rate of a one-sided 5 % test reaches 8 %, and it is worse at the small levels
needed for many comparisons. Claims are therefore based on Banerjee's bound (1960, Sankhya 22), which is
conservative:

    half width ^ 2  =  t(seeds - 1) ^ 2 * first term  +  t(texts - 1) ^ 2 * second term

`bench/coverage.py` measures both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Floats = NDArray[np.float64]

STEP = 0.125
"""Variance over seeds, in texts squared, to add to counts, which may coincide by chance."""
PSEUDO_TEXTS = 0.5
"""Texts added to a variance, so that no observed disagreement, or no error, does not imply no variance."""


@dataclass(frozen=True)
class MeanSquares:
    """Analysis of variance of (seeds, texts) tables; arrays have one entry per table."""

    seeds: int
    texts: int
    of_seeds: Floats
    of_texts: Floats
    left: Floats  # residual: interaction of seeds and texts, and noise

    def variance(self) -> Variance:
        """The variance of the tables' means, by source."""
        cells = self.seeds * self.texts
        if self.seeds == 1:
            none = np.zeros_like(self.of_texts)
            return Variance(none, self.of_texts / cells, none, 0, max(1, self.texts - 1))
        shared = np.maximum(0.0, self.of_texts - self.left) / cells
        return Variance(
            self.of_seeds / cells, shared, self.left / cells, self.seeds - 1, max(1, self.texts - 1)
        )


@dataclass(frozen=True)
class Variance:
    """Variance of the means of tables, by source; arrays have one entry per table.

    With one seed, `by_seed` is 0: the mean then describes this adapter only, and only texts are sampled.
    """

    by_seed: Floats
    by_text: Floats
    chance: Floats  # the part of `by_seed` that also decreases with more texts
    seed_freedom: int  # seeds - 1
    text_freedom: int  # texts - 1
    text_level: float = 1.0  # level of the text part of a test, as a multiple of that of the seed part

    @property
    def total(self) -> Floats:
        """Variance of the mean."""
        return self.by_seed + self.by_text

    def half_width(self, tail: Floats | float) -> Floats:
        """Banerjee's bound: the deviation to one side that is exceeded with at most this probability.

        Args:
            tail: one-sided probability, below 0.5; broadcast against the tables. That of the text part is
                `text_level` times as high, and its quantile is at most that of the seed part.

        A difference to one of two baselines, with standard errors of 0.8 points over three seeds and 0.6 over
        2,000 texts, at 2.5 %, adjusted for five ranks times two baselines, and as `verdict` adjusts it:

        >>> three = Variance(np.array([0.8**2]), np.array([0.6**2]), np.zeros(1), 2, 1999)
        >>> [round(float(three.half_width(0.025 / tests)[0]), 2) for tests in (1, 10)]
        [3.64, 11.4]
        >>> chosen = Variance(np.array([0.8**2]), np.array([0.6**2]), np.zeros(1), 2, 1999, text_level=1 / 2)
        >>> round(float(chosen.half_width(0.025 / 2)[0]), 2)
        5.19
        """
        of_text = stdtrit(self.text_freedom, self.text_level * np.asarray(tail)) ** 2
        if not self.seed_freedom:
            return np.asarray(np.sqrt(of_text * self.by_text))
        of_seed = np.maximum(stdtrit(self.seed_freedom, tail) ** 2, of_text)
        return np.asarray(np.sqrt(of_seed * self.by_seed + of_text * self.by_text))

    def tail(self, distance: Floats) -> Floats:
        """The inverse of `half_width`: the one-sided p-value of a distance, at most 0.5."""
        # With one degree of freedom, the square of a quantile at a smaller p-value overflows.
        low, high = np.full(np.shape(distance), -340.0), np.full(np.shape(distance), np.log(0.5))
        for _ in range(60):
            middle = (low + high) / 2
            wide = self.half_width(np.exp(middle)) > distance
            low, high = np.where(wide, middle, low), np.where(wide, high, middle)
        return np.where(distance > 0, np.exp(high), 0.5)


def is_binary(scores: Floats) -> bool:
    """Whether all scores are 0 or 1."""
    return bool(((scores == 0) | (scores == 1)).all())


def mean_squares(table: Floats) -> MeanSquares:
    """The mean squares of one (seeds, texts) table, as arrays of one entry."""
    seeds, texts = table.shape
    by_seed, by_text, mean = table.mean(axis=1), table.mean(axis=0), table.mean()
    rest = table - by_seed[:, None] - by_text + mean
    return MeanSquares(
        seeds=seeds,
        texts=texts,
        of_seeds=np.array([texts * ((by_seed - mean) ** 2).sum() / max(1, seeds - 1)]),
        of_texts=np.array([seeds * ((by_text - mean) ** 2).sum() / max(1, texts - 1)]),
        left=np.array([(rest**2).sum() / max(1, (seeds - 1) * (texts - 1))]),
    )
