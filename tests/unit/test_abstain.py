"""Curves, bounds and thresholds against brute force, scipy and scikit-learn; promises against simulations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, binomtest, norm
from sklearn.metrics import roc_auc_score

from rankwise.stats.abstain import (
    LEVEL,
    answered,
    choose_threshold,
    detection,
    lower_bound,
    risk_coverage,
)


def test_the_curve_by_hand() -> None:
    found = risk_coverage(np.array([0.5, 0.9, 0.7, 0.6]), np.array([False, True, False, True]))
    assert found.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert found.risk == pytest.approx([0, 1 / 2, 1 / 3, 2 / 4])
    assert found.area == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)


def test_equal_confidences_are_the_mean_over_their_orders() -> None:
    rng = np.random.default_rng(0)
    confidence, right = rng.integers(0, 4, 40) / 4, rng.random(40) < 0.7
    risks = []
    for _ in range(3000):
        order = np.argsort(-(confidence + 1e-6 * rng.random(40)))
        risks.append(np.cumsum(~right[order]) / np.arange(1, 41))
    assert risk_coverage(confidence, right).risk == pytest.approx(np.mean(risks, axis=0), abs=0.03)
    same = risk_coverage(np.full(40, 0.5), right)
    assert same.risk == pytest.approx(np.full(40, (~right).mean()))


def test_the_lower_bound_is_scipys() -> None:
    for right, texts, tail in ((0, 7, 0.05), (7, 7, 0.005), (180, 200, 0.01), (1, 1000, 0.05)):
        theirs = binomtest(right, texts, alternative="greater").proportion_ci(1 - tail, method="exact").low
        assert lower_bound(right, texts, tail) == pytest.approx(theirs, abs=1e-9)
    assert lower_bound(0, 0, 0.05) == 0.0


def test_a_threshold_answers_as_much_as_is_shown() -> None:
    """A thousand texts; the less confident half is wrong as often as right."""
    confidence = np.linspace(0, 1, 1000, endpoint=False)
    right = (confidence >= 0.5) | (np.arange(1000) % 2 == 0)
    found = choose_threshold(confidence, right, 0.95)
    assert found and found.answered.threshold == pytest.approx(0.5)
    assert (found.answered.answered, found.answered.accuracy, found.answered.coverage) == (500, 1.0, 0.5)
    assert found.bound == pytest.approx(lower_bound(499, 499, LEVEL / 10))
    easy = choose_threshold(confidence, right, 0.7)
    assert easy and (easy.answered.threshold, easy.answered.coverage) == (0.0, 1.0)
    cautious = choose_threshold(confidence, right, 0.95, choices=50)
    assert cautious and cautious.bound < found.bound


def test_few_texts_show_nothing() -> None:
    assert choose_threshold(np.linspace(0.5, 1, 40), np.ones(40, bool), 0.95) is None
    assert choose_threshold(np.full(500, 0.5), np.arange(500) % 4 > 0, 0.95) is None
    assert answered(np.array([0.2, 0.4]), np.ones(2, bool), 0.5).accuracy is None


@pytest.mark.parametrize(("texts", "target"), [(300, 0.8), (1500, 0.9)])
def test_promises_are_kept(texts: int, target: float) -> None:
    """Confidence is uniform, and the chance of being right rises with it as a power, which no fit knows."""
    rng, broken, chosen, sweeps = np.random.default_rng(texts), 0, 0, 1000
    for _ in range(sweeps):
        confidence = rng.random(texts)
        found = choose_threshold(confidence, rng.random(texts) < confidence**0.25, target)
        if found:
            start = found.answered.threshold
            truth = (1 - start**1.25) / (1.25 * (1 - start))  # the mean of c ** 0.25 above the threshold
            broken, chosen = broken + (truth < target), chosen + 1
    assert chosen > 0.5 * sweeps
    assert broken <= beta.ppf(0.999, LEVEL * sweeps + 1, (1 - LEVEL) * sweeps) * sweeps


def test_detection_is_the_area_under_the_roc_curve() -> None:
    rng = np.random.default_rng(3)
    wrong = rng.random(200) < 0.2
    for signal in (rng.random(200) + 0.5 * wrong, rng.integers(0, 3, 200).astype(float)):
        found = detection(signal, wrong)
        assert found and found.value == pytest.approx(roc_auc_score(wrong, signal))
    assert detection(rng.random(5), np.array([True, False, False, False, False])) is None


def test_its_interval_covers_the_area_of_unlimited_texts() -> None:
    """Normal signals a standard deviation apart: the area is the normal distribution at 1 / sqrt(2)."""
    rng, truth, wrong = np.random.default_rng(4), norm.cdf(1 / np.sqrt(2)), np.arange(300) < 40
    found = [detection(rng.normal(size=300) + wrong, wrong) for _ in range(1000)]
    inside = np.mean([each is not None and each.low <= truth <= each.high for each in found])
    assert 0.92 <= inside <= 0.97
