"""What each rank scores on each split, over its seeds; and the reference rows beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankwise.report.predictions import answers_by_rank, read_predictions
from rankwise.stats.intervals import Answers, mean_accuracy_interval
from rankwise.store.run import AdapterResult, Reference, Results, RunFolder

Metrics = Mapping[str, Any]
"""An `evaluate.Metrics` as results.json holds it."""


@dataclass(frozen=True)
class Score:
    """Figures on one split: means over seeds, as fractions."""

    accuracy: float
    low: float  # 95 % interval, over texts and, where there are several, over seeds
    high: float
    spread: float | None  # standard deviation over seeds; None for one seed
    by_seed: tuple[float, ...]  # accuracy of each seed
    macro_f1: float
    log_loss: float | None  # nats a text; None for a reference without probabilities


@dataclass(frozen=True)
class Row:
    """A rank, or a reference, with its scores."""

    name: str  # such as "4", or "majority class"
    rank: int | None  # None for a reference
    adapters: tuple[AdapterResult, ...]  # one a seed, in order; empty for a reference
    scores: dict[str, Score]  # split -> score

    @property
    def params(self) -> AdapterResult | None:
        """The adapter that speaks for the rank's parameters, which do not depend on the seed."""
        return self.adapters[0] if self.adapters else None


def rank_rows(run: RunFolder, results: Results) -> list[Row]:
    """A row for each rank, smallest first.

    Raises:
        UsageError: there are several seeds, and predictions.csv cannot be read.
    """
    several = len({row.seed for row in results.adapters}) > 1
    lines = read_predictions(run, [row.name for row in results.adapters]) if several else []
    answers = {split: answers_by_rank(lines, results, split) for split in splits(results) if several}
    return [
        Row(
            name=str(rank),
            rank=rank,
            adapters=adapters,
            scores={
                split: _score(found, answers[split][rank] if several else None)
                for split in splits(results)
                if (found := of_split(adapters, split))
            },
        )
        for rank, adapters in by_rank(results).items()
    ]


def reference_rows(results: Results) -> list[Row]:
    """A row for each reference, as results.json orders them."""
    return [
        Row(
            name=each.name,
            rank=None,
            adapters=(),
            scores={
                split: _score(found, None) for split in splits(results) if (found := of_split([each], split))
            },
        )
        for each in results.references
    ]


def by_rank(results: Results) -> dict[int, tuple[AdapterResult, ...]]:
    """Rank -> its adapters, seeds in order."""
    adapters = sorted(results.adapters, key=lambda row: (row.rank, row.seed))
    ranks = dict.fromkeys(row.rank for row in adapters)
    return {rank: tuple(row for row in adapters if row.rank == rank) for rank in ranks}


def splits(results: Results) -> list[str]:
    """The splits that were evaluated: validation, and test where there is one."""
    return ["validation", *(["test"] if any(row.test for row in results.adapters) else [])]


def of_split(rows: Sequence[AdapterResult | Reference], split: str) -> list[Metrics]:
    """The metrics of a split, of the rows that have them."""
    found = [row.validation if split == "validation" else row.test for row in rows]
    return [each for each in found if each]


def best_adapter(adapters: Sequence[AdapterResult]) -> AdapterResult:
    """The adapter of the highest validation accuracy, of the smallest rank among equals."""
    return max(adapters, key=lambda row: (row.validation["accuracy"], -row.rank))


def alone(row: Row, adapter: AdapterResult) -> Row:
    """The row of one of a rank's adapters."""
    scores = {split: _score(found, None) for split in row.scores if (found := of_split([adapter], split))}
    return Row(adapter.name, row.rank, (adapter,), scores)


def _score(found: Sequence[Metrics], answers: Answers | None) -> Score:
    """From the metrics of each seed, at least one; `answers` where there are several seeds."""
    by_seed = tuple(float(each["accuracy"]) for each in found)
    first = found[0]
    low, high = (
        (float(first["accuracy_low"]), float(first["accuracy_high"]))
        if answers is None
        else mean_accuracy_interval(answers)
    )
    return Score(
        accuracy=float(np.mean(by_seed)),
        low=low,
        high=high,
        spread=float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None,
        by_seed=by_seed,
        macro_f1=float(np.mean([each["macro_f1"] for each in found])),
        log_loss=None if first["log_loss"] is None else float(np.mean([each["log_loss"] for each in found])),
    )
