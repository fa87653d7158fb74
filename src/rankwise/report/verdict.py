"""The rank that a run speaks for, and what its adapters say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankwise.report.scores import Metrics, best_adapter, by_rank, of_split
from rankwise.schema import AdapterResult, Comparison, Results


@dataclass(frozen=True)
class Chosen:
    """The enough rank, or the best where none is enough, on validation alone."""

    rank: int
    adapters: tuple[AdapterResult, ...]  # one a seed

    @property
    def best(self) -> AdapterResult:
        """The adapter of the rank to use."""
        return best_adapter(self.adapters)

    @property
    def named(self) -> str:
        """`rank 4`, or `rank 4 (sum of 3 seeds)`."""
        more = f", {len(self.adapters)} seeds together" if len(self.adapters) > 1 else ""
        return f"rank {self.rank}{more}"

    def confusion(self, split: str) -> list[list[int]]:
        """Confusion matrix, summed over the seeds."""
        return np.sum([each["confusion"] for each in of_split(self.adapters, split)], axis=0).tolist()  # type: ignore[no-any-return]

    def classes(self, split: str) -> list[dict[str, Any]]:
        """Precision, recall and F1 of each class, means over the seeds."""
        found = of_split(self.adapters, split)
        return [_mean_class([each["classes"][i] for each in found]) for i in range(len(found[0]["classes"]))]

    def reliability(self, split: str) -> tuple[list[dict[str, float]], float] | None:
        """Bins, the seeds' texts together, and the mean expected calibration error; None if not measured."""
        found = of_split(self.adapters, split)
        if not all(each.get("reliability") and each.get("ece") is not None for each in found):
            return None
        bins = [each for metrics in found for each in metrics["reliability"]]  # a seed leaves empty bins out
        joint = [_joint_bin([each for each in bins if each["low"] == low]) for low in _lows(bins)]
        return joint, float(np.mean([each["ece"] for each in found]))


def chosen(results: Results, found: Comparison) -> Chosen:
    """What the verdict speaks for."""
    rank = found.best if found.enough is None else found.enough
    return Chosen(rank, by_rank(results)[rank])


def _mean_class(found: Sequence[Metrics]) -> dict[str, Any]:
    means = {name: float(np.mean([each[name] for each in found])) for name in ("precision", "recall", "f1")}
    return {"label": found[0]["label"], "texts": found[0]["texts"], **means}


def _lows(bins: Sequence[Metrics]) -> list[float]:
    return sorted({each["low"] for each in bins})


def _joint_bin(found: Sequence[Metrics]) -> dict[str, float]:
    weights = np.array([each["texts"] for each in found], dtype=np.float64)
    total = max(weights.sum(), 1.0)

    def mean(name: str) -> float:
        return float((weights * [each[name] or 0.0 for each in found]).sum() / total)

    return {
        "low": found[0]["low"],
        "high": found[0]["high"],
        "texts": float(weights.sum()),
        "confidence": mean("confidence"),
        "accuracy": mean("accuracy"),
    }
