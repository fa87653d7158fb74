"""Which rank is enough: ranks compared on the same texts and seeds, and a verdict in plain words."""

from __future__ import annotations

from pydantic import BaseModel

from rankwise.report.predictions import answers_by_rank, read_predictions
from rankwise.report.tables import Table
from rankwise.stats.intervals import Answers
from rankwise.stats.paired import mcnemar
from rankwise.stats.verdict import RankScore, Verdict, judge
from rankwise.stats.wording import explain, headline
from rankwise.store.run import Results, RunFolder

MARGIN = 0.005
"""Loss of accuracy that is nothing to worry about, by default."""


class RankSummary(BaseModel):
    """One rank over its seeds, on the validation split; fractions."""

    rank: int
    seeds: int
    accuracy: float  # mean over seeds
    accuracy_low: float  # 95 % interval, over texts and, where there are several, over seeds
    accuracy_high: float
    accuracy_spread: float | None  # standard deviation over seeds; null for one seed


class PairSummary(BaseModel):
    """Two ranks on the same validation texts and seeds; fractions."""

    rank: int
    other: int
    difference: float  # accuracy of `rank` minus that of `other`
    low: float  # simultaneous 95 % interval: all pairs' intervals hold the truth together
    high: float
    p: float  # two-sided, of no difference; adjusted for the number of pairs, as the interval is
    mcnemar: list[float]  # exact p within each seed


class Comparison(BaseModel):
    """What a run's validation texts say of its ranks. The test split is never looked at."""

    margin: float
    seeds: list[int]
    ranks: list[RankSummary]
    pairs: list[PairSummary]
    best: int  # rank of the highest mean accuracy, the smallest among equals; by itself no claim
    enough: int | None  # smallest rank shown to be enough, or the best; null where the data do not decide
    headline: str
    verdict: str


def compare(run: RunFolder, margin: float = MARGIN) -> Comparison:
    """Compare every pair of a run's ranks; `stats.verdict` has the rules.

    Args:
        run: a finished run.
        margin: loss of accuracy that is accepted, as a fraction.

    Raises:
        UsageError: the run is not finished, or its predictions cannot be read.
    """
    results = run.read_results()
    ranks, seeds = _shared(results)
    shared = [row for row in results.adapters if row.rank in ranks and row.seed in seeds]
    lines = read_predictions(run, [row.name for row in results.adapters])
    answers = answers_by_rank(lines, results.model_copy(update={"adapters": shared}), "validation")
    found = judge(answers, margin)
    return Comparison(
        margin=margin,
        seeds=seeds,
        ranks=[_summary(each, len(seeds)) for each in found.ranks],
        pairs=_pairs(answers, found),
        best=found.leader,
        enough=found.recommended,
        headline=headline(found),
        verdict=explain(found),
    )


def in_short(found: Comparison) -> str:
    """The verdict in a few words, for a headline or a list of runs."""
    return found.headline


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
        "p: of no difference. Intervals of differences and p are adjusted for all pairs of ranks.",
    )


def _versus(pair: PairSummary | None, best: int) -> tuple[str, str, str]:
    if pair is None:
        return "", "", ""
    sign = 1 if pair.other == best else -1
    low, high = sorted((100 * sign * pair.low, 100 * sign * pair.high))
    return f"{100 * sign * pair.difference:+.2f}", f"{low:+.2f} to {high:+.2f}", f"{pair.p:.2g}"


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


def _summary(score: RankScore, seeds: int) -> RankSummary:
    return RankSummary(
        rank=score.rank,
        seeds=seeds,
        accuracy=score.mean,
        accuracy_low=score.low,
        accuracy_high=score.high,
        accuracy_spread=score.spread,
    )


def _pairs(answers: dict[int, Answers], found: Verdict) -> list[PairSummary]:
    return [
        PairSummary(
            rank=pair.rank,
            other=int(pair.other),
            difference=pair.difference,
            low=pair.low,
            high=pair.high,
            p=pair.p,
            mcnemar=[
                mcnemar(a, b) for a, b in zip(answers[pair.rank], answers[int(pair.other)], strict=True)
            ],
        )
        for pair in found.pairs
    ]
