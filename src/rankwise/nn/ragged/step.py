"""A training step on a packed batch without padding. The counterpart of `static.step`.

With micro-batches or several processes, every adapter's batch is cut into pieces of consecutive texts, which
are dealt to the processes in turn. Seven texts, two processes with two micro-batches each::

    positions in the batch    0 1 | 2 3 | 4 5 | 6
    process                     0     1     0   1
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import Bank
from rankwise.nn.classifier import logits
from rankwise.nn.loss import Loss, totals_of
from rankwise.nn.ragged.batch import pack
from rankwise.nn.ragged.masks import MicroBatch, StepMasks
from rankwise.nn.step import WHOLE, Batches, Share, Targets, Windows


class RaggedStep:
    """A step on a packed batch without padding.

    Args:
        backbone: the frozen model.
        bank: the adapters.
        loss: the loss, with its tensors on the bank's device.
        base_dropout: whether the backbone's own dropout is active.
        micro_batches: number of micro-batches per batch, or per process's share of it.
        share: the share of every batch that this process computes.
    """

    def __init__(
        self,
        backbone: Backbone,
        bank: Bank,
        loss: Loss,
        base_dropout: bool,
        micro_batches: int = 1,
        share: Share = WHOLE,
    ) -> None:
        self.backbone, self.bank, self.loss = backbone, bank, loss
        self.base_dropout, self.micro_batches, self.share = base_dropout, micro_batches, share
        self.device = bank.flat.device

    def __call__(
        self, batches: Batches, targets: Targets, numbers: Sequence[int], windows: Windows | None = None
    ) -> Tensor:
        """See `TrainingStep`."""
        labels = [torch.from_numpy(of_adapter).to(self.device) for of_adapter in targets]
        counts = None if windows is None else [torch.from_numpy(each).to(self.device) for each in windows]
        pieces = self.share.pieces(self.micro_batches, max(map(len, batches)))
        if pieces == 1 and not self.share.process:
            return self._backward(batches, labels, numbers, windows=counts)
        totals = totals_of(self.loss, labels, counts)
        loss = torch.zeros(len(batches), dtype=torch.float32, device=self.device)
        for piece in self.share.of(pieces):
            slices = [_section(len(batch), piece, pieces) for batch in batches]
            loss += self._backward(
                [batch[section] for batch, section in zip(batches, slices, strict=True)],
                [of_adapter[section] for of_adapter, section in zip(labels, slices, strict=True)],
                numbers,
                [
                    MicroBatch(tuple(len(ids) for ids in batch), section.start)
                    for batch, section in zip(batches, slices, strict=True)
                ],
                totals,
                counts and [each[section] for each, section in zip(counts, slices, strict=True)],
            )
        return loss

    def _backward(
        self,
        batches: Batches,
        labels: Sequence[Tensor],
        numbers: Sequence[int],
        micro_batches: Sequence[MicroBatch] | None = None,
        totals: Tensor | None = None,
        windows: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """(adapters,) losses of whole batches or of micro-batches; adds their gradients to the bank's."""
        seeds = [spec.seed for spec in self.bank.specs]
        packed = pack(batches, self.device, same=list(zip(seeds, numbers, strict=True)))
        masks = StepMasks(seeds, numbers, packed, micro_batches)
        outputs = logits(self.backbone, self.bank, packed, masks, self.base_dropout)
        of_adapters = self.loss(outputs, labels, totals, windows)
        torch.autograd.backward(of_adapters.sum())
        return of_adapters.detach()


def _section(texts: int, piece: int, pieces: int) -> slice:
    """The positions of a piece, as `np.array_split` cuts them.

    >>> [_section(7, piece, 4) for piece in range(4)]
    [slice(0, 2, None), slice(2, 4, None), slice(4, 6, None), slice(6, 7, None)]
    """
    size, longer = divmod(texts, pieces)
    start = piece * size + min(piece, longer)
    return slice(start, start + size + (piece < longer))
