"""A training step on a packed batch without padding. The counterpart of `static.step`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import Bank
from rankwise.nn.batch import Ids
from rankwise.nn.classifier import logits
from rankwise.nn.loss import Loss
from rankwise.nn.ragged.batch import pack
from rankwise.nn.ragged.masks import MicroBatch, StepMasks
from rankwise.nn.step import Batches, Targets


class RaggedStep:
    """A step on a packed batch without padding.

    Args:
        backbone: the frozen model.
        bank: the adapters.
        loss: the loss, with its tensors on the bank's device.
        base_dropout: whether the backbone's own dropout is active.
        micro_batches: number of micro-batches per batch; more than one requires a bank of one adapter.
    """

    def __init__(
        self,
        backbone: Backbone,
        bank: Bank,
        loss: Loss,
        base_dropout: bool,
        micro_batches: int = 1,
    ) -> None:
        self.backbone, self.bank, self.loss = backbone, bank, loss
        self.base_dropout, self.micro_batches = base_dropout, micro_batches
        self.device = bank.flat.device

    def __call__(self, batches: Batches, targets: Targets, numbers: Sequence[int]) -> Tensor:
        """See `TrainingStep`."""
        micro_batches = min(self.micro_batches, len(batches[0]))
        if micro_batches > 1:
            return self._accumulated(batches[0], targets[0], numbers[0], micro_batches)
        seeds = [spec.seed for spec in self.bank.specs]
        packed = pack(batches, self.device, same=list(zip(seeds, numbers, strict=True)))
        masks = StepMasks(seeds, numbers, packed)
        outputs = logits(self.backbone, self.bank, packed, masks, self.base_dropout)
        labels = [torch.from_numpy(of_adapter).to(self.device) for of_adapter in targets]
        of_adapters = self.loss(outputs, labels)
        torch.autograd.backward(of_adapters.sum())
        return of_adapters.detach()

    def _accumulated(
        self, texts: Sequence[Ids], targets: NDArray[np.integer], number: int, micro_batches: int
    ) -> Tensor:
        """A step of a single-adapter bank with gradient accumulation over micro-batches."""
        (spec,) = self.bank.specs
        lengths = tuple(len(ids) for ids in texts)
        labels = torch.from_numpy(targets).to(self.device)
        totals = self.loss.totals(labels[None])
        loss = torch.zeros(1, dtype=torch.float32, device=self.device)
        for members in np.array_split(np.arange(len(texts)), micro_batches):
            first, end = int(members[0]), int(members[-1]) + 1
            packed = pack([texts[first:end]], self.device)
            masks = StepMasks([spec.seed], [number], packed, MicroBatch(lengths, first))
            outputs = logits(self.backbone, self.bank, packed, masks, self.base_dropout)
            of_micro_batch = self.loss(outputs, [labels[first:end]], totals)
            torch.autograd.backward(of_micro_batch.sum())
            loss += of_micro_batch.detach()
        return loss
