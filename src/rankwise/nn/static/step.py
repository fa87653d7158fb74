"""A training step on a static-shape batch: every adapter in the same kernels, as a CUDA graph where there is one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from rankwise.nn.backbone import Trunk
from rankwise.nn.bank import Bank
from rankwise.nn.classifier import losses, pooled
from rankwise.nn.static.batch import Shape, flatten, order, shape_of, view
from rankwise.nn.static.graphs import Record, Replayed
from rankwise.nn.static.lora import Stack, StackHook
from rankwise.nn.static.masks import HashedMasks, Sites, keys
from rankwise.nn.step import Answers, Batches


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
