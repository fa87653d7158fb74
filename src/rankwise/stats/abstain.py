"""Classifiers that may abstain: risk against coverage, thresholds for a target accuracy, signals of errors.

A classifier abstains from a text if the probability of its label is below a threshold. The share of texts
that it answers is its coverage, and the share of wrong labels among them its risk (El-Yaniv and Wiener 2010;
Geifman and El-Yaniv 2017, arXiv 1705.08500).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv
from scipy.stats import rankdata

from rankwise.stats.calibration import Estimate
from rankwise.stats.crossed import Floats
from rankwise.stats.intervals import NORMAL

Right = NDArray[np.bool_]
"""(texts,): whether each label is correct."""
CANDIDATES = 10
"""Coverages that are tried: a tenth of the texts, two tenths, ..., all of them."""
LEVEL = 0.05
"""Probability that a threshold's answers are less accurate than it promises."""
DIGITS = 6
"""Decimals of a threshold."""


@dataclass(frozen=True)
class Curve:
    """Risk against coverage, the most confident texts first. Fractions from 0 to 1."""

    coverage: Floats  # (texts,) 1 / texts, 2 / texts, ..., 1
    risk: Floats  # (texts,) share of wrong labels among the answered texts

    @property
    def area(self) -> float:
        """Area under the curve: the mean risk over all coverages; in a random order, the error rate."""
        return float(self.risk.mean())


def risk_coverage(confidence: Floats, right: Right) -> Curve:
    """The curve of a classifier. Texts of equal confidence have no order: their errors are spread evenly.

    Args:
        confidence: (texts,) probability of each label.
        right: (texts,) whether it is correct.

    >>> risk_coverage(np.array([0.9, 0.6, 0.8]), np.array([True, False, True])).risk.round(3).tolist()
    [0.0, 0.0, 0.333]
    """
    order = np.argsort(-confidence, kind="stable")
    ranked, number = confidence[order], np.arange(1, len(order) + 1)
    ends = np.flatnonzero(np.diff(ranked, append=-np.inf))  # the last text of each confidence
    wrong = np.cumsum(~right[order])[ends]
    spread = np.interp(number, np.concatenate([[0], ends + 1]), np.concatenate([[0], wrong]))
    return Curve(number / len(order), spread / number)


@dataclass(frozen=True)
class Answered:
    """What a threshold does on some texts."""

    threshold: float
    texts: int
    answered: int
    right: int

    @property
    def coverage(self) -> float:
        """Share of the texts that are answered."""
        return self.answered / self.texts

    @property
    def accuracy(self) -> float | None:
        """Share of correct labels among the answers; None if there are none."""
        return self.right / self.answered if self.answered else None


def answered(confidence: Floats, right: Right, threshold: float) -> Answered:
    """The number of answers at a threshold, and how many of them are correct."""
    given = confidence >= threshold
    return Answered(threshold, len(right), int(given.sum()), int((given & right).sum()))


@dataclass(frozen=True)
class Chosen:
    """A threshold for a target accuracy, on the texts that it was chosen on."""

    answered: Answered
    bound: float  # lower confidence bound of the accuracy of its answers


def choose_threshold(
    confidence: Floats, right: Right, target: float, *, choices: int = 1, level: float = LEVEL
) -> Chosen | None:
    """The threshold with the most answers whose accuracy is shown to be at least a target.

    `CANDIDATES` coverages are tried. Each has an exact lower bound of its accuracy (Clopper and Pearson 1934)
    at the level divided by the number of candidates and choices (Bonferroni). So the accuracy on new texts of
    the same kind is below the target in at most `level` of such choices, whichever candidate is taken.

    Args:
        confidence: (texts,) probability of each label.
        right: (texts,) whether it is correct.
        target: accuracy to reach, between 0 and 1.
        choices: number of classifiers of which this one was selected by the same texts.
        level: the probability of error.

    Returns:
        None if no candidate is shown to reach the target.
    """
    ranked = np.sort(confidence)[::-1]
    tail = level / (CANDIDATES * choices)
    for tenths in range(CANDIDATES, 0, -1):
        # Given the text at the threshold, those above it are a sample of all texts above it, so that text
        # itself does not count. A threshold of 0 answers all texts, and all count.
        last = math.ceil(len(ranked) * tenths / CANDIDATES) - 1
        threshold = 0.0 if tenths == CANDIDATES else _rounded_up(ranked[last])
        above = confidence > threshold
        number, correct = int(above.sum()), int((above & right).sum())
        bound = lower_bound(correct, number, tail)
        if bound >= target:
            return Chosen(answered(confidence, right, threshold), bound)
    return None


def lower_bound(right: int, texts: int, tail: float) -> float:
    """The exact lower confidence bound of an accuracy (Clopper and Pearson 1934).

    Args:
        right: number of correct labels.
        texts: number of labels.
        tail: probability that the bound is above the accuracy.

    >>> round(lower_bound(59, 59, 0.05), 4)
    0.9505
    """
    return float(betaincinv(right, texts - right + 1, tail)) if right else 0.0


def _rounded_up(threshold: float) -> float:
    return float(math.ceil(threshold * 10**DIGITS) / 10**DIGITS)


def detection(signal: Floats, wrong: Right) -> Estimate | None:
    """How often a wrong label has more of a signal than a correct one: the area under the ROC curve.

    The interval is at 95 %, over texts (DeLong, DeLong and Clarke-Pearson 1988).

    Args:
        signal: (texts,); equal values count as half.
        wrong: (texts,) whether the label is wrong.

    Returns:
        None if fewer than two labels are wrong, or fewer than two are correct.
    """
    ours, theirs = signal[wrong], signal[~wrong]
    if min(len(ours), len(theirs)) < 2:
        return None
    ranks = rankdata(signal)
    # For each text, the share of the other kind of texts with less of the signal, or with more.
    less = (ranks[wrong] - rankdata(ours)) / len(theirs)
    more = 1 - (ranks[~wrong] - rankdata(theirs)) / len(ours)
    area = float(less.mean())
    error = math.sqrt(less.var(ddof=1) / len(ours) + more.var(ddof=1) / len(theirs))
    return Estimate(area, max(0.0, area - NORMAL * error), min(1.0, area + NORMAL * error))
