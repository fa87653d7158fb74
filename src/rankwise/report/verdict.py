"""The rank and the adapter that a run recommends, and the combined metrics of the rank's adapters.

Everything that names an adapter to use asks this module: the page, the cards, the tables of samples, the
command line and the examples. The rule is `stats.verdict.Verdict.chosen`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rankwise.report.ranks import compare
from rankwise.report.run import Run
from rankwise.report.scores import best_adapter, by_rank, of_split
from rankwise.schema import AdapterResult, Bin, ClassMetrics, Comparison, MetricName, Results
from rankwise.stats.metrics import confusion_matrix


@dataclass(frozen=True)
class Chosen:
    """The recommended rank, by validation results only."""

    rank: int
    adapters: tuple[AdapterResult, ...]  # one per seed
    metric: MetricName = "accuracy"

    @property
    def best(self) -> AdapterResult:
        """The recommended adapter: the rank's best one on validation, by the metric of the verdict."""
        return best_adapter(self.adapters, self.metric)

    @property
    def named(self) -> str:
        """`rank 4`, or `rank 4, 3 seeds together`."""
        more = f", {len(self.adapters)} seeds together" if len(self.adapters) > 1 else ""
        return f"rank {self.rank}{more}"

    def why(self, found: Comparison) -> str:
        """Why this rank is recommended, in a sentence."""
        if len(found.ranks) == 1:
            return "No other rank was tried."
        if found.enough is not None:
            return "It is the rank that the verdict names."
        if self.rank == found.best:
            smaller = any(0 < each.rank < self.rank for each in found.ranks)
            rest = "smaller ranks are shown to be worse" if smaller else "it is the smallest"
            return f"The verdict is open: it has the best mean, and {rest}."
        return f"The verdict is open: it is the smallest rank not shown to be worse than rank {found.best}."

    def confusion(self, split: str) -> NDArray[np.int64] | None:
        """(classes, classes) confusion matrix, summed over the seeds; None if texts have several labels."""
        measured = of_split(self.adapters, split)
        if measured[0].is_multi_label:
            return None
        cells = [cell for each in measured for cell in each.cells()]
        return confusion_matrix(cells, len(measured[0].classes))

    def classes(self, split: str) -> list[ClassMetrics]:
        """Precision, recall and F1 of each class, means over the seeds."""
        return [_mean_class(found) for found in zip(*_classes(self.adapters, split), strict=True)]

    def reliability(self, split: str) -> tuple[list[Bin], float] | None:
        """Bins pooled over the seeds, and the mean expected calibration error; None if not measured."""
        found = of_split(self.adapters, split)
        errors = [each.ece for each in found if each.ece is not None]
        bins = [
            each for metrics in found for each in metrics.reliability
        ]  # without the empty bins of each seed
        if len(errors) < len(found) or not bins:
            return None
        lows = sorted({each.low for each in bins})
        return [_joint_bin([each for each in bins if each.low == low]) for low in lows], float(
            np.mean(errors)
        )


def chosen(results: Results, found: Comparison) -> Chosen:
    """The recommended rank of a run, by a comparison of its ranks."""
    return Chosen(found.recommended, by_rank(results)[found.recommended], found.metric)


def recommend(run: Run) -> Chosen:
    """The recommended rank of a run, by its own metric with the default margin."""
    return chosen(run.results, compare(run))


def _classes(adapters: Sequence[AdapterResult], split: str) -> list[list[ClassMetrics]]:
    return [each.classes for each in of_split(adapters, split)]


def _mean_class(found: Sequence[ClassMetrics]) -> ClassMetrics:
    return ClassMetrics(
        label=found[0].label,
        precision=float(np.mean([each.precision for each in found])),
        recall=float(np.mean([each.recall for each in found])),
        f1=float(np.mean([each.f1 for each in found])),
        texts=found[0].texts,
        threshold=_mean([each.threshold for each in found if each.threshold is not None]),
    )


def _joint_bin(found: Sequence[Bin]) -> Bin:
    """Merge bins with the same bounds."""
    texts = [each.texts for each in found]
    return Bin(
        low=found[0].low,
        high=found[0].high,
        texts=sum(texts),
        confidence=float(np.average([each.confidence for each in found], weights=texts)),
        accuracy=float(np.average([each.accuracy for each in found], weights=texts)),
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
