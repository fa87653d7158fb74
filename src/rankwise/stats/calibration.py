"""Temperature scaling, and how well probabilities are calibrated before and after it.

One number, the temperature, divides all logits. It is fitted by log loss on texts that the classifier was
not trained on (Guo et al. 2017, arXiv 1706.04599). It changes probabilities, but no label.

The texts that fit a temperature cannot measure it. So they are split into halves, and each half is measured
with the temperature of the other (cross-fitting).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import softmax

from rankwise.stats.crossed import Floats
from rankwise.stats.metrics import BINS, bin_of, text_log_losses

COLDEST, HOTTEST = 0.05, 20.0
"""Bounds of a temperature. One at a bound is not used: the log loss has no minimum between them."""
FEWEST_TEXTS = 50
STANDARD_ERRORS = 1.0
"""A temperature is used if so many texts show a cross-fitted gain in log loss above so many standard errors.

`bench/temperature.py` compares such rules.
"""
DRAWS = 1000
"""Bootstrap samples."""


def best_temperature(targets: NDArray[np.int64], logits: NDArray[np.float32]) -> float:
    """The temperature with the lowest log loss, from `COLDEST` to `HOTTEST`.

    The mean log loss is convex in the inverse temperature, so the root of its slope is the minimum.

    Args:
        targets: (texts,) label ids.
        logits: (texts, classes).

    >>> z = np.array([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]], np.float32)
    >>> round(best_temperature(np.array([0, 0, 0, 1]), z), 4)  # 2 / T = log(3)
    1.8205
    """
    z = logits.astype(np.float64)
    of_label = z[np.arange(len(targets)), targets].mean()

    def slope(inverse: float) -> float:
        """Of the mean log loss in the inverse temperature: mean expected logit minus mean true logit."""
        return float((softmax(inverse * z, axis=1) * z).sum(axis=1).mean() - of_label)

    low, high = 1 / HOTTEST, 1 / COLDEST
    if slope(low) >= 0:
        return HOTTEST
    if slope(high) <= 0:
        return COLDEST
    return 1 / float(brentq(slope, low, high, xtol=1e-12, rtol=1e-12))


def cross_fitted(targets: NDArray[np.int64], logits: NDArray[np.float32]) -> Floats:
    """(texts,): for each text, the temperature fitted on the half of the texts that it is not in.

    The halves are drawn with a fixed seed, so that equal inputs give equal results.

    Args:
        targets: (texts,) label ids, at least two.
        logits: (texts, classes).
    """
    order = np.random.default_rng(0).permutation(len(targets))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    found = np.empty(len(targets))
    for own, other in (halves, halves[::-1]):
        found[own] = best_temperature(targets[other], logits[other])
    return found


@dataclass(frozen=True)
class Fit:
    """A temperature, and what shows that it helps."""

    temperature: float
    texts: int
    gain: float  # log loss at temperature 1 minus that at the cross-fitted temperature, nats per text
    gain_error: float  # its standard error over texts

    @property
    def is_shown(self) -> bool:
        """Whether the texts show that the temperature lowers the log loss of other texts."""
        if self.texts < FEWEST_TEXTS or not COLDEST < self.temperature < HOTTEST:
            return False
        return self.gain > STANDARD_ERRORS * self.gain_error


def fit(targets: NDArray[np.int64], logits: NDArray[np.float32]) -> Fit | None:
    """Fit a temperature; None for fewer than four texts.

    Args:
        targets: (texts,) label ids.
        logits: (texts, classes).
    """
    if len(targets) < 4:
        return None
    gains = text_log_losses(targets, logits) - _scaled_losses(targets, logits, cross_fitted(targets, logits))
    error = float(gains.std(ddof=1) / np.sqrt(len(gains)))
    return Fit(best_temperature(targets, logits), len(targets), float(gains.mean()), error)


def usable_temperature(targets: NDArray[np.int64], logits: NDArray[np.float32]) -> float | None:
    """The temperature to store with a classifier; None if the texts do not show that one helps.

    Args:
        targets: (texts,) label ids.
        logits: (texts, classes).
    """
    found = fit(targets, logits)
    return found.temperature if found and found.is_shown else None


def probabilities(logits: NDArray[np.float32], temperature: Floats | float = 1.0) -> Floats:
    """(texts, classes) probabilities at a temperature, or at one for each text."""
    return np.asarray(softmax(_scaled(logits, temperature), axis=1))


def _scaled(logits: NDArray[np.float32], temperature: Floats | float) -> Floats:
    return np.asarray(logits.astype(np.float64) / np.reshape(temperature, (-1, 1)))


def _scaled_losses(
    targets: NDArray[np.int64], logits: NDArray[np.float32], temperature: Floats | float
) -> Floats:
    return text_log_losses(targets, _scaled(logits, temperature))


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval over texts."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Quality:
    """How good probabilities are on some texts."""

    log_loss: Estimate  # nats per text
    ece: Estimate  # expected calibration error, a fraction
    ece_by_chance: float  # what calibrated probabilities like these would have on so many texts


@dataclass(frozen=True)
class Scaling:
    """Probabilities before and after temperature scaling, on the same texts."""

    before: Quality
    after: Quality
    log_loss_gain: Estimate  # before minus after
    ece_gain: Estimate


def scaling(targets: NDArray[np.int64], logits: NDArray[np.float32], temperature: Floats | float) -> Scaling:
    """Compare probabilities before and after temperature scaling.

    The intervals are from a bootstrap over texts, with the temperatures held fixed. That of an expected
    calibration error is the basic bootstrap interval, because the error of a sample is too large on average,
    and that of a bootstrap sample by as much again. It begins at 0 if calibrated probabilities would show as
    large an error in more than 2.5 % of samples (Broecker and Smith 2007): near 0, a bootstrap alone fails.

    Args:
        targets: (texts,) label ids.
        logits: (texts, classes).
        temperature: one fitted on other texts, or (texts,) from `cross_fitted`.
    """
    texts = len(targets)
    weights = np.random.default_rng(0).multinomial(texts, np.full(texts, 1 / texts), DRAWS) / texts
    sides = [_Side.of(targets, logits, each) for each in (1.0, temperature)]
    losses, errors = (
        [(measure(side, np.full((1, texts), 1 / texts)), measure(side, weights)) for side in sides]
        for measure in (_Side.log_loss, _Side.ece)
    )
    before, after = (
        Quality(_percentile(*loss), _ece(*error, chance), float(chance.mean()))
        for loss, error, chance in zip(losses, errors, [side.by_chance() for side in sides], strict=True)
    )
    gains = [(whole[0] - other[0], whole[1] - other[1]) for whole, other in (losses, errors)]
    return Scaling(before, after, _percentile(*gains[0]), _basic(*gains[1]))


@dataclass(frozen=True)
class _Side:
    """One set of probabilities, as sums over texts: a sample is a row of weights."""

    losses: Floats  # (texts,)
    confidence: Floats  # (texts,) probability of the predicted label
    right: NDArray[np.bool_]  # (texts,)

    @classmethod
    def of(
        cls, targets: NDArray[np.int64], logits: NDArray[np.float32], temperature: Floats | float
    ) -> _Side:
        found = probabilities(logits, temperature)
        right = found.argmax(axis=1) == targets
        return cls(_scaled_losses(targets, logits, temperature), found.max(axis=1), right)

    def log_loss(self, weights: Floats) -> Floats:
        """(samples,) from weights (samples, texts), which sum to 1."""
        return np.asarray(weights @ self.losses)

    def ece(self, weights: Floats) -> Floats:
        """(samples,) expected calibration error over `BINS` bins of equal width."""
        return _error(weights, self.confidence, self.right)

    def by_chance(self) -> Floats:
        """(samples,) errors if each label were right with its probability; their mean is the bias."""
        texts, rng = len(self.right), np.random.default_rng(0)
        right = rng.random((DRAWS // 4, texts)) < self.confidence
        return _error(np.full((len(right), texts), 1 / texts), self.confidence, right)


def _error(weights: Floats, confidence: Floats, right: NDArray[np.bool_]) -> Floats:
    """(samples,): the sum over bins of |sum of weight * (right - confidence)|."""
    in_bin = np.eye(BINS)[bin_of(confidence)]  # (texts, bins)
    return np.asarray(np.abs((weights * (right - confidence)) @ in_bin).sum(axis=1))


def _percentile(value: Floats, samples: Floats) -> Estimate:
    low, high = np.quantile(samples, (0.025, 0.975))
    return Estimate(float(value[0]), float(low), float(high))


def _basic(value: Floats, samples: Floats) -> Estimate:
    low, high = np.quantile(samples, (0.025, 0.975))
    found = float(value[0])
    return Estimate(found, 2 * found - float(high), 2 * found - float(low))


def _ece(value: Floats, samples: Floats, by_chance: Floats) -> Estimate:
    found = _basic(value, samples)
    is_chance = found.value <= np.quantile(by_chance, 0.975)
    return Estimate(found.value, 0.0 if is_chance else max(0.0, found.low), max(found.value, found.high))
