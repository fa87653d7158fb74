"""A training step on a packed batch of exactly the tokens that the texts have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rankwise.nn.backbone import Trunk
from rankwise.nn.bank import Bank
from rankwise.nn.batch import Ids
from rankwise.nn.classifier import logits, losses
from rankwise.nn.ragged.batch import pack
from rankwise.nn.ragged.masks import Part, SeededMasks
from rankwise.nn.step import Answers, Batches


class RaggedStep:
    """A step on a packed stream without padding; for the arguments see `step_of`."""

    def __init__(
        self, trunk: Trunk, bank: Bank, class_weights: Tensor | None, base_dropout: bool, parts: int = 1
    ) -> None:
        self.trunk, self.bank, self.class_weights = trunk, bank, class_weights
        self.base_dropout, self.parts = base_dropout, parts
        self.device = bank.flat.device

    def __call__(self, batches: Batches, answers: Answers, number: int) -> Tensor:
        """See `Step`."""
        parts = min(self.parts, len(batches[0]))
        if parts > 1:
            return self._by_parts(batches[0], answers[0], number, parts)
        seeds = [spec.seed for spec in self.bank.specs]
        stream = pack(batches, self.device, same=seeds)
        outputs = logits(self.trunk, self.bank, stream, SeededMasks(seeds, number, stream), self.base_dropout)
        targets = [torch.from_numpy(each).to(self.device) for each in answers]
        each = losses(outputs, targets, self.class_weights)
        torch.autograd.backward(each.sum())
        return each.detach()

    def _by_parts(self, texts: Sequence[Ids], answers: NDArray[np.int64], number: int, parts: int) -> Tensor:
        """The same for a bank of one adapter, part after part; the gradients add up to the batch's."""
        (spec,), weights = self.bank.specs, self.class_weights
        lengths = tuple(len(ids) for ids in texts)
        targets = torch.from_numpy(answers).to(self.device)
        total = len(texts) if weights is None else weights[targets].sum()
        loss = torch.zeros(1, device=self.device)
        for members in np.array_split(np.arange(len(texts)), parts):
            first, end = int(members[0]), int(members[-1]) + 1
            stream = pack([texts[first:end]], self.device)
            masks = SeededMasks([spec.seed], number, stream, Part(lengths, first))
            (output,) = logits(self.trunk, self.bank, stream, masks, self.base_dropout)
            part = F.cross_entropy(output, targets[first:end], weight=weights, reduction="sum") / total
            torch.autograd.backward(part)
            loss += part.detach()
        return loss
