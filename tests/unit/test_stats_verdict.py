"""The verdict: its claims and their wording."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from bench import coverage
from bench.coverage import Setting
from numpy.typing import NDArray
from scipy.stats import ttest_1samp

from rankwise.stats.advice import advise
from rankwise.stats.paired import mcnemar
from rankwise.stats.verdict import LOG_LOSS, MACRO_F1, PROBE, decide, judge, verdict_curve
from rankwise.stats.wording import explain, headline

Floats = NDArray[np.float64]


def sweep(
    shares: dict[int, float], seeds: int = 3, texts: int = 2000, alike: float = 0.9
) -> dict[int, Floats]:
    """Predictions of ranks with these accuracies and correlated errors.

    Args:
        shares: rank -> accuracy.
        seeds: number of seeds.
        texts: number of texts.
        alike: correlation of errors between adapters; 1 for identical difficulty.
    """
    rng = np.random.default_rng(0)
    hard = rng.random(texts)
    found = {}
    for rank, share in shares.items():
        difficulty = alike * hard + (1 - alike) * rng.random((seeds, texts))
        order = difficulty.argsort(axis=1).argsort(axis=1)
        found[rank] = (order < round(share * texts)).astype(np.float64)
    return found


def scores(rows: dict[int, list[float]], texts: int = 400, noise: float = 0.01) -> dict[int, Floats]:
    """Real scores: rank -> the mean of each seed, with noise over texts."""
    rng = np.random.default_rng(1)
    return {
        rank: np.array(row)[:, None] + noise * rng.standard_normal((len(row), texts))
        for rank, row in rows.items()
    }


def test_a_small_rank_that_is_as_good_is_enough() -> None:
    found = judge(sweep({1: 0.80, 2: 0.929, 8: 0.93}, alike=0.99), 0.005)
    assert (found.leader, found.claims.enough, found.claims.best, found.recommended) == (8, 2, None, 2)
    assert headline(found) == "Rank 2 is enough"
    text = explain(found)
    assert "With 95 % confidence it loses less than 0.5 points to each of the others" in text
    assert "-0.10 points from rank 8, which has the best mean" in text
    assert "Rank 1 loses more than the margin" in text
    assert found.advice is None


def test_the_best_is_better_than_each_of_the_others() -> None:
    found = judge(sweep({1: 0.80, 2: 0.86, 8: 0.93}), 0.005)
    assert (found.claims.best, found.recommended) == (8, 8)
    assert headline(found) == "Rank 8 is the best of those tried"
    assert "A larger rank may be better still" in explain(found)
    assert all(pair.apart for pair in found.pairs)
    assert found.advice is None  # nothing is left to settle


def test_the_smallest_rank_is_the_best_only_if_larger_ones_are_shown_to_be_worse() -> None:
    assert judge(sweep({1: 0.93, 8: 0.90}), 0.005).claims.best == 1
    close = judge(sweep({1: 0.9305, 8: 0.93}, alike=0.5), 0.0005)
    assert (close.leader, close.claims.best, close.recommended) == (1, None, None)


def test_six_texts_and_a_tie_claim_nothing() -> None:
    """A real run from which an earlier version concluded that rank 1 is the best."""
    one = np.array([[1, 0, 1, 0, 0, 1]], dtype=bool)
    other = np.array([[0, 1, 1, 0, 1, 0]], dtype=bool)
    found = judge({1: one, 4: other}, 0.005, baselines={"TF-IDF + SVM": np.ones(6, dtype=bool)})
    assert found.recommended is None
    assert headline(found) == (
        "On only 6 validation texts, the adapters cannot be told apart; "
        "the rank 1 adapter, the smallest, is not shown to beat TF-IDF + SVM"
    )
    assert "All have the same validation accuracy, 50.00 %" in explain(found)
    assert "One text of 6 counts 16.67 points, more than the margin of 0.5 points" in explain(found)


def test_a_small_rank_that_is_unstable_over_seeds_is_not_enough() -> None:
    """Pooling with four stable ranks would hide its seed variance: these are lucky seeds."""
    rows = {rank: [0.9, 0.9, 0.9] for rank in (2, 4, 8, 16)}
    stable = scores({1: [0.905, 0.9, 0.895], **rows})
    lucky = scores({1: [0.94, 0.91, 0.89], **rows})
    assert decide(stable, 0.02).enough == 1
    assert decide(lucky, 0.02).enough is None  # it may be far better than the others, or far worse


def test_the_walk_begins_at_the_largest_rank_and_ends_at_the_first_failure() -> None:
    rows = {1: [0.9, 0.9, 0.9], 4: [0.93, 0.90, 0.87], 16: [0.9, 0.9, 0.9]}
    assert decide(scores(rows), 0.02).enough is None  # rank 4 may be better than rank 16
    assert decide(scores({1: rows[1], 16: rows[16]}), 0.02).enough == 1
    unsure = {**rows, 4: [0.83, 0.80, 0.74]}  # neither shown to be close nor shown to lose more
    assert decide(scores(unsure), 0.02).enough == 16


def test_a_rank_that_collapsed_is_passed_over() -> None:
    found = decide(scores({1: [0.9, 0.9, 0.9], 4: [0.9, 0.9, 0.9], 16: [0.3, 0.3, 0.3]}), 0.02)
    assert (found.enough, found.passed_over) == (1, (16,))


def test_a_smaller_rank_that_is_left_open_is_named_with_advice() -> None:
    found = judge(scores({1: [0.93, 0.90, 0.87], 4: [0.9, 0.9, 0.9], 16: [0.95, 0.95, 0.95]}), 0.1)
    found = replace(found, claims=replace(found.claims, enough=4, best=None))
    assert "Whether rank 1 is enough too is undecided" in explain(found)


def test_a_smaller_rank_that_is_worse_but_perhaps_within_the_margin_is_left_open() -> None:
    """Rank 1 is told apart, which says that it is worse, not that it loses more than the margin."""
    found = judge(sweep({1: 0.925, 4: 0.932, 16: 0.932}, alike=0.97), 0.0075)
    assert found.recommended == 4 and found.apart(1, 4) and not found.claims.passed_over
    assert "Whether rank 1 is enough too is undecided" in explain(found)


def test_advice_is_a_new_sweep() -> None:
    """A second look at the same seeds and texts would have an error rate of its own."""
    text = explain(judge(sweep({1: 0.928, 8: 0.93}, texts=500, alike=0.5), 0.005))
    assert re.search(r"a new sweep with about (\d+ seeds|[\d,]+ validation texts)", text)


def test_perfect_macro_f1_is_as_cautious_as_one_error() -> None:
    """Pseudo-values of perfect answers are all 1, but they are no counts of right and wrong."""
    perfect = np.ones((1, 2000))
    found = judge({1: perfect, 4: perfect}, 0.005, MACRO_F1, step=50.5)
    assert found.recommended is None and not found.binary
    assert all(each.low < 0.98 and each.high == 1.0 for each in found.ranks)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seeds", [1, 2])
def test_a_single_log_loss_shows_nothing(seeds: int) -> None:
    found = judge({1: np.full((seeds, 1), -1.0), 4: np.full((seeds, 1), -0.2)}, 0.01, LOG_LOSS)
    assert found.recommended is None and found.pairs[0].p == 1
    assert "With 1 text, rare" in explain(found)


def test_baselines_without_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="baselines are finite"):
        judge(sweep({1: 0.9, 4: 0.9}), 0.01, baselines={"SVM": np.full(2000, np.nan)})


def test_baselines_are_in_the_headline() -> None:
    tables = sweep({0: 0.85, 1: 0.80, 8: 0.93})
    rng = np.random.default_rng(2)
    equal = tables[8][0].copy()
    wrong, right = np.flatnonzero(equal == 0), np.flatnonzero(equal == 1)
    equal[rng.choice(wrong, 30, replace=False)], equal[rng.choice(right, 30, replace=False)] = 1, 0
    baselines = {
        "the majority class": rng.random(2000) < 0.3,
        "TF-IDF + SVM": equal,
        "a larger model": np.ones(2000, dtype=bool),
    }
    found = judge(tables, 0.005, baselines=baselines)
    assert [each.other for each in found.baselines] == [PROBE, *baselines]
    assert headline(found) == (
        "Rank 8 is the best of those tried and beats the linear probe (rank 0) and the majority class, "
        "but is not shown to beat TF-IDF + SVM and is worse than a larger model"
    )
    assert "Rank 8 minus each baseline, with adjusted 95 % interval: " in explain(found)


def without_texts(by_seed: list[float]) -> Floats:
    """Scores that are equal for all texts, so that only seeds vary."""
    return np.repeat(np.array(by_seed)[:, None], 20, axis=1)


def test_a_chosen_rank_and_baselines_without_seeds_are_the_t_test_over_seeds_at_half_the_level() -> None:
    """Whatever the number of ranks and of baselines: the rank's seeds are the only sample."""
    ranks = {rank: without_texts([0.80 + 0.001 * rank, 0.83, 0.82]) for rank in (1, 2, 4, 8, 16)}
    baselines = {"an SVM": np.full(20, 0.7), "another": np.full(20, 0.75), "a third": np.full(20, 0.81)}
    found = judge(ranks, 0.005, LOG_LOSS, baselines)
    for each, level in zip(found.baselines, (0.7, 0.75, 0.81), strict=True):
        theirs = ttest_1samp(ranks[found.chosen].mean(axis=1), level)
        low, high = theirs.confidence_interval(1 - 0.05 / 2)
        assert (each.low, each.high) == pytest.approx((low - level, high - level))
        # The text part's quantile, which is at least the normal one, takes over where p is far from 5 %.
        assert each.p == pytest.approx(2 * theirs.pvalue) or each.p > 2 * theirs.pvalue > 0.5
        assert each.apart == (not each.low <= 0 <= each.high)


def test_a_baseline_with_seeds_has_a_luck_of_its_own() -> None:
    ranks = {rank: without_texts([0.80, 0.83, 0.82]) for rank in (1, 8)}
    probe = without_texts([0.70, 0.71, 0.69])
    found = judge({0: probe, **ranks}, 0.005, LOG_LOSS, {"an SVM": np.full(20, 0.7)})
    theirs = ttest_1samp((ranks[1] - probe).mean(axis=1), 0)
    assert [each.other for each in found.baselines] == [PROBE, "an SVM"]
    assert found.baselines[0].p == pytest.approx(4 * theirs.pvalue)


def test_one_rank_that_was_not_chosen_is_adjusted_for_its_baselines_only() -> None:
    table = without_texts([0.80, 0.83, 0.82])
    found = judge({8: table}, 0.005, LOG_LOSS, {"an SVM": np.full(20, 0.7), "b": np.full(20, 0.8)})
    assert found.baselines[0].p == pytest.approx(2 * ttest_1samp(table.mean(axis=1), 0.7).pvalue)


def test_one_seed_of_a_chosen_rank_is_adjusted_for_its_baselines_and_the_choice() -> None:
    rng = np.random.default_rng(3)
    ranks = {rank: rng.normal(0.5, 0.1, (1, 60)) for rank in (1, 2, 4)}
    baselines = {name: rng.normal(0.42, 0.1, 60) for name in "abc"}
    found = judge(ranks, 0.005, LOG_LOSS, baselines)
    for each in found.baselines:
        theirs = ttest_1samp(ranks[found.chosen][0] - baselines[str(each.other)], 0)
        assert each.p == pytest.approx(min(1, 2 * 3 * theirs.pvalue))


def test_the_linear_probe_is_no_candidate() -> None:
    found = judge(sweep({0: 0.95, 1: 0.80, 8: 0.9}), 0.005)
    assert found.candidates == (1, 8) and found.recommended == 8
    assert "but is worse than the linear probe (rank 0)" in headline(found)
    assert {pair.rank for pair in found.pairs} == {0, 1}


def test_one_seed_speaks_of_adapters() -> None:
    found = judge(sweep({1: 0.80, 8: 0.93}, seeds=1), 0.005)
    assert headline(found) == "The rank 8 adapter is the best of those tried"
    assert "this speaks of these adapters and not of their ranks" in explain(found)
    assert [each.spread for each in found.ranks] == [None, None]
    assert "other training sets were not tried" in explain(judge(sweep({1: 0.8, 8: 0.9}), 0.005))


def test_one_rank_has_nothing_to_be_compared_with() -> None:
    found = judge(sweep({8: 0.9}), 0.005)
    assert headline(found) == "Only rank 8 was tried" and found.pairs == ()
    assert judge(sweep({0: 0.9}), 0.005).leader == 0


def test_log_loss_uses_the_same_machinery() -> None:
    losses = scores({1: [-0.35, -0.36, -0.34], 8: [-0.25, -0.251, -0.249]})
    found = judge(losses, 0.01, LOG_LOSS)
    assert found.claims.best == 8
    assert "Its validation log loss is 0.2497 nats" in explain(found)
    worse = judge(losses, 0.5, LOG_LOSS, {"a rival": np.full(400, -0.2)})
    assert worse.claims.enough == 1
    text = explain(worse)
    assert "It is shown to lose less than 0.5 nats to each of the others" in text
    # The log loss of rank 1 is higher, as a loss is, although its score is lower.
    assert re.search(r"\+0\.1\d{3} nats from rank 8, which has the best mean", text)
    found_ends = re.search(r"a rival: \+0\.1\d{3} nats \(\+(0\.\d{4}) to \+(0\.\d{4})\)", text)
    assert found_ends and float(found_ends[1]) < float(found_ends[2])


def test_a_wider_margin_asks_for_less() -> None:
    tables = sweep({1: 0.90, 4: 0.925, 8: 0.93}, alike=0.99)
    curve = verdict_curve(tables, [0.001, 0.01, 0.05])
    assert [margin for margin, _ in curve] == [0.001, 0.01, 0.05]
    assert [enough for _, enough in curve] == [8, 4, 1]
    for margin, rank in curve:
        assert decide(tables, margin).recommended == rank


def test_intervals_and_p_are_adjusted_alike() -> None:
    for alike in (0.5, 0.9):
        found = judge(sweep({1: 0.90, 2: 0.91, 4: 0.92, 8: 0.93}, seeds=4, texts=500, alike=alike), 0.005)
        for pair in found.pairs:
            assert pair.apart == (not pair.low <= 0 <= pair.high)


def test_one_seed_gives_mcnemars_p_times_the_pairs() -> None:
    tables = sweep({1: 0.80, 2: 0.86, 8: 0.93}, seeds=1, texts=100)
    for pair in judge(tables, 0.005).pairs:
        exact = mcnemar(tables[pair.rank][0] > 0, tables[int(pair.other)][0] > 0)
        assert pair.p >= min(1.0, 3 * exact) - 1e-12


@pytest.mark.parametrize(
    ("tables", "margin", "message"),
    [
        ({1: np.ones((2, 3)), 4: np.ones((3, 3))}, 0.1, "the same seeds and texts"),
        ({}, 0.1, "the same seeds and texts"),
        ({1: np.ones(3)}, 0.1, r"\(seeds, texts\) tables"),
        ({1: np.full((2, 3), np.nan)}, 0.1, "finite"),
        ({1: np.ones((2, 0))}, 0.1, "finite"),
        ({1: np.ones((2, 3))}, 0.0, "a margin is above 0, not 0.0"),
        ({1: np.ones((2, 3))}, float("nan"), "a margin is above 0"),
    ],
)
def test_bad_input_is_named(tables: dict[int, Floats], margin: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge(tables, margin)


@pytest.mark.parametrize("seed", range(40))
def test_any_table_has_a_verdict_in_words(seed: int) -> None:
    rng = np.random.default_rng(seed)
    seeds, texts, ranks = rng.integers(1, 4), rng.integers(1, 12), rng.integers(1, 6)
    share = rng.choice([0.0, 0.5, 0.9, 1.0], size=ranks)
    tables = {int(2**i): (rng.random((seeds, texts)) < share[i]).astype(float) for i in range(ranks)}
    found = judge(tables, 0.01, baselines={"SVM": (rng.random(texts) < 0.5).astype(float)})
    text = explain(found)
    assert not re.search(r"nan|inf|None|  |\.\.|\+-", text)
    assert headline(found) in text and text.endswith(".")
    assert found.chosen in found.candidates


def test_advice_asks_for_more_where_the_margin_is_smaller() -> None:
    tables = list(sweep({1: 0.93, 8: 0.93}, texts=500).values())
    sizes = [advise(tables, margin) for margin in (0.05, 0.03, 0.02)]
    products = [(each.seeds or 0) * (each.texts or 0) for each in sizes]
    assert products == sorted(products) and products[0] < products[-1]


def test_advice_for_one_seed_is_of_texts_alone() -> None:
    found = advise(list(sweep({1: 0.93, 8: 0.93}, seeds=1, texts=500).values()), 0.01)
    assert found.seeds == 1 and found.texts is not None and found.texts > 500


def test_advice_always_asks_for_more() -> None:
    """Also at sample sizes that would be enough for equal ranks."""
    found = advise(list(sweep({1: 0.93, 8: 0.93}, seeds=5, alike=0.99).values()), 0.2)
    assert found.seeds is not None and found.texts is not None
    assert found.seeds > 5 or found.texts >= 3000


def test_no_reasonable_size_is_said_to_be_none() -> None:
    tables = scores({1: [0.2, 0.9], 8: [0.9, 0.2]})
    assert advise(list(tables.values()), 0.001).seeds is None
    assert "No realistic number of texts and seeds" in explain(judge(tables, 0.001))


EQUAL = Setting(ranks=5, seeds=3, texts=300, accuracy=0.9, spread=0.01)
UNSTABLE = Setting(2, 3, 3000, 0.9, 0.02, "smallest unstable", truth="smallest at the edge", margin=0.02)
NESTED = Setting(2, 1, 500, 0.97, 0.0, items="nested", truth="smallest at the edge", margin=0.02)


@pytest.mark.parametrize("at", [EQUAL, replace(EQUAL, seeds=1, spread=0.0), UNSTABLE, NESTED])
def test_false_claims_are_rare(at: Setting) -> None:
    """A short bench/coverage.py: 5 % of 300 sweeps is 15; 26 or more occur by chance 1 time in 300."""
    assert coverage.worst(coverage.measure(at, sweeps=300)) <= 100 * 26 / 300


def test_one_rank_entered_five_times_is_not_told_apart() -> None:
    at = replace(EQUAL, shared_luck=0.0)
    assert coverage.measure(at, sweeps=300)["told apart"] <= 5


def test_true_claims_are_made() -> None:
    at = Setting(5, 5, 2000, 0.93, 0.003, margin=0.02)
    assert coverage.power(at, sweeps=40)["smallest that is enough"] >= 80
    better = replace(at, truth="largest better by two margins")
    assert coverage.power(better, sweeps=40)["best"] >= 80
    beaten, adjusted_for_all = coverage.beaten(Setting(5, 3, 2000, 0.82, 0.01, below=0.08), sweeps=40)
    assert beaten >= 90 and beaten > adjusted_for_all + 25


def test_advice_that_is_followed_settles_it() -> None:
    _, given, settled, _, _ = coverage.advice(Setting(3, 3, 500, 0.93, 0.003, margin=0.02), sweeps=40)
    assert given >= 80 and settled >= 80
