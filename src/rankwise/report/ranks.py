"""Compares ranks on the same texts and seeds, with a verdict on which rank is enough."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from rankwise.report.criteria import CRITERIA, SVM, Criterion
from rankwise.report.run import Run
from rankwise.report.scores import by_rank
from rankwise.report.tables import Table
from rankwise.schema import (
    BaselineSummary,
    Comparison,
    CurvePoint,
    MetricName,
    PairSummary,
    RankSummary,
    Results,
)
from rankwise.stats.intervals import Answers, mean_accuracy_interval
from rankwise.stats.paired import mcnemar
from rankwise.stats.verdict import Comparison as Against
from rankwise.stats.verdict import RankScore, Scores, Verdict, judge, verdict_curve
from rankwise.stats.wording import Lost, explain, explain_rates, headline

MARGINS = np.geomspace(0.2, 20.0, 49)
"""Margins of the curve of the verdict, in multiples of the metric's default margin."""


def compare(run: Run, margin: float | None = None, metric: MetricName | None = None) -> Comparison:
    """Compare all pairs of a run's ranks, by the rules of `stats.verdict`.

    Args:
        run: a finished run.
        margin: accepted loss, above 0: a fraction for accuracy and macro-F1, in nats for the log loss;
            by default the metric's (`report.criteria`).
        metric: the metric to compare the ranks by; by default `Run.metric`.

    Raises:
        UsageError: the log loss is asked for, and the run's logits cannot be read.
    """
    by = CRITERIA[metric or run.metric]
    margin = by.margin if margin is None else margin
    ranks, seeds = _shared(run.results)
    adapters = {
        rank: [row for row in rows if row.seed in seeds]
        for rank, rows in by_rank(run.results).items()
        if rank in ranks
    }
    scores = {rank: by.scores(run, rows) for rank, rows in adapters.items()}
    answers = {rank: run.answers("validation", rows) for rank, rows in adapters.items()}
    step, lost = by.step(run), _lost(run.results, ranks, seeds)
    found = judge(scores, margin, by.metric, by.baselines(run), step)
    return Comparison(
        metric=by.name,
        unit="fraction" if by.metric.percent else "nats",
        lower_is_better=by.metric.negated,
        margin=margin,
        seeds=seeds,
        ranks=[_summary(by, each, answers[each.rank]) for each in found.ranks],
        pairs=_pairs(by, answers, found),
        baselines=[_against(by, each) for each in found.baselines],
        best=found.leader,
        enough=found.recommended,
        recommended=found.chosen,
        curve=_curve(by, scores, found, step),
        headline=headline(found, lost),
        verdict=explain(found, lost) + _left_out(run, by) + _rates(run, found),
    )


def _curve(by: Criterion, scores: Scores, found: Verdict, step: float | None) -> list[CurvePoint]:
    """The verdict at round margins, and at the margin of the verdict itself."""
    if len(found.candidates) == 1:
        return []
    margins = sorted({*(float(f"{by.margin * each:.2g}") for each in MARGINS), found.margin})
    curve = verdict_curve(scores, margins, step)
    return [CurvePoint(margin=margin, enough=rank) for margin, rank in curve]


def _left_out(run: Run, by: Criterion) -> str:
    if not by.metric.negated or SVM not in run.predictions["validation"].baselines:
        return ""
    return f" {SVM} has no probabilities, hence no log loss, and is left out."


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
    """One row per rank: mean over seeds with interval and spread, and the difference to the best."""
    by = CRITERIA[found.metric]
    versus = {
        pair.rank if pair.other == found.best else pair.other: pair
        for pair in found.pairs
        if found.best in (pair.rank, pair.other)
    }
    rows = [
        (
            str(each.rank),
            shown(by, each.mean),
            f"{shown(by, each.low, -1)}-{shown(by, each.high, -1)}",
            "" if each.spread is None else shown(by, each.spread),
            *_versus(by, versus.get(each.rank), found.best),
        )
        for each in found.ranks
    ]
    over = "texts and seeds" if len(found.seeds) > 1 else "texts"
    return Table(
        "Ranks on the validation texts",
        ("rank", by.short, "95 %", "spread", f"minus rank {found.best}", "95 % of it", "p"),
        rows,
        note=f"Mean over {len(found.seeds)} seed{'s' * (len(found.seeds) > 1)}, {_units(by)}. "
        f"95 %: intervals over {over}, each by itself; spread: standard deviation over seeds; "
        "p: of no difference. Intervals of differences and p-values are both adjusted for all pairs of "
        "ranks, so an interval contains 0 exactly if p is 0.05 or more; the verdict's own tests must all "
        "pass, and need no adjustment.",
    )


def baseline_table(found: Comparison) -> Table:
    """One row per baseline: the recommended rank minus the baseline, with interval and p-value."""
    by, choice = CRITERIA[found.metric], " and for the choice among the ranks" * found.has_choice
    rows = [
        (
            each.baseline,
            shown(by, each.difference, sign="+"),
            f"{shown(by, each.low, sign='+')} to {shown(by, each.high, sign='+')}",
            f"{each.p:.2g}",
        )
        for each in found.baselines
    ]
    return Table(
        f"Rank {found.recommended} minus each baseline, {by.short}",
        ("baseline", "difference", "95 % of it", "p"),
        rows,
        note=f"Intervals and p-values are both adjusted for all baselines{choice}.",
    )


def _units(by: Criterion) -> str:
    return "in percent and points" if by.metric.percent else f"in {by.metric.unit}; lower is better"


def shown(by: Criterion, value: float, more: int = 0, sign: str = "") -> str:
    """A value of a metric as tables show it, such as `91.45` percent or `0.2310` nats.

    Args:
        by: the metric.
        value: in the metric's unit in a `Comparison`.
        more: digits in addition to the metric's.
        sign: `+` for a difference.
    """
    # Adding 0 turns a negative zero into a positive one.
    return f"{by.metric.scale * value + 0.0:{sign}.{by.metric.digits + more}f}"


def versus_best(by: Criterion, pair: PairSummary, best: int) -> tuple[str, str]:
    """The other rank minus the best, and the interval of this difference, as tables show them."""
    sign = 1 if pair.other == best else -1
    low, high = sorted((sign * pair.low, sign * pair.high))
    ends = f"{shown(by, low, sign='+')} to {shown(by, high, sign='+')}"
    return shown(by, sign * pair.difference, sign="+"), ends


def _versus(by: Criterion, pair: PairSummary | None, best: int) -> tuple[str, str, str]:
    return ("", "", "") if pair is None else (*versus_best(by, pair, best), f"{pair.p:.2g}")


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


def _lost(results: Results, ranks: Sequence[int], seeds: Sequence[int]) -> list[Lost]:
    """The ranks of which some adapters diverged, or have a seed that other ranks lack."""
    trained, diverged = defaultdict[int, list[int]](list), defaultdict[int, list[int]](list)
    for row in results.adapters:
        if row.rank not in ranks or row.seed not in seeds:
            trained[row.rank].append(row.seed)
    for dropped in results.diverged:
        diverged[dropped.rank].append(dropped.seed)
    return [
        Lost(rank, tuple(sorted(diverged[rank])), tuple(sorted(trained[rank])), rank in ranks)
        for rank in sorted(trained.keys() | diverged.keys())
    ]


def _summary(by: Criterion, score: RankScore, answers: Answers) -> RankSummary:
    low, high = mean_accuracy_interval(answers)
    by_seed = answers.mean(axis=1)
    return RankSummary(
        rank=score.rank,
        seeds=len(answers),
        **_signed(by, "mean", score.mean, score.low, score.high),
        spread=score.spread,
        accuracy=float(answers.mean()),
        accuracy_low=low,
        accuracy_high=high,
        accuracy_spread=float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None,
    )


def _signed(by: Criterion, name: str, value: float, low: float, high: float) -> dict[str, float]:
    """A value and its interval in the metric's own direction, from those of the scores."""
    low, high = sorted((by.sign * low, by.sign * high))
    return {name: by.sign * value, "low": low, "high": high}


def _against(by: Criterion, found: Against) -> BaselineSummary:
    return BaselineSummary(
        rank=found.rank,
        baseline=str(found.other),
        **_signed(by, "difference", found.difference, found.low, found.high),
        p=found.p,
    )


def _pairs(by: Criterion, answers: dict[int, Answers], found: Verdict) -> list[PairSummary]:
    return [
        PairSummary(
            rank=pair.rank,
            other=int(pair.other),
            **_signed(by, "difference", pair.difference, pair.low, pair.high),
            p=pair.p,
            mcnemar=[
                mcnemar(a, b) for a, b in zip(answers[pair.rank], answers[int(pair.other)], strict=True)
            ],
        )
        for pair in found.pairs
    ]
