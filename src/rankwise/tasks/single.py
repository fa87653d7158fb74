"""Single-label classification: each text has exactly one label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from rankwise.schema import Metrics
from rankwise.stats import metrics, paired
from rankwise.tasks.labels import LabelIds, OneLabel
from rankwise.tasks.task import Decisions, Floats, Logits, Predicted, Targets

if TYPE_CHECKING:
    import torch

    from rankwise.nn.loss import Loss


@dataclass(frozen=True)
class SingleLabel(OneLabel):
    """See `Task` for all methods."""

    def cell(self, row: Any, labels: Sequence[str]) -> str:
        """The label."""
        return labels[int(row)]

    def row(self, cell: str, index: Mapping[str, int]) -> int:
        """The label's id."""
        return index[cell]

    def targets(self, ids: Sequence[LabelIds], classes: int) -> Targets:
        """(texts,) int64."""
        return np.array(ids, dtype=np.int64)

    def has(self, targets: Targets, label: int) -> NDArray[np.bool_]:
        """(texts,) whether it is the text's label."""
        return np.asarray(targets == label)

    def balanced_weights(self, targets: Targets, classes: int) -> NDArray[np.float32]:
        """(classes,) weights inversely proportional to class frequency, with mean 1 over the texts.

        The same as scikit-learn's `class_weight="balanced"`; a class without texts gets 0.
        """
        from sklearn.utils.class_weight import compute_class_weight

        present = np.unique(targets)
        weights = np.zeros(classes, dtype=np.float32)
        weights[present] = compute_class_weight("balanced", classes=present, y=targets)
        return weights

    def prior_logits(self, targets: Targets, classes: int) -> Logits:
        """(classes,) the logarithms of the frequencies."""
        counts = np.bincount(targets, minlength=classes)
        return np.asarray(np.log(np.maximum(counts, 0.5) / counts.sum()).astype(np.float32))

    def loss(
        self,
        classes: int,
        weights: NDArray[np.float32] | None,
        adjustment: NDArray[np.float32] | None,
        device: torch.device,
    ) -> Loss:
        """Cross-entropy."""
        import torch

        from rankwise.nn.loss import CrossEntropy

        on_device = [
            None if each is None else torch.from_numpy(each).to(device) for each in (weights, adjustment)
        ]
        return CrossEntropy(on_device[0], on_device[1])

    def probabilities(self, logits: NDArray[Any]) -> Floats:
        """Softmax, in float64."""
        return np.asarray(softmax(logits.astype(np.float64), axis=-1))

    def confidence(self, logits: NDArray[Any], predicted: Predicted) -> Floats:
        """The probability of the predicted label."""
        found = np.take_along_axis(self.probabilities(logits), predicted[..., None], axis=-1)
        return np.asarray(found[..., 0])

    def label_probability(self, losses: Floats, classes: int) -> Floats:
        """exp(-loss)."""
        return np.asarray(np.exp(-losses))

    def decided(self, logits: Logits, thresholds: Sequence[float] | None = None) -> Decisions:
        """The largest logit of each text."""
        return Decisions(logits.argmax(axis=-1))

    def thresholds(self, logits: Logits, targets: Targets) -> None:
        """None: the largest logit decides."""
        return

    def judged(self, logits: Mapping[str, Logits], validation: Targets) -> dict[str, Decisions]:
        """The largest logit of each text."""
        return {split: self.decided(of_split) for split, of_split in logits.items()}

    def correct(self, predicted: Predicted, targets: Targets) -> NDArray[np.bool_]:
        """Whether the label is right."""
        return np.asarray(predicted == targets)

    def text_log_losses(self, targets: Targets, logits: Logits) -> Floats:
        """Minus the logarithm of the probability of each text's label."""
        return metrics.text_log_losses(targets, logits)

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
        """See `stats.metrics.metrics`."""
        return metrics.metrics(split, targets, logits, labels, probabilistic=probabilistic)

    def macro_f1_pseudo_values(self, predicted: Predicted, targets: Targets, classes: int) -> Floats:
        """Over the classes with texts, so that it is the same metric for every classifier."""
        present, known = np.unique(targets, return_inverse=True)
        number = np.full(classes, len(present))
        number[present] = np.arange(len(present))
        return paired.macro_f1_pseudo_values(number[predicted], known, len(present))

    def macro_f1_step(self, targets: Targets) -> float:
        """See `stats.paired.macro_f1_step`."""
        return paired.macro_f1_step(np.unique(targets, return_inverse=True)[1])


SINGLE = SingleLabel()
