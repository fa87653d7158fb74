"""Intervals and tests against formulas, scipy and simulation."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from bench import coverage
from scipy.stats import binomtest, norm, ttest_1samp

from rankwise import stats
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


def simulated(
    rng: np.random.Generator, accuracy: float, seeds: int, texts: int, adapters: int, spread: float
) -> list[stats.Answers]:
    """Answers of equally good ranks: texts of unequal difficulty, seeds of unequal luck (probit model)."""
    level = norm.ppf(accuracy) * np.sqrt(1 + 4 + spread**2)
    difficulty = 2 * rng.standard_normal(texts)
    return [
        level + difficulty + spread * rng.standard_normal((seeds, 1)) + rng.standard_normal((seeds, texts))
        > 0
        for _ in range(adapters)
    ]


@pytest.mark.parametrize(("seeds", "texts", "spread"), [(1, 500, 0.0), (3, 500, 0.05), (5, 2000, 0.05)])
def test_the_interval_covers_as_often_as_it_says(seeds: int, texts: int, spread: float) -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(1000):
        (answers,) = simulated(rng, 0.9, seeds, texts, 1, spread)
        low, high = stats.mean_accuracy_interval(answers)
        hits += low <= 0.9 <= high
    assert 930 <= hits <= 970


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.05), (5, 0.05)])
def test_equal_ranks_are_seldom_told_apart(seeds: int, spread: float) -> None:
    """Of 250 sweeps of four equal ranks, 5 % at most find any difference after Holm's correction."""
    rng = np.random.default_rng(2)
    false = 0
    for _ in range(250):
        ranks = simulated(rng, 0.9, seeds, 400, 4, spread)
        found = stats.differences(dict(enumerate(ranks)))
        p = [found[pair].p for pair in combinations(range(4), 2)]
        false += min(stats.holm(p)) < 0.05
    assert false <= 12


def test_a_difference_of_one_seed_is_mcnemars() -> None:
    rng = np.random.default_rng(3)
    one, other = rng.random((2, 1, 200)) < 0.8
    only = int((one & ~other).sum()), int((other & ~one).sum())
    assert stats.difference(one, other).p == pytest.approx(binomtest(only[0], sum(only)).pvalue)


def test_a_difference_of_seeds_alone_is_the_t_test_over_seeds() -> None:
    """Where every text of a seed is answered alike, texts add nothing, and seeds are the sample."""
    one = np.repeat([[True], [True], [True], [False], [True], [True]], 50, axis=1)
    other = np.repeat([[False], [True], [True], [False], [True], [False]], 50, axis=1)
    values = one[:, 0].astype(float) - other[:, 0]
    found = stats.difference(one, other)
    assert found.p == pytest.approx(ttest_1samp(values, 0).pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(ttest_1samp(values, 0).confidence_interval()))


def test_the_variance_is_that_of_resampling_texts_and_seeds() -> None:
    """Of both at once (Owen 2007), which counts what is left over three times; here it is small."""
    rng = np.random.default_rng(4)
    table = rng.standard_normal((40, 1)) + 2 * rng.standard_normal((1, 300))
    table = table + 0.01 * rng.standard_normal((40, 300))
    means = [table[rng.integers(40, size=40)][:, rng.integers(300, size=300)].mean() for _ in range(4000)]
    assert stats._spread(stats._squares(table)).variance == pytest.approx(np.var(means), rel=0.1)


def test_no_difference_at_all() -> None:
    same = np.ones((3, 10), dtype=bool)
    found = stats.difference(same, same)
    assert (found.mean, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    assert stats.mean_accuracy_interval(same) == stats.accuracy_interval(10, 10)


def test_mcnemar_and_holm_are_those_of_textbooks() -> None:
    assert stats.mcnemar(np.ones(4, dtype=bool), np.ones(4, dtype=bool)) == 1.0
    assert stats.holm([0.01, 0.02, 0.03, 0.005]) == pytest.approx([0.03, 0.04, 0.04, 0.02])
    assert stats.holm([]) == []


@pytest.mark.parametrize(("seeds", "texts", "accuracy"), [(3, 150, 0.97), (3, 500, 0.9), (5, 500, 0.6)])
def test_intervals_of_a_sweep_of_five_ranks_hold_the_truth(seeds: int, texts: int, accuracy: float) -> None:
    """A short form of bench/coverage.py: 250 sweeps, so 95 % +- 2.8 by chance."""
    found = coverage.coverage(coverage.Setting(seeds, texts, accuracy, spread=0.01), sweeps=250)
    for name in ("mean", "difference, 5 ranks", "difference, 2 ranks"):
        assert 92 <= found[name] <= 98.8, name
    assert found["difference, seeds resampled"] < 90  # what makes the crossed layout worth it


def test_lucky_seeds_do_not_tell_equal_ranks_apart() -> None:
    """Three seeds that differ by a point: pairs each by themselves find a difference in a sweep of seven."""
    at = coverage.Setting(seeds=3, texts=500, accuracy=0.97, spread=0.01)
    assert coverage.false_differences(at, sweeps=300) <= 5


@pytest.mark.parametrize("below", [1, 4])
def test_a_rank_at_the_margins_edge_is_seldom_enough(below: int) -> None:
    at = coverage.Setting(seeds=3, texts=500, accuracy=0.97, spread=0.0)
    assert coverage.false_verdicts(at, margin=0.02, below=below, sweeps=300) <= 5


def test_a_rank_within_the_margin_is_often_enough() -> None:
    """The other side: of two equal ranks the smaller is mostly called enough, where texts and seeds allow."""
    at = coverage.Setting(seeds=3, texts=2000, accuracy=0.97, spread=0.0)
    rng, hits = np.random.default_rng(5), 0
    for _ in range(50):
        answers = dict(zip((1, 4), coverage.sweep(rng, at, [0.97, 0.97]), strict=True))
        hits += stats.differences(answers)[1, 4].at_least > -0.01
    assert hits > 40


def test_a_difference_turned_round() -> None:
    rng = np.random.default_rng(6)
    one, other = (rng.random((3, 200)) < share for share in (0.8, 0.85))
    found = stats.differences({"a": one, "b": other})
    there, back = found["a", "b"], found["b", "a"]
    assert (back.mean, back.low, back.high) == (-there.mean, -there.high, -there.low)
    assert (back.at_least, back.p) == (-there.at_most, there.p)
    assert there.low < there.at_least < there.mean < there.at_most < there.high


def test_pairs_share_the_mean_square_of_seeds() -> None:
    """Two ranks that happen to move alike with the seed are no surer of their difference than other pairs."""
    rng = np.random.default_rng(7)
    base = rng.random((3, 400)) < 0.9
    moved = base.copy()
    moved[0, :20] ^= True
    third = rng.random((3, 400)) < np.array([[0.8], [0.9], [0.97]])
    alone = stats.difference(base, moved)
    among = stats.differences({1: base, 2: moved, 3: third})[1, 2]
    assert among.mean == alone.mean and among.seed_variance > alone.seed_variance
