"""The forward and backward pass of a training step: from batches to each adapter's loss and gradients.

On a CPU, a step packs the batches without padding (`ragged.step.RaggedStep`). On a CUDA device, it pads
them to one of a few static shapes and replays a recorded graph (`static.step.StaticStep`). Both do the
same computation, but their dropout masks come from different generators.

When memory is short, both split a batch into micro-batches and accumulate the gradients. When several
processes train one bank, each computes its `Share` of every batch, and the gradients of all are added
(`training.parallel`). The dropout masks are those of the whole batch, so the result is the same up to
rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rankwise.nn.batch import Ids

Batches = Sequence[Sequence[Ids]]  # for each adapter, its texts
Targets = Sequence[NDArray[np.integer]]  # for each adapter, (texts, *shape) as its loss takes them
Windows = Sequence[NDArray[np.int64]]  # for each adapter, (texts,) as its loss takes them


class Share(NamedTuple):
    """The share of every batch that a process computes; the pieces of a batch are dealt in turn.

    >>> [list(Share(process, 2).of(5)) for process in (0, 1)]
    [[0, 2, 4], [1, 3]]
    """

    process: int  # from 0
    processes: int

    def pieces(self, micro_batches: int, texts: int) -> int:
        """Number of pieces of a batch of so many texts, if every process has so many micro-batches."""
        return min(micro_batches * self.processes, texts)

    def of(self, pieces: int) -> range:
        """The pieces of this process; none if there are fewer pieces than processes."""
        return range(self.process, pieces, self.processes)


WHOLE = Share(0, 1)
"""The share of a single process."""


class TrainingStep(Protocol):
    """Accumulates a step's gradients into those of a bank, which the optimizer has zeroed."""

    def __call__(
        self, batches: Batches, targets: Targets, numbers: Sequence[int], windows: Windows | None = None
    ) -> Tensor:
        """Run the forward and backward pass.

        Args:
            batches: for each adapter its texts, each (length,) int64 ids.
            targets: for each adapter (texts, *shape), label ids or 0 and 1 for each label (`nn.loss`).
            numbers: for each adapter its step number, from 0; part of the dropout masks' keys.
            windows: for each adapter (texts,) the number of windows of the text that each is a window of;
                None if each is a whole text.

        Returns:
            (adapters,) float32 losses, on the bank's device.
        """
