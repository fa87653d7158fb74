"""One training step's forward and backward pass: batches in, each adapter's loss and gradients out.

On a CPU a step packs exactly the tokens that the batches have (`ragged.step.RaggedStep`). On a CUDA
device it packs them into one of a few shapes and runs as a recorded graph (`static.step.StaticStep`).
Both do the same computation; their dropout masks come from different generators.

Where memory is short, both split a batch into micro-batches and accumulate the gradients. The dropout
masks stay those of the whole batch, so the result is the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rankwise.nn.batch import Ids

Batches = Sequence[Sequence[Ids]]  # for each adapter, its texts
Targets = Sequence[NDArray[np.int64]]  # for each adapter, (texts,) label ids


class TrainingStep(Protocol):
    """Adds a step's gradients to a bank's, which the optimizer has cleared."""

    def __call__(self, batches: Batches, targets: Targets, number: int) -> Tensor:
        """Forward and backward pass.

        Args:
            batches: for each adapter its texts, each (length,) int64 ids.
            targets: for each adapter (texts,) label ids.
            number: of the step, from 0; it keys the dropout masks.

        Returns:
            (adapters,) float32 losses, on the bank's device.
        """
