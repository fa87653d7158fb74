"""The losses that adapters train on, one for each task. An adapter's loss is a number per batch.

With class weights w, the cross-entropy is the weighted mean of `torch.nn.functional.cross_entropy`::

    sum_i w[t_i] loss_i / sum_i w[t_i]

A batch that is split into micro-batches divides each sum by the total of the whole batch, so that the losses
of the micro-batches sum to the loss of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""Target of a text that fills up a batch and has no loss: the default `ignore_index` of torch."""


class Loss(Protocol):
    """The loss of each adapter's logits on its own texts."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the target of one text: () for a label id, (classes,) for a 0 or 1 for each label."""

    def __call__(
        self, logits: Sequence[Tensor], targets: Sequence[Tensor], totals: Tensor | None = None
    ) -> Tensor:
        """Compute each adapter's loss.

        Args:
            logits: for each adapter (texts, classes) float32.
            targets: for each adapter (texts, *shape) int64; texts with `IGNORED` do not count.
            totals: (adapters,) denominators for a micro-batch: those of the whole batch, from `totals`. By
                default those of `targets`.

        Returns:
            (adapters,) float32. The adapters share no parameters, so the gradient of the summed losses is
            each adapter's own gradient. The losses of the micro-batches sum to the batch loss.
        """

    def totals(self, targets: Tensor) -> Tensor:
        """(adapters,) float32 denominators of the losses of whole batches.

        Args:
            targets: (adapters, texts, *shape) int64, of whole batches; texts with `IGNORED` do not count.
        """


@dataclass(frozen=True, eq=False)
class CrossEntropy:
    """Cross-entropy of one label per text."""

    class_weights: Tensor | None = None  # (classes,) float32
    adjustment: Tensor | None = (
        None  # (classes,) float32, added to the logits (Menon et al. 2021, 2007.07314)
    )
    shape: tuple[int, ...] = ()

    def __call__(
        self, logits: Sequence[Tensor], targets: Sequence[Tensor], totals: Tensor | None = None
    ) -> Tensor:
        """See `Loss`."""
        reduction = "mean" if totals is None else "sum"
        per_adapter = [
            F.cross_entropy(self._adjusted(z), t, weight=self.class_weights, reduction=reduction)
            for z, t in zip(logits, targets, strict=True)
        ]
        return torch.stack(per_adapter) if totals is None else torch.stack(per_adapter) / totals

    def _adjusted(self, logits: Tensor) -> Tensor:
        return logits if self.adjustment is None else logits + self.adjustment

    def totals(self, targets: Tensor) -> Tensor:
        """(adapters,) the number of texts, or the sum of their class weights.

        >>> CrossEntropy(torch.tensor([4.0, 0.5])).totals(torch.tensor([[0, 1, 1]])).tolist()
        [5.0]
        """
        counted = targets != IGNORED
        if self.class_weights is None:
            return counted.sum(1).float()
        return (self.class_weights[targets.clamp(min=0)] * counted).sum(1)


@dataclass(frozen=True, eq=False)
class BinaryCrossEntropy:
    """Binary cross-entropy of any number of labels per text, as a mean over texts and labels.

    It is torch's `BCEWithLogitsLoss`, which transformers uses for `multi_label_classification`.
    """

    classes: int
    class_weights: Tensor | None = None  # (classes,) float32, factors on texts that have the label

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Loss`."""
        return (self.classes,)

    def __call__(
        self, logits: Sequence[Tensor], targets: Sequence[Tensor], totals: Tensor | None = None
    ) -> Tensor:
        """See `Loss`."""
        sums = torch.stack([self._sum(z, t) for z, t in zip(logits, targets, strict=True)])
        found = torch.stack([(t != IGNORED).sum() for t in targets]) if totals is None else totals
        return sums / found

    def totals(self, targets: Tensor) -> Tensor:
        """(adapters,) the number of texts times that of labels.

        >>> BinaryCrossEntropy(2).totals(torch.tensor([[[0, 1], [1, 1], [-100, -100]]])).tolist()
        [4.0]
        """
        return (targets != IGNORED).sum((1, 2)).float()

    def _sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        counted = (targets != IGNORED).float()
        return F.binary_cross_entropy_with_logits(
            logits,
            targets.clamp(min=0).float(),
            weight=counted,
            pos_weight=self.class_weights,
            reduction="sum",
        )
