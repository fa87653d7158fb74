"""Compares ranks on the same texts and seeds, with a verdict on which rank is enough."""

from __future__ import annotations

from rankwise.report.run import Run
from rankwise.report.scores import by_rank
from rankwise.report.tables import Table
from rankwise.schema import BaselineSummary, Comparison, PairSummary, RankSummary, Results
from rankwise.stats.intervals import Answers
from rankwise.stats.paired import mcnemar
from rankwise.stats.verdict import PROBE, RankScore, Verdict, judge
from rankwise.stats.verdict import Comparison as Against
from rankwise.stats.wording import explain, explain_rates, headline

MARGIN = 0.005
"""Default margin: the loss of accuracy that is considered negligible."""


COMPARED = {"TF-IDF + linear SVM": "TF-IDF + linear SVM", "rank 0": PROBE}
"""Baselines to test the recommended rank against: name in results.json -> name in the verdict."""


def compare(run: Run, margin: float = MARGIN) -> Comparison:
    """Compare all pairs of a run's ranks, by the rules of `stats.verdict`.

    Args:
        run: a finished run.
        margin: accepted loss of accuracy, as a fraction.
    """
    ranks, seeds = _shared(run.results)
    answers = {
        rank: run.answers("validation", [row for row in adapters if row.seed in seeds])
        for rank, adapters in by_rank(run.results).items()
        if rank in ranks
    }
    predictions = run.predictions["validation"]
    baselines = {
        COMPARED[name]: predicted == predictions.targets
        for name, predicted in predictions.baselines.items()
        if name in COMPARED
    }
    found = judge(answers, margin, baselines=baselines)
    return Comparison(
        margin=margin,
        seeds=seeds,
        ranks=[_summary(each, len(seeds)) for each in found.ranks],
        pairs=_pairs(answers, found),
        baselines=[_against(each) for each in found.baselines],
        best=found.leader,
        enough=found.recommended,
        headline=headline(found),
        verdict=explain(found) + _rates(run, found),
    )


def _rates(run: Run, found: Verdict) -> str:
    """What the learning rates mean for a verdict on ranks; docs/concepts.md has the evidence."""
    if len(found.candidates) == 1:
        return ""
    rates = {rank: run.learning_rates[rank] for rank in found.candidates}
    tuning = run.results.tuning
    if tuning is None or "learning_rate" not in tuning.varied:
        return " " + explain_rates(rates, None)
    at_edge = [each.rank for each in tuning.chosen if each.at_edge and each.rank in rates]
    return " " + explain_rates(rates, tuning.texts, at_edge)


def summary_table(found: Comparison) -> Table:
    """One row per rank: mean accuracy over seeds with interval and spread, and the difference to the best."""
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
        "p: of no difference. Intervals of differences and p-values are adjusted for all pairs of ranks; "
        "the verdict's own tests must all pass, and need no adjustment.",
    )


def _versus(pair: PairSummary | None, best: int) -> tuple[str, str, str]:
    if pair is None:
        return "", "", ""
    sign = 1 if pair.other == best else -1
    low, high = sorted((100 * sign * pair.low, 100 * sign * pair.high))
    return f"{100 * sign * pair.difference:+.2f}", f"{low:+.2f} to {high:+.2f}", f"{pair.p:.2g}"


def _shared(results: Results) -> tuple[list[int], list[int]]:
    """The ranks to compare, and the seeds that they share.

    If adapters were dropped, ranks may have no seed in common. Ranks with the fewest seeds are then
    excluded, largest first.
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


def _against(found: Against) -> BaselineSummary:
    return BaselineSummary(
        rank=found.rank,
        baseline=str(found.other),
        difference=found.difference,
        low=found.low,
        high=found.high,
        p=found.p,
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
