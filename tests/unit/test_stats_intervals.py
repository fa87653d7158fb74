"""Intervals of an accuracy against formulas and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest, norm, ttest_1samp
from sklearn.metrics import f1_score

from rankwise.stats.intervals import accuracy_interval, mean_accuracy_interval, mean_interval
from rankwise.stats.paired import macro_f1_pseudo_values, macro_f1_step


@pytest.mark.parametrize("confidence", [0.95, 0.9])
@pytest.mark.parametrize(("right", "texts"), [(1829, 2000), (0, 10), (10, 10), (1, 1), (0, 1), (7, 12)])
def test_wilson(right: int, texts: int, confidence: float) -> None:
    z = float(norm.ppf(0.5 + confidence / 2))
    share = right / texts
    middle = (share + z * z / (2 * texts)) / (1 + z * z / texts)
    half = z / (1 + z * z / texts) * math.sqrt(share * (1 - share) / texts + (z / (2 * texts)) ** 2)
    assert accuracy_interval(right, texts, confidence) == pytest.approx(
        (middle - half, middle + half), abs=1e-12
    )
    theirs = binomtest(right, texts).proportion_ci(confidence, method="wilson")
    assert accuracy_interval(right, texts, confidence) == pytest.approx(tuple(theirs))


def test_by_hand() -> None:
    """Five of ten: 0.5 +- 1.96 / (1 + 3.84 / 10) * sqrt(0.025 + 0.0096)."""
    assert accuracy_interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


@pytest.mark.parametrize(("right", "texts"), [(0, 1), (1, 1), (0, 2000), (2000, 2000)])
def test_an_accuracy_stays_between_0_and_1(right: int, texts: int) -> None:
    low, high = accuracy_interval(right, texts)
    assert 0 <= low < high <= 1
    assert low <= right / texts <= high


def test_more_texts_say_more() -> None:
    widths = [high - low for low, high in (accuracy_interval(n // 2, n) for n in (10, 100, 1000))]
    assert widths == sorted(widths, reverse=True)


def test_one_seed_is_wilson() -> None:
    answers = np.random.default_rng(0).random((1, 300)) < 0.9
    assert mean_accuracy_interval(answers) == accuracy_interval(int(answers.sum()), 300)


def test_no_mistake_at_all_is_wilson() -> None:
    assert mean_accuracy_interval(np.ones((3, 10), dtype=bool)) == accuracy_interval(10, 10)


def test_seeds_that_agree_by_chance_still_have_an_interval() -> None:
    """Two seeds with equally many errors on different texts: neither mean square exceeds the residual."""
    answers = np.array([[True, False, True, True], [False, True, True, True]])
    low, high = mean_accuracy_interval(answers)
    assert 0 <= low < 0.75 < high <= 1


def test_seeds_that_answer_every_text_alike_are_the_sample() -> None:
    """Texts add no variance, and the interval is that of a t test over seeds."""
    by_seed = np.array([0.1, 0.4, 0.3, 0.6])
    theirs = ttest_1samp(by_seed, 0).confidence_interval()
    assert mean_interval(np.repeat(by_seed[:, None], 50, axis=1)) == pytest.approx(tuple(theirs))


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.05), (5, 0.05)])
def test_the_interval_covers_as_often_as_it_says(seeds: int, spread: float) -> None:
    rng, hits = np.random.default_rng(1), 0
    level = norm.ppf(0.9) * np.sqrt(1 + 4 + spread**2)
    for _ in range(1000):
        luck = spread * rng.standard_normal((seeds, 1))
        signal = level + 2 * rng.standard_normal(500) + luck + rng.standard_normal((seeds, 500))
        low, high = mean_accuracy_interval(signal > 0)
        hits += low <= 0.9 <= high
    assert 930 <= hits <= 980


def test_macro_f1_with_few_errors_is_covered() -> None:
    """3 % of the labels are wrong. Without the variance of a step, 87 % of the intervals cover."""
    counts = [150, 40, 8, 2]
    rng, classes = np.random.default_rng(0), len(counts)

    def answers(times: int) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], ...]:
        truth = np.repeat(np.arange(classes), times * np.array(counts))
        wrong = rng.random(len(truth)) < 0.03
        return np.where(wrong, (truth + rng.integers(1, classes, len(truth))) % classes, truth), truth

    predicted, truth = answers(1000)
    true = f1_score(truth, predicted, average="macro")
    covered = 0
    for _ in range(300):
        predicted, truth = answers(1)
        values = macro_f1_pseudo_values(predicted[None], truth, classes)
        low, high = mean_interval(values, step=macro_f1_step(truth))
        covered += low <= true <= high
    assert covered > 0.9 * 300
