"""Multi-label classification: each text has any number of labels, none included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rankwise.schema import Metrics
from rankwise.stats import multi_label, paired
from rankwise.tasks.labels import LabelIds, SeveralLabels
from rankwise.tasks.task import Decisions, Floats, Logits, Predicted, Targets

if TYPE_CHECKING:
    import torch

    from rankwise.nn.loss import Loss


@dataclass(frozen=True)
class MultiLabel(SeveralLabels):
    """See `Task` for all methods."""

    def cell(self, row: Any, labels: Sequence[str]) -> str:
        """The labels joined by the separator; empty for a text without labels."""
        return self.separator.join(labels[i] for i in np.flatnonzero(row).tolist())

    def row(self, cell: str, index: Mapping[str, int]) -> NDArray[np.bool_]:
        """(classes,) whether each label is in the cell."""
        found = np.zeros(len(index), dtype=np.bool_)
        if cell:
            found[[index[name] for name in cell.split(self.separator)]] = True
        return found

    def targets(self, ids: Sequence[LabelIds], classes: int) -> Targets:
        """(texts, classes) int8, 0 and 1."""
        found = np.zeros((len(ids), classes), dtype=np.int8)
        for row, of_text in zip(found, ids, strict=True):
            row[list(of_text) if isinstance(of_text, tuple) else of_text] = 1
        return found

    def has(self, targets: Targets, label: int) -> NDArray[np.bool_]:
        """(texts,) whether it is among the text's labels."""
        return np.asarray(targets[:, label] == 1)

    def balanced_weights(self, targets: Targets, classes: int) -> NDArray[np.float32]:
        """(classes,) texts that lack each label / texts that have it; 1 for a label without texts."""
        has = np.asarray(targets).sum(axis=0, dtype=np.int64)
        return np.where(has > 0, (len(targets) - has) / np.maximum(1, has), 1.0).astype(np.float32)

    def prior_logits(self, targets: Targets, classes: int) -> Logits:
        """(classes,) the log odds of the frequencies."""
        has = np.asarray(targets).sum(axis=0, dtype=np.int64)
        odds = np.maximum(has, 0.5) / np.maximum(len(targets) - has, 0.5)
        return np.asarray(np.log(odds).astype(np.float32))

    def loss(
        self,
        classes: int,
        weights: NDArray[np.float32] | None,
        adjustment: NDArray[np.float32] | None,
        device: torch.device,
    ) -> Loss:
        """Binary cross-entropy."""
        import torch

        from rankwise.nn.loss import BinaryCrossEntropy

        return BinaryCrossEntropy(classes, None if weights is None else torch.from_numpy(weights).to(device))

    def probabilities(self, logits: NDArray[Any]) -> Floats:
        """The sigmoid of each logit, in float64."""
        return multi_label.sigmoid(logits)

    def confidence(self, logits: NDArray[Any], predicted: Predicted) -> Floats:
        """The probability of exactly the predicted labels, as if labels were independent."""
        return multi_label.probability_of(self.probabilities(logits), predicted)

    def label_probability(self, losses: Floats, classes: int) -> Floats:
        """exp(-loss times classes): of exactly the text's labels, as if labels were independent."""
        return np.asarray(np.exp(-losses * classes))

    def decided(self, logits: Logits, thresholds: Sequence[float] | None = None) -> Decisions:
        """The labels whose probabilities are at least the thresholds; by default, 0.5."""
        known = (multi_label.DEFAULT,) * logits.shape[-1] if thresholds is None else tuple(thresholds)
        return Decisions(multi_label.decide(self.probabilities(logits), known), known)

    def thresholds(self, logits: Logits, targets: Targets) -> tuple[float, ...]:
        """The thresholds with the highest F1 of each label."""
        found = multi_label.best_thresholds(self.probabilities(logits), targets == 1)
        return tuple(found.tolist())

    def judged(self, logits: Mapping[str, Logits], validation: Targets) -> dict[str, Decisions]:
        """Thresholds are chosen on validation; its own texts are judged by cross-fitting."""
        known = self.thresholds(logits["validation"], validation)
        said = multi_label.cross_fitted(self.probabilities(logits["validation"]), validation == 1)
        others = {split: self.decided(found, known) for split, found in logits.items()}
        return others | {"validation": Decisions(said, known)}

    def correct(self, predicted: Predicted, targets: Targets) -> NDArray[np.bool_]:
        """Whether the text has exactly the predicted labels."""
        return np.asarray((predicted == (targets == 1)).all(axis=-1))

    def text_log_losses(self, targets: Targets, logits: Logits) -> Floats:
        """See `stats.multi_label.text_log_losses`."""
        return multi_label.text_log_losses(targets == 1, logits)

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
        """See `stats.multi_label.metrics`."""
        found = decisions or self.judged({"validation": logits}, targets)["validation"]
        return multi_label.metrics(
            split,
            targets == 1,
            found.predicted,
            logits,
            labels,
            thresholds=found.thresholds,
            probabilistic=probabilistic,
        )

    def macro_f1_pseudo_values(self, predicted: Predicted, targets: Targets, classes: int) -> Floats:
        """Over the labels with texts, so that it is the same metric for every classifier."""
        present = (targets == 1).any(axis=0)
        real = (targets == 1)[:, present]
        return np.stack([paired.label_set_pseudo_values(said[:, present], real) for said in predicted])

    def macro_f1_step(self, targets: Targets) -> float:
        """See `stats.multi_label.macro_f1_step`."""
        real = targets == 1
        return multi_label.macro_f1_step(real[:, real.any(axis=0)])
