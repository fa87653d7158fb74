"""Which rank is enough: ranks compared on the same texts and seeds, and a verdict in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

from rankwise import stats
from rankwise.report.run import Run
from rankwise.report.scores import by_rank
from rankwise.report.tables import Table
from rankwise.schema import Comparison, PairSummary, RankSummary, Results
from rankwise.stats import Answers, Difference, holm, mcnemar, mean_accuracy_interval

MARGIN = 0.005
"""Loss of accuracy that is nothing to worry about, by default."""
QUANTILE = 1.645
"""One-sided 95 % of the normal distribution, to say how many seeds or texts would settle it."""


def compare(run: Run, margin: float = MARGIN) -> Comparison:
    """Compare every pair of a run's ranks.

    Going down from the best rank, a rank is enough where the one-sided 95 % bound of its paired
    difference to the best lies above minus the margin (a test of non-inferiority); the first that
    fails ends the walk, so that however many ranks are tried, one that is not enough is called
    enough in at most 5 % of sweeps (a fixed sequence of tests: Maurer, Hothorn and Lehmacher 1995).
    Ranks are told apart at 5 %, p adjusted by Holm's method.

    Args:
        run: a finished run.
        margin: loss of accuracy that is accepted, as a fraction.
    """
    ranks, seeds = _shared(run.results)
    answers = {
        rank: run.answers("validation", [row for row in adapters if row.seed in seeds])
        for rank, adapters in by_rank(run.results).items()
        if rank in ranks
    }
    summaries = [_summary(rank, each) for rank, each in answers.items()]
    best = max(summaries, key=lambda each: (each.accuracy, -each.rank)).rank
    found = stats.differences(answers)
    pairs = _pairs(answers, found)
    to_best = {rank: found[rank, best] for rank in answers if rank != best}
    enough = smallest_enough(best, to_best, margin)
    return Comparison(
        margin=margin,
        seeds=seeds,
        ranks=summaries,
        pairs=pairs,
        best=best,
        enough=enough,
        verdict=_verdict(best, enough, to_best, pairs, margin, answers[best].shape),
    )


def smallest_enough(best: int, to_best: Mapping[int, Difference], margin: float) -> int | None:
    """The smallest rank that, with every rank between it and the best, is shown to be within the margin.

    Args:
        best: the best rank.
        to_best: rank -> its difference to the best.
        margin: loss of accuracy that is accepted, as a fraction.
    """
    enough = None
    for rank in sorted((rank for rank in to_best if rank < best), reverse=True):
        if to_best[rank].at_least <= -margin:
            break
        enough = rank
    return enough


def in_short(found: Comparison) -> str:
    """The verdict in a few words, for a headline or a list of runs."""
    if len(found.ranks) == 1:
        return f"Only rank {found.best} was tried"
    if found.enough is not None:
        return f"Rank {found.enough} is enough"
    if any(pair.other == found.best and pair.p_holm >= 0.05 for pair in found.pairs):
        return f"Undecided: rank {found.best} leads"
    return f"Rank {found.best} is the best"


def summary_table(found: Comparison) -> Table:
    """One row a rank: mean accuracy over seeds, its interval and spread, its difference to the best."""
    versus = {
        pair.rank if pair.other == found.best else pair.other: pair
        for pair in found.pairs
        if found.best in (pair.rank, pair.other)
    }
    rows = [
        (
            str(each.rank),
            f"{100 * each.accuracy:.2f}",
            f"{100 * each.accuracy_low:.1f}-{100 * each.accuracy_high:.1f}",
            "" if each.accuracy_spread is None else f"{100 * each.accuracy_spread:.2f}",
            *_versus(versus.get(each.rank), found.best),
        )
        for each in found.ranks
    ]
    over = "texts and seeds" if len(found.seeds) > 1 else "texts"
    return Table(
        "Ranks on the validation texts",
        ("rank", "accuracy", "95 %", "spread", f"minus rank {found.best}", "95 % of it", "p"),
        rows,
        note=f"Mean over {len(found.seeds)} seed{'s' * (len(found.seeds) > 1)}, in percent and points. "
        f"95 %: intervals over {over}; spread: standard deviation over seeds; "
        "p: of no difference, Holm-adjusted over all pairs of ranks.",
    )


def _versus(pair: PairSummary | None, best: int) -> tuple[str, str, str]:
    if pair is None:
        return "", "", ""
    sign = 1 if pair.other == best else -1
    low, high = sorted((100 * sign * pair.low, 100 * sign * pair.high))
    return f"{100 * sign * pair.difference:+.2f}", f"{low:+.2f} to {high:+.2f}", f"{pair.p_holm:.2g}"


def _shared(results: Results) -> tuple[list[int], list[int]]:
    """Ranks, and the seeds that all of them have.

    Where adapters were dropped, ranks may have no seed in common. Those with the fewest seeds are then
    left out, the largest first.
    """
    seeds: dict[int, set[int]] = {}
    for row in sorted(results.adapters, key=lambda row: row.rank):
        seeds.setdefault(row.rank, set()).add(row.seed)
    while not (shared := set.intersection(*seeds.values())):
        del seeds[min(seeds, key=lambda rank: (len(seeds[rank]), -rank))]
    return list(seeds), sorted(shared)


def _summary(rank: int, answers: Answers) -> RankSummary:
    low, high = mean_accuracy_interval(answers)
    by_seed = answers.mean(axis=1)
    return RankSummary(
        rank=rank,
        seeds=len(answers),
        accuracy=float(by_seed.mean()),
        accuracy_low=low,
        accuracy_high=high,
        accuracy_spread=float(by_seed.std(ddof=1)) if len(answers) > 1 else None,
    )


def _pairs(
    answers: dict[int, Answers], differences: Mapping[tuple[int, int], Difference]
) -> list[PairSummary]:
    ranks = list(combinations(answers, 2))
    found = [differences[pair] for pair in ranks]
    return [
        PairSummary(
            rank=one,
            other=other,
            difference=each.mean,
            low=each.low,
            high=each.high,
            p=each.p,
            p_holm=adjusted,
            mcnemar=[mcnemar(a, b) for a, b in zip(answers[one], answers[other], strict=True)],
        )
        for (one, other), each, adjusted in zip(ranks, found, holm([each.p for each in found]), strict=True)
    ]


def _verdict(
    best: int,
    enough: int | None,
    to_best: dict[int, Difference],
    pairs: Sequence[PairSummary],
    margin: float,
    shape: tuple[int, ...],
) -> str:
    points = f"{100 * margin:g} points"
    if not to_best:
        return f"Rank {best} is the only one here: nothing to compare it with."
    caveat = "" if shape[0] > 1 else " One seed says nothing of how seeds differ; give several with --seeds."
    if enough is not None:
        gap = 100 * to_best[enough].mean
        return (
            f"Rank {enough} is enough: its validation accuracy is {gap:+.2f} points from rank {best}, "
            f"the best, and with 95 % confidence not more than {points} below it.{caveat}"
        )
    apart = {pair.rank for pair in pairs if pair.other == best and pair.p_holm < 0.05}
    open_ranks = [rank for rank in to_best if rank < best and rank not in apart]
    if not open_ranks:
        why = "every smaller rank is worse" if apart else "no smaller rank was tried"
        beyond = "" if best < max(to_best) else " No larger one was tried, and one may be better still."
        return f"Rank {best} is the best, and {why}.{beyond}{caveat}"
    names = ", ".join(map(str, open_ranks))
    # The easiest case decides: one smaller rank shown to be enough is all that is asked.
    needed = min((_needed(to_best[rank], margin, shape) for rank in open_ranks), key=_effort)
    return (
        f"This data cannot tell whether rank {names} is as good as rank {best}, the best, "
        f"to within {points}. {_advice(needed, shape)}{caveat}"
    )


def _needed(found: Difference, margin: float, shape: tuple[int, ...]) -> tuple[int, float]:
    """(seeds, multiple of the texts) that would show a true difference of 0 to be within the margin."""
    seeds, _ = shape
    wanted = (margin / QUANTILE) ** 2
    room = wanted - found.text_variance
    if seeds > 1 and room > 0:
        return max(seeds, math.ceil(seeds * found.seed_variance / room)), 1.0
    return seeds, (found.text_variance + found.seed_variance) / wanted


def _effort(needed: tuple[int, float]) -> float:
    return needed[0] * needed[1]


def _advice(needed: tuple[int, float], shape: tuple[int, ...]) -> str:
    (seeds, more), (now, texts) = needed, shape
    if more > 1:
        return f"About {math.ceil(more * texts / 100) * 100:,} validation texts instead of {texts:,} would."
    if seeds > now:
        return f"About {seeds - now} more seeds would, if they are equally good."
    return "Their accuracies differ by about as much as the margin; a wider --margin would settle it."
