"""A training step on a static-shape batch: every adapter in the same kernels, as a CUDA graph where there is one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import Bank
from rankwise.nn.classifier import losses, pooled
from rankwise.nn.static.batch import Shape, flatten, order, shape_of, view
from rankwise.nn.static.graphs import Record, Replayed
from rankwise.nn.static.lora import Stack, StackHook
from rankwise.nn.static.masks import HashedMasks, Modules, keys
from rankwise.nn.step import Batches, Targets


class StaticStep:
    """A step on static-shape batches, all adapters in the same kernels; a graph where `record` is given.

    For the other arguments see `step_of`. Autograd's accumulation into leaves is left out, since it
    would run outside of a graph's recording: gradients are asked for, and written to the bank.
    """

    def __init__(
        self,
        backbone: Backbone,
        bank: Bank,
        class_weights: Tensor | None,
        base_dropout: bool,
        record: Record | None = None,
        on_failure: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.backbone, self.bank = backbone, bank
        self.class_weights, self.base_dropout = class_weights, base_dropout
        self._stack, self._sites = Stack(bank), Modules()
        self._replayed = Replayed(self._run, bank.flat.device, record, on_failure)

    def __call__(self, batches: Batches, targets: Targets, number: int) -> Tensor:
        """See `TrainingStep`; all batches have equally many texts."""
        seeds = [spec.seed for spec in self.bank.specs]
        shape = shape_of(batches, seeds)
        sorted_targets = [own[order(batch)] for own, batch in zip(targets, batches, strict=True)]
        numbers = [flatten(shape, batches, seeds), keys(seeds, number), *sorted_targets]
        return self._replayed(shape, torch.from_numpy(np.concatenate(numbers)))

    def _run(self, shape: Shape, numbers: Tensor) -> Tensor:
        """(adapters,) losses of a step whose packed batch, keys and targets are in `numbers`."""
        texts = shape.adapters * shape.texts
        contents, keys, targets = numbers.tensor_split((-texts - shape.adapters, -texts))
        packed = view(shape, contents)
        leaves = self._stack.leaves()
        masks = HashedMasks(keys, packed, shape, self._sites)
        hook = StackHook(self._stack, leaves, masks, self.base_dropout)
        outputs = hook.score(pooled(self.backbone, self.bank.first_layer, packed, hook))
        each = losses(outputs, targets.view(shape.adapters, -1).unbind(), self.class_weights)
        self._stack.take(torch.autograd.grad(each.sum(), list(leaves.values())))
        return each.detach()
