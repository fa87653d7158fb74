"""Wilson's interval against the formula, and against scipy's own."""

from __future__ import annotations

import math

import pytest
from scipy.stats import binomtest, norm

from rankwise.stats import accuracy_interval


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
def test_it_stays_a_share(right: int, texts: int) -> None:
    low, high = accuracy_interval(right, texts)
    assert 0 <= low < high <= 1
    assert low <= right / texts <= high


def test_more_texts_say_more() -> None:
    widths = [high - low for low, high in (accuracy_interval(n // 2, n) for n in (10, 100, 1000))]
    assert widths == sorted(widths, reverse=True)
