"""The metrics that ranks can be compared by: their scores of each validation text, and default margins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rankwise.errors import UsageError
from rankwise.report.run import Run
from rankwise.schema import AdapterResult, MetricName
from rankwise.stats.crossed import Floats
from rankwise.stats.verdict import ACCURACY, LOG_LOSS, MACRO_F1, PROBE, Metric
from rankwise.tasks.task import Predicted

MARGIN = 0.005
"""Default margin of accuracy and macro-F1: the loss that is considered negligible, as a fraction."""
LOG_LOSS_MARGIN = 0.01
"""Default margin of the log loss in nats: the probability of the true label, as a geometric mean over the
texts, falls by 1 % of itself."""
SVM, PROBE_ROW = "TF-IDF + linear SVM", "rank 0"
"""Baselines to test the recommended rank against, as results.json names them."""
COMPARED = {SVM: SVM, PROBE_ROW: PROBE}
"""Their names in the verdict."""
PROBE_LOGITS = "linear-probe"
"""Name of the linear probe among a run's adapters; `plan.PROBE`, which this package does not import because
it needs torch."""


@dataclass(frozen=True)
class Criterion:
    """A metric, and how to compute its scores, where higher is better."""

    name: MetricName
    metric: Metric
    margin: float  # default, in units of the scores
    scores: Callable[[Run, Sequence[AdapterResult]], Floats]  # (adapters, validation texts)
    baselines: Callable[[Run], dict[str, Floats]]  # name in the verdict -> (validation texts,)
    step: Callable[[Run], float | None] = lambda run: None  # as in `paired.pair_up`

    @property
    def short(self) -> str:
        """Name in a table: `accuracy`, `log loss` or `macro-F1`."""
        return self.metric.name.removeprefix("validation ")

    @property
    def sign(self) -> int:
        """Factor between scores and values of the metric: 1, or -1 if lower values are better."""
        return -1 if self.metric.negated else 1


def criterion(name: str) -> Criterion:
    """The criterion of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in CRITERIA:
        raise UsageError(f"unknown metric {name!r}", hint=f"known metrics: {', '.join(CRITERIA)}")
    return CRITERIA[name]


def _right(run: Run, adapters: Sequence[AdapterResult]) -> Floats:
    return run.answers("validation", adapters).astype(np.float64)


def _right_baselines(run: Run) -> dict[str, Floats]:
    found = run.predictions["validation"]
    right = {name: run.task.correct(labels, found.targets) for name, labels in _baseline_labels(run).items()}
    return {name: each.astype(np.float64) for name, each in right.items()}


def _baseline_labels(run: Run) -> dict[str, Predicted]:
    """Name in the verdict -> (validation texts, ...) prediction."""
    predicted = run.predictions["validation"].baselines
    return {COMPARED[name]: labels for name, labels in predicted.items() if name in COMPARED}


def _gain(run: Run, adapters: Sequence[AdapterResult]) -> Floats:
    return -run.log_losses([row.name for row in adapters])


def _gain_baselines(run: Run) -> dict[str, Floats]:
    """Only the linear probe: a linear SVM has no probabilities."""
    if PROBE_ROW not in run.predictions["validation"].baselines:
        return {}
    return {PROBE: -run.log_losses([PROBE_LOGITS])[0]}


def _f1(run: Run, adapters: Sequence[AdapterResult]) -> Floats:
    places = {row.name: place for place, row in enumerate(run.results.adapters)}
    predicted = run.predictions["validation"].predicted[[places[row.name] for row in adapters]]
    return _pseudo_values(run, predicted)


def _f1_baselines(run: Run) -> dict[str, Floats]:
    return {name: _pseudo_values(run, labels[None])[0] for name, labels in _baseline_labels(run).items()}


def _f1_step(run: Run) -> float:
    return run.task.macro_f1_step(run.predictions["validation"].targets)


def _pseudo_values(run: Run, predicted: Predicted) -> Floats:
    """Of macro-F1 over the classes with validation texts, so that it is the same metric at every rank."""
    targets = run.predictions["validation"].targets
    return run.task.macro_f1_pseudo_values(predicted, targets, len(run.results.labels))


CRITERIA: dict[MetricName, Criterion] = {
    each.name: each
    for each in (
        Criterion("accuracy", ACCURACY, MARGIN, _right, _right_baselines),
        Criterion("log-loss", LOG_LOSS, LOG_LOSS_MARGIN, _gain, _gain_baselines),
        Criterion("macro-f1", MACRO_F1, MARGIN, _f1, _f1_baselines, _f1_step),
    )
}
