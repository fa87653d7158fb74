"""What depends on the task: how labels are encoded, trained on, decided, measured and written.

Everything else in rankwise is the same for all tasks. It asks the task of a run, a data set or an adapter::

    labels of a text    "joy"                       ("joy", "love")
    its ids             1                           (1, 2)
    targets             (texts,) label ids          (texts, classes) 0 and 1
    loss                cross-entropy               binary cross-entropy, mean over texts and labels
    probabilities       softmax                     sigmoid of each logit
    decision            (texts,) the largest        (texts, classes) those above the thresholds
    a cell of a table   joy                         joy|love
    task                `tasks.single.SingleLabel`  `tasks.multi.MultiLabel`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rankwise.schema import Metrics
from rankwise.tasks.labels import LabelIds, Labels

if TYPE_CHECKING:
    import torch

    from rankwise.nn.loss import Loss

Floats = NDArray[np.float64]
Logits = NDArray[np.float32]
Targets = NDArray[Any]
"""int64 label ids, or int8 zeros and ones."""
Predicted = NDArray[Any]
"""Like the targets: (..., texts) label ids, or (..., texts, classes) booleans."""


@dataclass(frozen=True)
class Decisions:
    """What a classifier decides for the texts of a split."""

    predicted: Predicted
    thresholds: tuple[float, ...] | None = None  # of each label; None if the largest logit decides


class Task(Labels, Protocol):
    """A task: its labels, and everything that depends on them."""

    def cell(self, row: Any, labels: Sequence[str]) -> str:
        """A text's target or prediction as a cell of a table."""

    def row(self, cell: str, index: Mapping[str, int]) -> Any:
        """The inverse of `cell`. Raises a KeyError if a label is not in the index."""

    def targets(self, ids: Sequence[LabelIds], classes: int) -> Targets:
        """(texts, ...) targets from the label ids of each text."""

    def has(self, targets: Targets, label: int) -> NDArray[np.bool_]:
        """(texts,) whether each text has a label."""

    def balanced_weights(self, targets: Targets, classes: int) -> NDArray[np.float32]:
        """(classes,) class weights of the loss that make up for different numbers of texts."""

    def prior_logits(self, targets: Targets, classes: int) -> Logits:
        """(classes,) logits of a classifier that knows the frequencies of the labels, and not the texts."""

    def loss(
        self,
        classes: int,
        weights: NDArray[np.float32] | None,
        adjustment: NDArray[np.float32] | None,
        device: torch.device,
    ) -> Loss:
        """The loss to train on.

        Args:
            classes: number of classes.
            weights: (classes,) class weights.
            adjustment: (classes,) added to the logits in training; None for a task that has no such thing.
            device: where to compute it.
        """

    def probabilities(self, logits: NDArray[Any]) -> Floats:
        """(..., classes) probabilities of the labels."""

    def confidence(self, logits: NDArray[Any], predicted: Predicted) -> Floats:
        """(...) the probability of what was predicted, from (..., classes) logits."""

    def label_probability(self, losses: Floats, classes: int) -> Floats:
        """The probability of each text's own labels, from the log losses of texts."""

    def decided(self, logits: Logits, thresholds: Sequence[float] | None = None) -> Decisions:
        """Decide by thresholds that are known.

        Args:
            logits: (texts, classes).
            thresholds: (classes,) probabilities; None for the task's default.
        """

    def thresholds(self, logits: Logits, targets: Targets) -> tuple[float, ...] | None:
        """(classes,) the thresholds that suit these texts best; None for a task without thresholds."""

    def judged(self, logits: Mapping[str, Logits], validation: Targets) -> dict[str, Decisions]:
        """Split -> decisions of a classifier whose thresholds, if any, are chosen on validation.

        Args:
            logits: split -> (texts, classes); validation, and perhaps others.
            validation: targets of the validation texts.
        """

    def correct(self, predicted: Predicted, targets: Targets) -> NDArray[np.bool_]:
        """(..., texts) whether all labels of each text are right."""

    def text_log_losses(self, targets: Targets, logits: Logits) -> Floats:
        """(..., texts) the log loss of each text in nats, from (..., texts, classes) logits."""

    def metrics(
        self,
        split: str,
        targets: Targets,
        logits: Logits,
        labels: Sequence[str],
        decisions: Decisions | None = None,
        *,
        probabilistic: bool = True,
    ) -> Metrics:
        """The metrics of one classifier on one split.

        Args:
            split: name of the split, stored with the metrics.
            targets: of the texts.
            logits: (texts, classes).
            labels: names in the model's order.
            decisions: what the classifier decides; by default, thresholds are chosen on these texts.
            probabilistic: False if the logits are scores that do not define probabilities.
        """

    def macro_f1_pseudo_values(self, predicted: Predicted, targets: Targets, classes: int) -> Floats:
        """(seeds, texts) jackknife pseudo-values of macro-F1 over the classes with texts."""

    def macro_f1_step(self, targets: Targets) -> float:
        """About the largest change of macro-F1 with the label of one text, times the number of texts."""
