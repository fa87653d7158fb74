"""A training step on a packed batch of exactly the tokens that the texts have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import Bank
from rankwise.nn.batch import Ids
from rankwise.nn.classifier import logits, losses
from rankwise.nn.ragged.batch import pack
from rankwise.nn.ragged.masks import MicroBatch, SeededMasks
from rankwise.nn.step import Batches, Targets


class RaggedStep:
    """A step on a packed batch without padding; for the arguments see `step_of`."""

    def __init__(
        self,
        backbone: Backbone,
        bank: Bank,
        class_weights: Tensor | None,
        base_dropout: bool,
        micro_batches: int = 1,
    ) -> None:
        self.backbone, self.bank, self.class_weights = backbone, bank, class_weights
        self.base_dropout, self.micro_batches = base_dropout, micro_batches
        self.device = bank.flat.device

    def __call__(self, batches: Batches, targets: Targets, number: int) -> Tensor:
        """See `TrainingStep`."""
        micro_batches = min(self.micro_batches, len(batches[0]))
        if micro_batches > 1:
            return self._by_micro_batches(batches[0], targets[0], number, micro_batches)
        seeds = [spec.seed for spec in self.bank.specs]
        packed = pack(batches, self.device, same=seeds)
        outputs = logits(
            self.backbone, self.bank, packed, SeededMasks(seeds, number, packed), self.base_dropout
        )
        labels = [torch.from_numpy(each).to(self.device) for each in targets]
        each = losses(outputs, labels, self.class_weights)
        torch.autograd.backward(each.sum())
        return each.detach()

    def _by_micro_batches(
        self, texts: Sequence[Ids], targets: NDArray[np.int64], number: int, micro_batches: int
    ) -> Tensor:
        """The same for a bank of one adapter, part after part; the gradients add up to the batch's."""
        (spec,), weights = self.bank.specs, self.class_weights
        lengths = tuple(len(ids) for ids in texts)
        labels = torch.from_numpy(targets).to(self.device)
        total = len(texts) if weights is None else weights[labels].sum()
        loss = torch.zeros(1, device=self.device)
        for members in np.array_split(np.arange(len(texts)), micro_batches):
            first, end = int(members[0]), int(members[-1]) + 1
            packed = pack([texts[first:end]], self.device)
            masks = SeededMasks([spec.seed], number, packed, MicroBatch(lengths, first))
            (output,) = logits(self.backbone, self.bank, packed, masks, self.base_dropout)
            part = F.cross_entropy(output, labels[first:end], weight=weights, reduction="sum") / total
            torch.autograd.backward(part)
            loss += part.detach()
        return loss
