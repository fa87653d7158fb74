"""Paired tests against published results, other implementations, and simulation."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, chi2, norm, t, ttest_1samp
from sklearn.metrics import f1_score

from rankwise.stats.crossed import Variance, mean_squares
from rankwise.stats.paired import (
    Paired,
    macro_f1_pseudo_values,
    macro_f1_step,
    mcnemar,
    pair_up,
)
from tests.unit.obuchowski_rockette import f_test, obuchowski_rockette

Floats = NDArray[np.float64]


def answers(seed: int, *shape: int, share: float = 0.9) -> Floats:
    return (np.random.default_rng(seed).random(shape) < share).astype(np.float64)


def one_pair(one: Floats, other: Floats) -> Paired:
    return pair_up([one, other])


def crossed(rng: np.random.Generator, seeds: int, texts: int, by_seed: float, by_text: float) -> Floats:
    """(seeds, texts) of normal scores with these standard deviations over seeds, over texts, and 1 left."""
    rows, columns = by_seed * rng.standard_normal((seeds, 1)), by_text * rng.standard_normal(texts)
    return np.asarray(rows + columns + rng.standard_normal((seeds, texts)))


def test_the_van_dyke_study() -> None:
    """Spin-echo versus cine MRI, five readers, 114 patients: the standard example in the literature.

    Areas under the curve (trapezoidal) and Cov2 - Cov3 (jackknife) as published; the Obuchowski-Rockette
    analysis with Hillis' degrees of freedom gives F = 4.456 on 1 and 15.26 degrees, p = 0.0517.
    """
    spin_echo = [0.91964573, 0.85877617, 0.90386473, 0.97310789, 0.82979066]
    cine = [0.94782609, 0.90531401, 0.92173913, 0.99935588, 0.92995169]
    found = obuchowski_rockette(np.array([spin_echo, cine]), 0.00034407 - 0.00023903)
    assert found.f == pytest.approx(4.456, abs=1e-3)
    assert (found.freedom, found.error_freedom) == pytest.approx((1, 15.26), abs=0.01)
    assert found.p == pytest.approx(0.0517, abs=1e-4)


def test_mean_squares_are_those_of_an_analysis_of_variance_by_least_squares() -> None:
    """Sums of squares as what a regression on dummy variables of seeds, then texts, explains."""
    rng = np.random.default_rng(0)
    table = crossed(rng, 3, 7, 1.0, 1.0)
    place = np.array(list(product(range(3), range(7))))
    seeds, texts = np.eye(3)[place[:, 0]], np.eye(7)[place[:, 1]]
    ones, y = np.ones((21, 1)), table.ravel()

    def residual(*design: Floats) -> float:
        x = np.hstack(design)
        return float(((y - x @ np.linalg.lstsq(x, y, rcond=None)[0]) ** 2).sum())

    found = mean_squares(table)
    assert found.of_seeds[0] == pytest.approx((residual(ones) - residual(ones, seeds)) / 2)
    assert found.of_texts[0] == pytest.approx((residual(ones, seeds) - residual(ones, seeds, texts)) / 6)
    assert found.left[0] == pytest.approx(residual(ones, seeds, texts) / 12)


def test_the_variance_of_a_mean_is_that_of_simulated_means() -> None:
    rng = np.random.default_rng(1)
    tables = [crossed(rng, 4, 30, 0.3, 1.0) for _ in range(3000)]
    estimated = np.mean([mean_squares(table).variance().total[0] for table in tables])
    assert estimated == pytest.approx(np.var([table.mean() for table in tables]), rel=0.08)
    assert estimated == pytest.approx(0.3**2 / 4 + 1 / 30 + 1 / 120, rel=0.03)


def test_pairs_by_cross_products_are_pairs_one_by_one() -> None:
    tables = [answers(i, 3, 200, share=0.8 + 0.03 * i) for i in range(4)]
    pairs = pair_up(tables, [(2, 0), (1, 3)])
    for place, (one, other) in enumerate([(2, 0), (1, 3)]):
        difference = tables[one] - tables[other]
        alone = mean_squares(difference).variance()
        assert pairs.mean[place] == pytest.approx(difference.mean())
        for name in ("by_seed", "by_text", "chance"):
            assert getattr(pairs.variance, name)[place] == pytest.approx(getattr(alone, name)[0])
        assert pairs.disagreement is not None
        assert pairs.disagreement[place] == pytest.approx((difference != 0).mean())


def test_the_f_test_of_two_ranks_is_the_square_of_their_t() -> None:
    tables = {1: answers(1, 4, 300), 8: answers(2, 4, 300, share=0.85)}
    pairs, found = one_pair(tables[1], tables[8]), f_test(tables)
    assert found.f == pytest.approx(pairs.mean[0] ** 2 / pairs.variance.total[0])


def test_the_f_test_of_three_ranks_is_that_of_a_general_analysis_of_variance() -> None:
    """statsmodels' anova_lm of y ~ rank * seed + rank * text + seed * text, and Hillis' formulas by hand."""
    rng, shape = np.random.default_rng(0), (3, 3, 8)
    sizes = ((3, 1, 1), 0.3), ((1, 3, 1), 1.0), ((3, 3, 1), 0.5), ((1, 1, 8), 1.0), ((3, 1, 8), 0.7)
    table = sum((scale * rng.normal(size=size) for size, scale in sizes), np.zeros(shape))
    found = f_test(dict(enumerate(table + rng.normal(size=shape))))
    assert (found.f, found.error_freedom) == pytest.approx((0.36717034, 4.62459656))
    assert found.p == pytest.approx(0.71121641)


def test_the_f_test_of_equal_ranks_errs_as_often_as_it_says() -> None:
    """With ten seeds, for which Hillis' degrees of freedom are nearly exact."""
    rng = np.random.default_rng(3)
    p = [f_test({i: crossed(rng, 10, 60, 0.5, 0.0) for i in range(3)}).p for _ in range(1500)]
    assert 0.035 <= np.mean(np.array(p) < 0.05) <= 0.065


def test_a_difference_of_seeds_alone_is_the_t_test_over_seeds() -> None:
    """Real scores that are equal for all texts: texts add no variance, and seeds are the sample."""
    by_seed = np.array([0.3, -0.1, 0.4, 0.2])
    pairs = one_pair(np.repeat(by_seed[:, None], 20, axis=1), np.full((4, 20), 0.05))
    theirs = ttest_1samp(by_seed - 0.05, 0)
    assert pairs.p()[0] == pytest.approx(theirs.pvalue)
    low, high = pairs.interval(0.95)
    assert (low[0], high[0]) == pytest.approx(tuple(theirs.confidence_interval()))


def test_one_seed_of_real_scores_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(4)
    one, other = rng.standard_normal((2, 1, 50))
    theirs = ttest_1samp((one - other)[0], 0)
    assert one_pair(one, other).p()[0] == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_bound_never_errs_too_often(seeds: int) -> None:
    """For normal means with any mix of seed and text variances; with few seeds, Hillis' t does."""
    rng, freedom = np.random.default_rng(5), seeds - 1
    z, scale = rng.standard_normal(40_000), chi2.rvs(freedom, size=40_000, random_state=rng) / freedom
    satterthwaite = []
    for share in (0.05, 0.2, 0.5, 0.8, 0.95, 1.0):
        by_seed, by_text = share * scale, np.full(40_000, 1 - share)
        variance = Variance(by_seed, by_text, np.zeros(40_000), freedom, 10**6)
        for tail in (0.05, 0.0025):
            error = 3 * np.sqrt(tail / 40_000)
            assert (z > variance.half_width(tail)).mean() <= tail + error
        degrees = variance.total**2 / (by_seed**2 / freedom)
        satterthwaite.append((z > t.isf(0.05, degrees) * np.sqrt(variance.total)).mean())
    assert seeds > 2 or max(satterthwaite) > 0.07


@pytest.mark.parametrize("freedom", [1, 2, 4, 9, 1000])
def test_baselines_with_one_seed_part_for_all_err_at_most_twice_too_often(freedom: int) -> None:
    """The text part alone is adjusted for their number; `verdict.CHOICE` leaves room for a factor of 2."""
    rng, tail, size = np.random.default_rng(6), 0.0125, (40_000, 5)
    of_seeds, of_texts = rng.standard_normal((40_000, 1)), rng.standard_normal(size)
    scale = chi2.rvs(freedom, size=(40_000, 1), random_state=rng) / freedom
    rates = []
    for share in (0.0, 0.2, 0.5, 0.8, 0.95, 1.0):
        by_seed, by_text = np.broadcast_to(share * scale, size), np.full(size, 1 - share)
        variance = Variance(by_seed, by_text, np.zeros(size), freedom, 10**6, text_level=1 / 5)
        distance = np.sqrt(share) * of_seeds + np.sqrt(1 - share) * of_texts
        rates.append((distance > variance.half_width(tail)).any(axis=1).mean())
    error = 3 * np.sqrt(tail / 40_000)
    assert rates[0] == pytest.approx(tail, abs=error)  # texts alone: the Bonferroni adjustment
    assert max(rates) <= 1.5 * tail + error


def test_a_tail_is_where_the_half_width_is_the_distance() -> None:
    whole = Variance(np.array([0.02, 0.0]), np.array([0.01, 0.3]), np.zeros(2), 2, 99)
    for variance, tail in product((whole, replace(whole, text_level=0.5)), (0.3, 0.02, 1e-6)):
        assert variance.tail(variance.half_width(tail)) == pytest.approx(tail, rel=1e-6)
    variance = whole
    assert variance.tail(np.array([-1.0, 0.0])).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("value", [-0.05, -0.01, 0.0, 0.02, 0.1])
@pytest.mark.parametrize(("wins", "losses"), [(12, 5), (3, 9), (7, 7), (1, 15)])
def test_the_variance_under_a_value_is_that_of_the_likeliest_answers(
    wins: int, losses: int, value: float
) -> None:
    """Tango's closed form versus numerical maximization of the likelihood."""
    texts = 200

    def unlikely(second: float) -> float:
        first = second + value
        equal = 1 - first - second
        return -float(
            wins * np.log(first) + losses * np.log(second) + (texts - wins - losses) * np.log(equal)
        )

    least = max(0.0, -value) + 1e-9
    second = minimize_scalar(unlikely, bounds=(least, 0.45), method="bounded", options={"xatol": 1e-10}).x
    one, other = np.ones((1, texts)), np.ones((1, texts))
    other[0, :wins], one[0, wins : wins + losses] = 0, 0
    found = one_pair(one, other)._spread_at(value)[0]
    assert found == pytest.approx(2 * second + value - value**2, rel=1e-4)


@pytest.mark.parametrize(("texts", "shown"), [(100, False), (140, False), (200, True)])
def test_identical_answers_need_as_many_texts_as_the_rule_of_three(texts: int, shown: bool) -> None:
    """Zero disagreements on n texts bound the loss at about 3 / n: 2 % needs 150 texts."""
    same = answers(6, 1, texts)
    assert bool(one_pair(same, same).exceeds(-0.02, 0.05)[0]) is shown


def test_identical_answers_differ_by_nothing() -> None:
    same = answers(7, 3, 50)
    pairs = one_pair(same, same)
    low, high = pairs.interval(0.95)
    assert (pairs.mean[0], pairs.p()[0]) == (0.0, 1.0)
    assert -0.15 < low[0] < 0 < high[0] < 0.15


@pytest.mark.parametrize("seeds", [1, 2, 4])
@pytest.mark.parametrize("confidence", [0.95, 0.995])
def test_an_interval_holds_0_just_where_p_says_so(seeds: int, confidence: float) -> None:
    """At sizes where they could differ: few texts, differences near the limit."""
    decided = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        shares = 0.9, rng.uniform(0.4, 0.9)
        pairs = one_pair(*((rng.random((seeds, 40)) < share).astype(float) for share in shares))
        low, high = pairs.interval(confidence)
        decided.append(bool(pairs.p()[0] < 1 - confidence))
        assert decided[-1] == (not low[0] <= 0 <= high[0])
        assert -1 <= low[0] <= pairs.mean[0] <= high[0] <= 1
    assert seeds == 2 or any(decided)


def test_a_difference_turned_round() -> None:
    pairs = one_pair(answers(8, 3, 200, share=0.8), answers(9, 3, 200))
    (low, high), (back_low, back_high) = pairs.interval(0.95), pairs.reversed().interval(0.95)
    assert (back_low[0], back_high[0]) == pytest.approx((-high[0], -low[0]), abs=1e-9)
    assert pairs.reversed().p()[0] == pytest.approx(pairs.p()[0])


def test_one_seed_is_never_surer_than_mcnemar() -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        one, other = rng.random((1, 60)) < 0.9, rng.random((1, 60)) < 0.75
        p = one_pair(one.astype(float), other.astype(float)).p()[0]
        assert mcnemar(one[0], other[0]) - 1e-12 <= p <= mcnemar(one[0], other[0]) + 0.1


def test_a_pair_with_an_unstable_rank_has_a_variance_of_its_own() -> None:
    """A third rank with a high seed variance does not affect the pair of two stable ranks."""
    tables = [answers(i, 3, 500) for i in range(2)]
    unstable = np.concatenate([answers(9, 1, 500, share=share) for share in (0.7, 0.85, 0.95)])
    alone, among = pair_up(tables), pair_up([*tables, unstable])
    assert among.variance.by_seed[0] == pytest.approx(alone.variance.by_seed[0])
    assert among.variance.by_seed[1] > 10 * among.variance.by_seed[0]


def test_mcnemar_is_the_sign_test() -> None:
    rng = np.random.default_rng(10)
    one, other = rng.random((2, 200)) < 0.8
    wins, losses = int((one & ~other).sum()), int((other & ~one).sum())
    assert mcnemar(one, other) == pytest.approx(binomtest(wins, wins + losses).pvalue)
    assert mcnemar(one, one) == 1.0


def test_pseudo_values_are_those_of_leaving_one_out() -> None:
    rng = np.random.default_rng(11)
    truth, predicted = rng.integers(0, 4, 40), rng.integers(0, 4, (2, 40))
    truth[truth == 3] = 0  # a class that is predicted but never true
    truth[0] = 2
    found = macro_f1_pseudo_values(predicted, truth, classes=4)

    def macro(which: NDArray[np.intp], seed: int) -> float:
        return float(
            f1_score(truth[which], predicted[seed][which], labels=range(4), average="macro", zero_division=0)
        )

    everything = np.arange(40)
    for seed in range(2):
        whole = macro(everything, seed)
        left_out = np.array([macro(np.delete(everything, i), seed) for i in everything])
        raw = 40 * whole - 39 * left_out
        assert found[seed] == pytest.approx(raw - raw.mean() + whole)


def test_a_text_of_the_rarest_class_is_the_step_of_macro_f1() -> None:
    """The loss from one wrong label, times the number of texts, over all texts of perfect predictions."""
    truth = np.repeat([0, 1, 2, 3], [100, 100, 100, 20])
    assert macro_f1_step(np.repeat([0, 1], 30)) == 1

    def loss(text: int, label: int) -> float:
        predicted = truth.copy()
        predicted[text] = label
        return 1 - float(f1_score(truth, predicted, average="macro"))

    losses = [
        len(truth) * loss(text, label) for text in (0, 319) for label in range(4) if label != truth[text]
    ]
    assert macro_f1_step(truth) == pytest.approx(max(losses), rel=0.1)


def test_few_identical_labels_are_no_proof_of_an_equal_macro_f1() -> None:
    truth = np.tile([0, 1, 2], 6)
    predicted = np.tile(truth, (1, 1))
    predicted[0, :3] = [1, 2, 0]
    values = macro_f1_pseudo_values(predicted, truth, 3)
    few = pair_up([values, values], step=macro_f1_step(truth))
    assert not few.exceeds(-0.05, 0.045)[0] and few.p()[0] == 1
    many_truth = np.tile(truth, 100)
    many = macro_f1_pseudo_values(np.tile(predicted, 100), many_truth, 3)
    assert pair_up([many, many], step=macro_f1_step(many_truth)).exceeds(-0.05, 0.045)[0]


def test_binary_scores_have_a_step_of_one() -> None:
    """Macro-F1 with the same step follows the same formulas."""
    one, other = answers(31, 3, 200), answers(32, 3, 200, share=0.8)
    binary = pair_up([one, other])
    shifted = pair_up([one + 0.25, other + 0.25], step=1.0)  # no longer 0 and 1
    assert binary.step == 1 and shifted.disagreement == pytest.approx(binary.disagreement)
    assert shifted.lower(0.025) == pytest.approx(binary.lower(0.025))
    doubled = pair_up([2 * one, 2 * other], step=2.0)
    assert doubled.p() == pytest.approx(binary.p())
    assert doubled.lower(0.025) == pytest.approx(2 * binary.lower(0.025))


def test_pseudo_values_average_to_macro_f1() -> None:
    rng = np.random.default_rng(12)
    truth = rng.integers(0, 3, 3000)
    predicted = np.where(rng.random((1, 3000)) < 0.8, truth, rng.integers(0, 3, (1, 3000)))
    whole = f1_score(truth, predicted[0], average="macro")
    assert macro_f1_pseudo_values(predicted, truth, 3).mean() == pytest.approx(whole, abs=1e-12)


def test_normal_quantiles_come_back_for_many_texts() -> None:
    variance = Variance(np.zeros(1), np.ones(1), np.zeros(1), 0, 10**7)
    assert variance.half_width(0.025)[0] == pytest.approx(norm.isf(0.025), rel=1e-5)
