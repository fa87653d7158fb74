"""A training step on a static-shape batch, as a CUDA graph where possible. Counterpart of `ragged.step`.

One step, from texts to gradients::

    host      pack(batches) + keys(seeds, number) + targets  --flatten-->  one integer array
    device    split -> unpack -> backbone with BankHook -> losses -> gradients -> bank.grad
              (recorded once per shape; later steps of the same shape copy the array and replay)

With micro-batches, a batch is sorted by length and distributed round-robin, so that every micro-batch
has short and long texts, needs about the same memory, and often has the same shape::

    positions in the batch    0 1 2 3 4 5 6        two micro-batches:  0 2 4 6  and  1 3 5

Each micro-batch's array holds the indices of its rows and texts in the whole batch (`row_numbers`,
`text_numbers`). The dropout masks are hashes of these indices, and the loss is divided by the whole
batch's total, so the gradients sum to those of the whole batch.

Adapters at different steps may have batches of different sizes; `_filled` makes them equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise.nn import fused
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import Bank
from rankwise.nn.batch import Ids, offsets
from rankwise.nn.classifier import pooled
from rankwise.nn.loss import IGNORED, Loss
from rankwise.nn.static.batch import (
    Arrays,
    Fields,
    Shape,
    fields,
    flatten,
    order,
    pack,
    rounded,
    split,
    unpack,
)
from rankwise.nn.static.graphs import Record, Replayed
from rankwise.nn.static.lora import BankHook, StackedBank
from rankwise.nn.static.masks import MicroBatch, Names, StepMasks, keys
from rankwise.nn.step import WHOLE, Batches, Share, Targets, Windows

N = TypeVar("N", bound=np.integer)


class StepShape(NamedTuple):
    """Everything that determines the kernels of a step or micro-batch."""

    batch: Shape
    whole: int  # texts of each adapter in the whole batch; more than `batch.texts` in a micro-batch
    target: tuple[int, ...] = ()  # shape of the target of one text
    windowed: bool = False  # whether some texts are windows of a text

    @property
    def is_micro_batch(self) -> bool:
        """Whether the batch is a micro-batch of a larger one."""
        return self.whole > self.batch.texts

    def fields(self) -> Fields:
        """Names and shapes of the arrays that a step sends to the device."""
        n = self.batch.adapters
        table = fields(self.batch) | {"keys": (n,), "targets": (n, self.whole, *self.target)}
        if self.windowed:
            table |= {"windows": (n, self.whole)}
        if self.is_micro_batch:
            table |= {"row_numbers": (n, self.batch.tokens), "text_numbers": (n, self.batch.texts)}
        return table


class _Piece(NamedTuple):
    """What one launch needs: a batch or a micro-batch."""

    shape: StepShape
    numbers: Tensor  # (n,) int64 on the host, from `flatten`


class StaticStep:
    """A step on static-shape batches, with all adapters in the same kernels; a graph if `record` is given.

    Autograd's accumulation into leaves would not be captured by the graph. The gradients are therefore
    computed with `torch.autograd.grad` and added to the bank's by a kernel within the graph.

    Args:
        backbone: the frozen model.
        bank: the adapters.
        loss: the loss, with its tensors on the bank's device.
        base_dropout: whether the backbone's own dropout is active.
        record: records a graph; None for eager execution.
        on_failure: called with the reason if no graph can be recorded.
        micro_batches: number of micro-batches per batch, or per process's share of it.
        share: the share of every batch that this process computes.
    """

    def __init__(
        self,
        backbone: Backbone,
        bank: Bank,
        loss: Loss,
        base_dropout: bool,
        record: Record | None = None,
        on_failure: Callable[[str], None] = lambda reason: None,
        micro_batches: int = 1,
        share: Share = WHOLE,
    ) -> None:
        self.backbone, self.bank = backbone, bank
        self.loss, self.base_dropout = loss, base_dropout
        self.micro_batches, self.share = micro_batches, share
        self._stacked, self._mask_names = StackedBank(bank), Names()
        self._replayed = Replayed[StepShape](bank.flat.device, record, on_failure)
        self._ahead: tuple[list[int], list[_Piece]] | None = None  # step numbers and what was prepared

    def __call__(
        self, batches: Batches, targets: Targets, numbers: Sequence[int], windows: Windows | None = None
    ) -> Tensor:
        """See `TrainingStep`."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or ahead[0] != list(numbers):
            ahead = list(numbers), self._pieces(batches, targets, numbers, windows)
        loss = torch.zeros(len(numbers), dtype=torch.float32, device=self.bank.flat.device)
        for piece in ahead[1]:
            loss += self._replayed(self._run, piece.shape, piece.numbers)
        return loss

    def prepare(
        self, batches: Batches, targets: Targets, numbers: Sequence[int], windows: Windows | None = None
    ) -> None:
        """Pack the next call's batches now, while the device is busy; the arguments are the call's."""
        self._ahead = list(numbers), self._pieces(batches, targets, numbers, windows)

    def _pieces(
        self, batches: Batches, targets: Targets, numbers: Sequence[int], windows: Windows | None
    ) -> list[_Piece]:
        """What each launch of a step needs: its shape, and its array of integers."""
        batches, targets, windows = _filled(batches, targets, windows)
        orders = [order(batch) for batch in batches]
        batches = [[batch[i] for i in places] for batch, places in zip(batches, orders, strict=True)]
        seeds = [spec.seed for spec in self.bank.specs]
        same = list(zip(seeds, numbers, strict=True))
        whole: Arrays = {
            "keys": keys(seeds, numbers),
            "targets": np.stack([labels[places] for labels, places in zip(targets, orders, strict=True)]),
        }
        if windows is not None:
            whole["windows"] = np.stack([each[places] for each, places in zip(windows, orders, strict=True)])
        is_fused = fused.used_on(self.bank.flat)
        pieces = self.share.pieces(self.micro_batches, len(batches[0]))
        if pieces == 1 and not self.share.process:
            return [self._piece(*pack(batches, same, is_fused), whole)]
        found = []
        for places in _round_robin(len(batches[0]), pieces, self.share):
            shape, arrays = pack([[batch[i] for i in places] for batch in batches], same, is_fused)
            found.append(self._piece(shape, arrays | _numbers(batches, places, shape.tokens), whole))
        return found

    def _piece(self, shape: Shape, arrays: Arrays, whole: Arrays) -> _Piece:
        step_shape = StepShape(shape, whole["targets"].shape[1], self.loss.shape, "windows" in whole)
        return _Piece(step_shape, torch.from_numpy(flatten(step_shape.fields(), arrays | whole)))

    def _run(self, shape: StepShape, flat: Tensor) -> Tensor:
        """The part of a step that runs on the device; (adapters,) losses."""
        arrays = split(shape.fields(), flat)
        packed = unpack(shape.batch, arrays)
        micro_batch = _micro_batch(shape, arrays)
        masks = StepMasks(arrays["keys"], packed, shape.batch, self._mask_names, micro_batch)
        leaves = self._stacked.leaves(self.backbone.dtype)
        hook = BankHook(self._stacked, leaves, masks, self.base_dropout)
        outputs = hook.score(pooled(self.backbone, self.bank.first_layer, packed, hook))
        targets, totals = arrays["targets"], None  # (adapters, texts of the whole batch, *target)
        windows = arrays.get("windows")
        if micro_batch:
            totals = self.loss.totals(targets, windows)
            places = micro_batch.texts.view(*micro_batch.texts.shape, *[1] * len(shape.target))
            targets = targets.take_along_dim(places, 1)
            windows = None if windows is None else windows.take_along_dim(micro_batch.texts, 1)
        counts = None if windows is None else windows.unbind()
        of_adapters = self.loss(outputs, targets.unbind(), totals, counts)
        gradients = torch.autograd.grad(of_adapters.sum(), list(leaves.values()))
        self._stacked.add_gradients(gradients)
        return of_adapters.detach()


def _filled(
    batches: Batches, targets: Targets, windows: Windows | None = None
) -> tuple[Batches, Targets, Windows | None]:
    """The same batches, each filled up to the largest number of texts.

    The batches of adapters at different steps may differ in size, because the last batch of an epoch may be
    smaller, or because texts are read in windows. The number of windows differs from step to step, so it is
    rounded up to one of a few. Fillers are copies of the batch's longest text: they are last in the order by
    length, so the other texts keep their dropout masks. Their target is `IGNORED`.

    >>> texts = [[np.arange(3), np.arange(2)], [np.arange(4)]]
    >>> batches, targets, _ = _filled(texts, [np.ones(2), np.ones(1)])
    >>> [len(text) for text in batches[1]], targets[1].tolist()
    ([4, 4], [1.0, -100.0])
    """
    texts = max(map(len, batches))
    if windows is not None:
        texts = rounded(texts)
    if all(len(batch) == texts for batch in batches):
        return batches, targets, windows
    return (
        [[*batch, *[max(batch, key=len)] * (texts - len(batch))] for batch in batches],
        [_padded(labels, texts, IGNORED) for labels in targets],
        windows and [_padded(each, texts, 1) for each in windows],
    )


def _padded(numbers: NDArray[N], texts: int, filler: int) -> NDArray[N]:
    """(texts, *shape) targets or numbers of windows, filled up."""
    more = [(0, texts - len(numbers)), *[(0, 0)] * (numbers.ndim - 1)]
    return np.pad(numbers, more, constant_values=filler)


def _micro_batch(shape: StepShape, arrays: dict[str, Tensor]) -> MicroBatch | None:
    return MicroBatch(arrays["row_numbers"], arrays["text_numbers"]) if shape.is_micro_batch else None


def _round_robin(texts: int, pieces: int, share: Share) -> Iterator[range]:
    """For each piece of this process, the positions of its texts.

    >>> list(map(list, _round_robin(7, 2, WHOLE)))
    [[0, 2, 4, 6], [1, 3, 5]]
    """
    return (range(first, texts, pieces) for first in share.of(pieces))


def _numbers(batches: Sequence[Sequence[Ids]], places: Sequence[int], tokens: int) -> Arrays:
    """The indices of a micro-batch's rows and texts in the whole batches.

    Args:
        batches: the whole batches, sorted by length.
        places: positions of the micro-batch's texts.
        tokens: rows of the micro-batch per adapter, including padding.

    Returns:
        row_numbers (adapters, tokens), 0 for padding, and text_numbers (adapters, texts).

    >>> numbers = _numbers([[np.arange(1), np.arange(2), np.arange(3)]], range(0, 3, 2), 6)
    >>> numbers["row_numbers"], numbers["text_numbers"]
    (array([[0, 3, 4, 5, 0, 0]]), array([[0, 2]]))
    """
    rows = np.zeros((len(batches), tokens), dtype=np.int64)
    for of_adapter, batch in zip(rows, batches, strict=True):
        starts = offsets(np.array([len(text) for text in batch]))
        numbers = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in places])
        of_adapter[: len(numbers)] = numbers
    return {"row_numbers": rows, "text_numbers": np.tile(np.array(places), (len(batches), 1))}
