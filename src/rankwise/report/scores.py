"""Scores of each rank over its seeds, of cuts and of the baselines, on each split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankwise.report.run import Run
from rankwise.schema import AdapterResult, Baseline, CutResult, MetricName, Metrics, Results
from rankwise.stats.intervals import Answers, mean_accuracy_interval

Measured = AdapterResult | CutResult | Baseline
LINEAR_PROBE = "linear probe (rank 0)"
"""Display name of the baseline "rank 0" of results.json."""


@dataclass(frozen=True)
class Score:
    """Metrics on one split: means over seeds, as fractions."""

    accuracy: float
    low: float  # 95 % interval, over texts and, if there are several, over seeds
    high: float
    spread: float | None  # standard deviation over seeds; None for one seed
    by_seed: tuple[float, ...]  # accuracy of each seed
    macro_f1: float
    log_loss: float | None  # nats per text; None for a baseline without probabilities


@dataclass(frozen=True)
class ScoreRow:
    """A rank, a larger rank cut to it, or a baseline, with its scores."""

    name: str  # such as "4", "16 cut to 4", or "majority class"
    rank: int | None  # None for a baseline
    adapters: tuple[AdapterResult, ...]  # one per seed, in order; empty for a cut and for a baseline
    scores: dict[str, Score]  # split -> score
    cut_from: int | None = None  # the larger rank that was cut to `rank`; None for other rows
    kept: float | None = None  # share of the update that a cut keeps, mean over seeds; None for other rows

    @property
    def params(self) -> AdapterResult | None:
        """An adapter with the rank's parameter counts, which do not depend on the seed."""
        return self.adapters[0] if self.adapters else None

    @property
    def trained_rank(self) -> int | None:
        """The rank that was trained: for a cut, the one that was cut."""
        return self.rank if self.cut_from is None else self.cut_from


def rank_rows(run: Run) -> list[ScoreRow]:
    """A row for each rank, smallest first."""
    return [
        ScoreRow(
            name=str(rank),
            rank=rank,
            adapters=adapters,
            scores={
                split: _score(found, run.answers(split, adapters) if run.seeds > 1 else None)
                for split in splits(run.results)
                if (found := of_split(adapters, split))
            },
        )
        for rank, adapters in by_rank(run.results).items()
    ]


def baseline_rows(results: Results) -> list[ScoreRow]:
    """A row for each baseline, in the order of results.json."""
    return [
        ScoreRow(
            name=LINEAR_PROBE if each.name == "rank 0" else each.name,
            rank=None,
            adapters=(),
            scores={
                split: _score(found, None) for split in splits(results) if (found := of_split([each], split))
            },
        )
        for each in results.baselines
    ]


def cut_rows(run: Run) -> list[ScoreRow]:
    """A row for each rank that the largest rank was cut to, smallest first."""
    return [
        ScoreRow(
            name=f"{cuts[0].from_rank} cut to {rank}",
            rank=rank,
            adapters=(),
            scores={
                split: _score(found, run.cut_answers(split, cuts) if run.seeds > 1 else None)
                for split in splits(run.results)
                if (found := of_split(cuts, split))
            },
            cut_from=cuts[0].from_rank,
            kept=float(np.mean([each.kept for each in cuts])),
        )
        for rank, cuts in cuts_by_rank(run.results).items()
    ]


def cuts_by_rank(results: Results) -> dict[int, tuple[CutResult, ...]]:
    """Rank -> the adapters of the largest rank that were cut to it, sorted by seed."""
    cuts = sorted(results.cuts, key=lambda row: (row.rank, row.seed))
    return {rank: tuple(row for row in cuts if row.rank == rank) for rank in sorted({r.rank for r in cuts})}


def by_rank(results: Results) -> dict[int, tuple[AdapterResult, ...]]:
    """Rank -> its adapters, sorted by seed."""
    adapters = sorted(results.adapters, key=lambda row: (row.rank, row.seed))
    ranks = dict.fromkeys(row.rank for row in adapters)
    return {rank: tuple(row for row in adapters if row.rank == rank) for rank in ranks}


def splits(results: Results) -> list[str]:
    """The evaluated splits: validation, and test if there is one."""
    return ["validation", *(["test"] if any(row.test for row in results.adapters) else [])]


def metrics_of(measured: Measured, split: str) -> Metrics | None:
    """The metrics of an adapter, cut or baseline on a split; None if there are none."""
    return measured.validation if split == "validation" else measured.test


def of_split(measured: Sequence[Measured], split: str) -> list[Metrics]:
    """The metrics on a split, of the adapters, cuts or baselines that have them."""
    return [found for each in measured if (found := metrics_of(each, split))]


def best_adapter(adapters: Sequence[AdapterResult], metric: MetricName = "accuracy") -> AdapterResult:
    """The best adapter on validation, by accuracy or macro-F1; ties go to the smallest rank.

    By log loss, it is the most accurate one, too.
    """
    by_f1 = metric == "macro-f1"
    return max(
        adapters,
        key=lambda row: (row.validation.macro_f1 if by_f1 else row.validation.accuracy, -row.rank),
    )


def alone(row: ScoreRow, adapter: AdapterResult) -> ScoreRow:
    """The row of a single adapter of a rank."""
    scores = {split: _score(found, None) for split in row.scores if (found := of_split([adapter], split))}
    return ScoreRow(adapter.name, row.rank, (adapter,), scores)


def _score(found: Sequence[Metrics], answers: Answers | None) -> Score:
    """Combine the metrics of one or more seeds; `answers` is given if there are several."""
    by_seed = tuple(float(each.accuracy) for each in found)
    first = found[0]
    low, high = (
        (float(first.accuracy_low), float(first.accuracy_high))
        if answers is None
        else mean_accuracy_interval(answers)
    )
    return Score(
        accuracy=float(np.mean(by_seed)),
        low=low,
        high=high,
        spread=float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None,
        by_seed=by_seed,
        macro_f1=float(np.mean([each.macro_f1 for each in found])),
        log_loss=None if first.log_loss is None else float(np.mean([each.log_loss or 0.0 for each in found])),
    )
