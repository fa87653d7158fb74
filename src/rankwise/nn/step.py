"""The forward and backward pass of a training step: from batches to each adapter's loss and gradients.

On a CPU, a step packs the batches without padding (`ragged.step.RaggedStep`). On a CUDA device, it pads
them to one of a few static shapes and replays a recorded graph (`static.step.StaticStep`). Both do the
same computation, but their dropout masks come from different generators.

When memory is short, both split a batch into micro-batches and accumulate the gradients. The dropout
masks are those of the whole batch, so the result is the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rankwise.nn.batch import Ids

Batches = Sequence[Sequence[Ids]]  # for each adapter, its texts
Targets = Sequence[NDArray[np.integer]]  # for each adapter, (texts, *shape) as its loss takes them


class TrainingStep(Protocol):
    """Accumulates a step's gradients into those of a bank, which the optimizer has zeroed."""

    def __call__(self, batches: Batches, targets: Targets, numbers: Sequence[int]) -> Tensor:
        """Run the forward and backward pass.

        Args:
            batches: for each adapter its texts, each (length,) int64 ids.
            targets: for each adapter (texts, *shape), label ids or 0 and 1 for each label (`nn.loss`).
            numbers: for each adapter its step number, from 0; part of the dropout masks' keys.

        Returns:
            (adapters,) float32 losses, on the bank's device.
        """
