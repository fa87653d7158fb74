"""One step's forward and backward pass: batches in, each adapter's loss and gradients out.

On the CPU a step packs exactly what the batches hold (`RaggedStep`). On a CUDA device it runs as a
graph, on streams of few shapes (`EvenStep`). Both do the same computation; their dropout masks
come from different generators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rankwise.nn.classifier import logits, losses, pooled
from rankwise.nn.dropout import Part, SeededMasks
from rankwise.nn.even import Shape, flatten, order, shape_of, view
from rankwise.nn.hashing import HashedMasks, Sites, keys
from rankwise.nn.lora import Bank
from rankwise.nn.packing import Ids, pack
from rankwise.nn.replay import CudaRecorder, Record, Replayed
from rankwise.nn.stack import Stack, StackHook
from rankwise.nn.trunk import Trunk

Batches = Sequence[Sequence[Ids]]
Answers = Sequence[NDArray[np.int64]]


class Step(Protocol):
    """Fills a bank's gradients, which are zero before."""

    def __call__(self, batches: Batches, answers: Answers, number: int) -> Tensor:
        """Forward and backward pass.

        Args:
            batches: for each adapter its texts, each (length,) int64 ids.
            answers: for each adapter (texts,) label ids.
            number: of the step, from 0, which keys the dropout masks.

        Returns:
            (adapters,) float32 losses, on the bank's device.
        """


def step_of(
    trunk: Trunk,
    bank: Bank,
    class_weights: Tensor | None,
    base_dropout: bool,
    parts: int = 1,
    on_failure: Callable[[str], None] = lambda reason: None,
) -> Step:
    """The step for the device that the bank is on.

    Args:
        trunk: the frozen model.
        bank: the adapters.
        class_weights: (classes,) float32 on the bank's device, where the loss is weighted.
        base_dropout: whether the trunk's own dropout is active.
        parts: that a batch is split into, with the gradients added up; for a bank of one adapter.
        on_failure: told why no graph can be recorded on a device that has graphs.
    """
    device = bank.flat.device
    if device.type == "cuda" and parts == 1:
        return EvenStep(trunk, bank, class_weights, base_dropout, CudaRecorder(device), on_failure)
    return RaggedStep(trunk, bank, class_weights, base_dropout, parts)


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


class EvenStep:
    """A step on even streams, all adapters in the same kernels; a graph where `record` is given.

    For the other arguments see `step_of`. Autograd's accumulation into leaves is left out, since it
    would run outside of a graph's recording: gradients are asked for, and written to the bank.
    """

    def __init__(
        self,
        trunk: Trunk,
        bank: Bank,
        class_weights: Tensor | None,
        base_dropout: bool,
        record: Record | None = None,
        on_failure: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.trunk, self.bank = trunk, bank
        self.class_weights, self.base_dropout = class_weights, base_dropout
        self._stack, self._sites = Stack(bank), Sites()
        self._replayed = Replayed(self._run, bank.flat.device, record, on_failure)

    def __call__(self, batches: Batches, answers: Answers, number: int) -> Tensor:
        """See `Step`; all batches have equally many texts."""
        seeds = [spec.seed for spec in self.bank.specs]
        shape = shape_of(batches, seeds)
        sorted_answers = [own[order(batch)] for own, batch in zip(answers, batches, strict=True)]
        numbers = [flatten(shape, batches, seeds), keys(seeds, number), *sorted_answers]
        return self._replayed(shape, torch.from_numpy(np.concatenate(numbers)))

    def _run(self, shape: Shape, numbers: Tensor) -> Tensor:
        """(adapters,) losses of a step whose stream, keys and answers are in `numbers`."""
        texts = shape.adapters * shape.texts
        contents, keys, answers = numbers.tensor_split((-texts - shape.adapters, -texts))
        stream = view(shape, contents)
        leaves = self._stack.leaves()
        masks = HashedMasks(keys, stream, shape, self._sites)
        hook = StackHook(self._stack, leaves, masks, self.base_dropout)
        outputs = hook.score(pooled(self.trunk, self.bank.first_layer, stream, hook))
        each = losses(outputs, answers.view(shape.adapters, -1).unbind(), self.class_weights)
        self._stack.take(torch.autograd.grad(each.sum(), list(leaves.values())))
        return each.detach()
