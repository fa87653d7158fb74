"""Paired differences between ranks on the same seeds and texts, and tests of these differences.

Works for any real-valued score of a text: correctness, negative log loss, or a jackknife pseudo-value of
macro-F1. Each pair of ranks has its own variance over texts and seeds: a rank that is unstable over seeds
is not pooled with stable ones. `crossed` describes the design and the literature.

Binary scores of few texts are far from normal, and identical answers have an estimated variance of 0. For
binary scores, the variance is therefore the one implied by the tested difference, as in Tango's score test
(1998, Statistics in Medicine 17): adapters that differ by d disagree on at least a fraction d of the texts.

Macro-F1 has the same difficulty, because it only changes with labels, and a text of a rare class changes it
most. Its pseudo-values are treated like binary scores whose step is that of the rarest class. The log loss
differs between any two adapters on every text; its tests rely on the variance that is observed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from rankwise.stats.crossed import PSEUDO_TEXTS, STEP, Floats, MeanSquares, Variance, is_binary

CONTINUITY = 0.5
"""Continuity correction of a difference of binary scores, in texts: half a step of a count."""


@dataclass(frozen=True)
class Paired:
    """Differences (first minus second) of pairs of ranks; arrays have one entry per pair."""

    seeds: int
    texts: int
    mean: Floats
    variance: Variance
    disagreement: Floats | None  # fraction of (seed, text) cells that differ by a step; None without steps
    step: float | None  # by how much the score of a text changes with its label; None if continuously

    def reversed(self) -> Paired:
        """Second minus first."""
        return replace(self, mean=-self.mean)

    def pick(self, which: NDArray[np.intp] | Sequence[int]) -> Paired:
        """A subset of the pairs."""
        variance = replace(
            self.variance,
            by_seed=self.variance.by_seed[which],
            by_text=self.variance.by_text[which],
            chance=self.variance.chance[which],
        )
        share = None if self.disagreement is None else self.disagreement[which]
        return Paired(self.seeds, self.texts, self.mean[which], variance, share, self.step)

    def at_text_level(self, level: float) -> Paired:
        """The same differences, tested with the text part at `level` times the level of the seed part."""
        return replace(self, variance=replace(self.variance, text_level=level))

    def exceeds(self, value: Floats | float, tail: float) -> NDArray[np.bool_]:
        """Whether a one-sided test at this level shows the difference to exceed a value."""
        shown = self._distance(value) > self.variance_at(value).half_width(tail)
        return shown & self._has_variance

    def p(self) -> Floats:
        """Two-sided p-value of no difference; for one seed and binary scores, at least McNemar's exact."""
        if not self._has_variance:
            return np.ones_like(self.mean)
        p = np.minimum(1.0, 2 * self.variance_at(0.0).tail(self._distance(0.0, np.abs(self.mean))))
        if self.seeds == 1 and self.disagreement is not None and self.step == 1:
            counts = np.rint(self.texts * np.array([self.disagreement, self.mean])).astype(int)
            exact = [_sign_test((total + surplus) // 2, total) for total, surplus in counts.T]
            p = np.maximum(p, np.minimum(1.0, np.array(exact) / self.variance.text_level))
        return p

    def lower(self, tail: float) -> Floats:
        """The largest value that a one-sided test at this level shows the difference to exceed."""
        if self.disagreement is None:
            return self.mean - self.variance.half_width(tail)
        low, high = np.full_like(self.mean, -1.0), self.mean.copy()
        for _ in range(40):
            middle = (low + high) / 2
            shown = self.exceeds(middle, tail)
            low, high = np.where(shown, middle, low), np.where(shown, high, middle)
        return low

    def interval(self, confidence: float) -> tuple[Floats, Floats]:
        """Two-sided interval, which contains 0 exactly if `p` is at least 1 - confidence."""
        tail = (1 - confidence) / 2
        low, high = self.lower(tail), -self.reversed().lower(tail)
        none = self.p() >= 1 - confidence
        return np.where(none, np.minimum(low, 0.0), low), np.where(none, np.maximum(high, 0.0), high)

    def variance_at(self, value: Floats | float) -> Variance:
        """The variance if the true difference were this value."""
        if self.disagreement is None or self.step is None:
            return self.variance
        texts, mean = self.texts, self.mean / self.step
        factor = texts * self._spread_at(value / self.step)
        factor = factor / (texts * (self.disagreement - mean**2) + PSEUDO_TEXTS)
        factor = np.maximum(1.0, factor)
        by_text = factor * (self.variance.by_text + PSEUDO_TEXTS * (self.step / texts) ** 2)
        # Even seeds with equal counts differ by some fraction of a text.
        apart = STEP * (self.step / texts) ** 2 / self.seeds if self.seeds > 1 else 0.0
        by_seed = factor * (self.variance.by_seed + apart)
        return replace(self.variance, by_seed=by_seed, by_text=by_text)

    @property
    def _has_variance(self) -> bool:
        """Whether there is a variance over texts: a single text shows none, unless its score has steps."""
        return self.texts > 1 or self.step is not None

    def _distance(self, value: Floats | float, mean: Floats | None = None) -> Floats:
        reduced = 0.0 if self.step is None else CONTINUITY * self.step / self.texts
        return np.asarray((self.mean if mean is None else mean) - value - reduced)

    def _spread_at(self, value: Floats | float) -> Floats:
        """Variance of a single difference, in steps: constrained maximum likelihood (Tango 1998)."""
        assert self.disagreement is not None and self.step is not None
        share, mean = self.disagreement, self.mean / self.step
        worse = (share - mean) / 2  # fraction of cells that only the second has right
        linear = -share + (2 - mean) * value
        only_second = (np.sqrt(np.maximum(0.0, linear**2 + 8 * worse * value * (1 - value))) - linear) / 4
        return np.asarray(np.maximum(0.0, 2 * only_second + value - value**2))


def pair_up(
    scores: Sequence[Floats], pairs: Sequence[tuple[int, int]] | None = None, step: float | None = None
) -> Paired:
    """Paired differences of tables, computed from cross products, which is fast for many pairs.

    Args:
        scores: one (seeds, texts) table per rank, for the same seeds and texts.
        pairs: pairs of positions in `scores`; all pairs by default.
        step: by how much the score of a text changes with its label (`macro_f1_step`); by default 1 for
            binary scores, and None for others.
    """
    table = np.stack([np.asarray(each, dtype=np.float64) for each in scores])
    _, seeds, texts = table.shape
    if step is None and is_binary(table):
        step = 1.0
    one, other = np.array(list(combinations(range(len(table)), 2)) if pairs is None else pairs).T
    table = table - table.mean()
    means = table.mean(axis=(1, 2))
    cells = _squared(table.reshape(len(table), -1), one, other)
    by_seed = texts * _squared(table.mean(axis=2), one, other)
    by_text = seeds * _squared(table.mean(axis=1), one, other)
    mean = means[one] - means[other]
    grand = seeds * texts * mean**2
    squares = MeanSquares(
        seeds=seeds,
        texts=texts,
        of_seeds=np.maximum(0.0, by_seed - grand) / max(1, seeds - 1),
        of_texts=np.maximum(0.0, by_text - grand) / max(1, texts - 1),
        left=np.maximum(0.0, cells - by_seed - by_text + grand) / max(1, (seeds - 1) * (texts - 1)),
    )
    share = None if step is None else _share(cells / (seeds * texts), mean, step)
    return Paired(seeds, texts, mean, squares.variance(), share, step)


def _share(square: Floats, mean: Floats, step: float) -> Floats:
    """The share of cells that differ, if each that does differs by a step."""
    return np.asarray(np.maximum(square / step**2, np.abs(mean) / step))


def _squared(rows: Floats, one: NDArray[np.intp], other: NDArray[np.intp]) -> Floats:
    """Sum of squared differences of the rows of each pair."""
    products = rows @ rows.T
    own = np.diag(products)
    return np.asarray(np.maximum(0.0, own[one] + own[other] - 2 * products[one, other]))


def mcnemar(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Two-sided p-value of McNemar's exact test (1947) for two classifiers, from (texts,) answers.

    >>> mcnemar(np.array([True] * 9 + [False]), np.array([False] * 9 + [True]))
    0.021484375
    """
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    return _sign_test(only_one, only_one + only_other)


def _sign_test(wins: int, total: int) -> float:
    return float(binomtest(int(wins), int(total)).pvalue) if total else 1.0


def macro_f1_pseudo_values(
    predicted: NDArray[np.integer], truth: NDArray[np.integer], classes: int
) -> Floats:
    """Jackknife pseudo-values of macro-F1, one per text (Quenouille 1956), whose mean is macro-F1.

    Dorfman, Berbaum and Metz (1992) analyze such values like per-case scores. They are shifted so that
    their mean is the metric itself and not its jackknife estimate (Hillis et al. 2005, Statistics in
    Medicine 24).

    Args:
        predicted: (seeds, texts) class numbers.
        truth: (texts,) class numbers.
        classes: number of classes; a class without texts and predictions has an F1 of 0.

    Returns:
        (seeds, texts), as fractions.
    """
    return np.stack([_pseudo_values(each, truth, classes) for each in predicted])


def macro_f1_step(truth: NDArray[np.integer]) -> float:
    """About the largest change of macro-F1 with the label of one text, times the number of texts.

    If F1 scores are near 1, a wrong label for one of n texts of a class lowers the class's F1 by 1 / (2 n),
    and that of the predicted class likewise. The first class is taken to be the rarest, the second an average
    one. With classes of equal size, the step is 1, as for accuracy.

    Args:
        truth: (texts,) class numbers; every class from 0 to the largest has texts.
    """
    counts = np.bincount(truth)
    return float((len(truth) / (len(counts) * counts.min()) + 1) / 2)


def _pseudo_values(predicted: NDArray[np.integer], truth: NDArray[np.integer], classes: int) -> Floats:
    names = np.arange(classes)
    return label_set_pseudo_values(predicted[:, None] == names, truth[:, None] == names)


def label_set_pseudo_values(said: NDArray[np.bool_], real: NDArray[np.bool_]) -> Floats:
    """Jackknife pseudo-values of macro-F1 as in `macro_f1_pseudo_values`, of texts with any number of labels.

    Args:
        said: (texts, classes) whether each label was predicted.
        real: (texts, classes) whether the text has it.

    Returns:
        (texts,), as fractions.
    """
    texts = len(real)
    true = (said & real).sum(axis=0)
    size = said.sum(axis=0) + real.sum(axis=0)  # F1 of a class is 2 true / size
    fewer_true = true - (said & real)  # (texts, classes), leaving out each text
    fewer = size - said - real
    without = (2 * fewer_true / np.maximum(1, fewer)).mean(axis=1)
    whole = (2 * true / np.maximum(1, size)).mean()
    return np.asarray(whole - (texts - 1) * (without - without.mean()))
