"""The losses that adapters train on, one for each task. An adapter's loss is a number per batch.

With class weights w, the cross-entropy is the weighted mean of `torch.nn.functional.cross_entropy`::

    sum_i w[t_i] loss_i / sum_i w[t_i]

A text that is read in n windows is n examples, each with a factor of 1 / n in both sums, so that it counts as
one text. Two texts, the second in two windows, without class weights::

    loss_i                1.0    2.0  4.0
    1 / windows           1      1/2  1/2
    loss of the batch     (1.0 + 2.0 / 2 + 4.0 / 2) / 2 = 2.0

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
        self,
        logits: Sequence[Tensor],
        targets: Sequence[Tensor],
        totals: Tensor | None = None,
        windows: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Compute each adapter's loss.

        Args:
            logits: for each adapter (texts, classes) float32.
            targets: for each adapter (texts, *shape) int64; texts with `IGNORED` do not count.
            totals: (adapters,) denominators for a micro-batch: those of the whole batch, from `totals`. By
                default those of `targets`.
            windows: for each adapter (texts,) int64 number of windows of the text that each is a window of;
                None if each is a whole text.

        Returns:
            (adapters,) float32. The adapters share no parameters, so the gradient of the summed losses is
            each adapter's own gradient. The losses of the micro-batches sum to the batch loss.
        """

    def totals(self, targets: Tensor, windows: Tensor | None = None) -> Tensor:
        """(adapters,) float32 denominators of the losses of whole batches.

        Args:
            targets: (adapters, texts, *shape) int64, of whole batches; texts with `IGNORED` do not count.
            windows: (adapters, texts) int64, as in a call.
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
        self,
        logits: Sequence[Tensor],
        targets: Sequence[Tensor],
        totals: Tensor | None = None,
        windows: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """See `Loss`."""
        if windows is not None:
            return self._of_windows(logits, targets, totals, windows)
        reduction = "mean" if totals is None else "sum"
        per_adapter = [
            F.cross_entropy(self._adjusted(z), t, weight=self.class_weights, reduction=reduction)
            for z, t in zip(logits, targets, strict=True)
        ]
        return torch.stack(per_adapter) if totals is None else torch.stack(per_adapter) / totals

    def _of_windows(
        self,
        logits: Sequence[Tensor],
        targets: Sequence[Tensor],
        totals: Tensor | None,
        windows: Sequence[Tensor],
    ) -> Tensor:
        sums = [
            (F.cross_entropy(self._adjusted(z), t, weight=self.class_weights, reduction="none") / n).sum()
            for z, t, n in zip(logits, targets, windows, strict=True)
        ]
        return torch.stack(sums) / (totals_of(self, targets, windows) if totals is None else totals)

    def _adjusted(self, logits: Tensor) -> Tensor:
        return logits if self.adjustment is None else logits + self.adjustment

    def totals(self, targets: Tensor, windows: Tensor | None = None) -> Tensor:
        """(adapters,) the number of texts, or the sum of their class weights.

        >>> CrossEntropy(torch.tensor([4.0, 0.5])).totals(torch.tensor([[0, 1, 1]])).tolist()
        [5.0]
        >>> CrossEntropy().totals(torch.tensor([[0, 1, 1]]), torch.tensor([[1, 2, 2]])).tolist()
        [2.0]
        """
        counted = targets != IGNORED if windows is None else (targets != IGNORED) / windows
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
        self,
        logits: Sequence[Tensor],
        targets: Sequence[Tensor],
        totals: Tensor | None = None,
        windows: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """See `Loss`."""
        each: Sequence[Tensor | None] = windows or [None] * len(targets)
        sums = torch.stack([self._sum(z, t, n) for z, t, n in zip(logits, targets, each, strict=True)])
        return sums / (totals_of(self, targets, windows) if totals is None else totals)

    def totals(self, targets: Tensor, windows: Tensor | None = None) -> Tensor:
        """(adapters,) the number of texts times that of labels.

        >>> BinaryCrossEntropy(2).totals(torch.tensor([[[0, 1], [1, 1], [-100, -100]]])).tolist()
        [4.0]
        """
        counted = targets != IGNORED
        if windows is None:
            return counted.sum((1, 2)).float()
        return (counted / windows[..., None]).sum((1, 2))

    def _sum(self, logits: Tensor, targets: Tensor, windows: Tensor | None) -> Tensor:
        counted = (targets != IGNORED).float()
        return F.binary_cross_entropy_with_logits(
            logits,
            targets.clamp(min=0).float(),
            weight=counted if windows is None else counted / windows[:, None],
            pos_weight=self.class_weights,
            reduction="sum",
        )


def totals_of(loss: Loss, targets: Sequence[Tensor], windows: Sequence[Tensor] | None) -> Tensor:
    """(adapters,) the denominators of batches that may differ in size."""
    each: Sequence[Tensor | None] = windows or [None] * len(targets)
    return torch.cat(
        [loss.totals(t[None], None if n is None else n[None]) for t, n in zip(targets, each, strict=True)]
    )
