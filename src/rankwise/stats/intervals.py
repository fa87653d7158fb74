"""Confidence intervals of accuracies: of an adapter over texts, of a rank over seeds and texts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit
from scipy.stats import binomtest

from rankwise.stats.crossed import PSEUDO_TEXTS, STEP, Floats, Variance, mean_squares

NORMAL = float(ndtri(0.975))
"""Quantile of the normal distribution for two-sided 95 %."""
Answers = NDArray[np.bool_]
"""(seeds, texts): whether each seed's adapter labeled each text correctly."""


def accuracy_interval(right: int, texts: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), as fractions.

    Args:
        right: number of correctly labeled texts.
        texts: number of texts, at least 1.
        confidence: nominal coverage.

    >>> low, high = accuracy_interval(1829, 2000)
    >>> f"{low:.4f} {high:.4f}"
    '0.9014 0.9260'
    """
    interval = binomtest(right, texts).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def wilson(share: float, number: float, quantile: float = NORMAL) -> tuple[float, float]:
    """Wilson's interval of a share, for a number of texts that need not be whole, such as an effective one.

    Args:
        share: the observed share, from 0 to 1.
        number: number of texts, above 0.
        quantile: of the normal or t distribution; by default that of 95 %.

    >>> [round(end, 4) for end in wilson(1829 / 2000, 2000)]
    [0.9014, 0.926]
    """
    shift = quantile**2 / number
    middle = (share + shift / 2) / (1 + shift)
    half = quantile / (1 + shift) * math.sqrt((share * (1 - share) + shift / 4) / number)
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_accuracy_interval(answers: Answers, confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a rank's mean accuracy, over texts and seeds, as fractions.

    Wilson's interval with the effective sample size that matches the variance of the mean (as for survey
    data: Franco et al. 2019, Journal of Survey Statistics and Methodology 7). For one seed it is Wilson's
    interval over texts. It accounts for other texts and other seeds, not for other training sets.
    """
    seeds, texts = answers.shape
    mean = float(answers.mean())
    if seeds == 1 or mean in (0.0, 1.0):
        # If all answers are right, or all wrong, there is no information on how seeds differ.
        return accuracy_interval(round(mean * texts), texts, confidence)
    variance = mean_squares(answers.astype(np.float64)).variance()
    # If all seeds have the same count, the estimated variance is 0; `paired` adds the same term.
    variance = replace(variance, by_seed=variance.by_seed + STEP / (seeds * texts**2))
    number = mean * (1 - mean) / float(variance.total[0])
    return wilson(mean, number, _quantile(variance, confidence))


def mean_interval(scores: Floats, confidence: float = 0.95, step: float | None = None) -> tuple[float, float]:
    """Confidence interval of the mean of any (seeds, texts) score, over texts and seeds.

    Args:
        scores: (seeds, texts).
        confidence: of the interval.
        step: by how much the score of a text changes with its label; None if continuously. With few wrong
            labels, their variance is estimated poorly, so that of `PSEUDO_TEXTS` further ones is added.
    """
    variance = mean_squares(scores).variance()
    if step is not None:
        few = PSEUDO_TEXTS * (step / scores.shape[1]) ** 2
        variance = replace(variance, by_text=variance.by_text + few)
    mean, half = float(scores.mean()), _quantile(variance, confidence) * math.sqrt(float(variance.total[0]))
    return mean - half, mean + half


def _quantile(variance: Variance, confidence: float) -> float:
    """Cochran and Cox (1957): the t quantiles of seeds and texts, weighted by their variances.

    At 95 %, its coverage is closer to nominal than that of Banerjee's bound; at higher confidence levels it
    is anti-conservative.
    """
    of_texts = -float(stdtrit(variance.text_freedom, (1 - confidence) / 2))
    if not variance.seed_freedom or not variance.total[0]:
        return of_texts
    of_seeds = -float(stdtrit(variance.seed_freedom, (1 - confidence) / 2))
    share = float(variance.by_seed[0] / variance.total[0])
    return share * of_seeds + (1 - share) * of_texts
