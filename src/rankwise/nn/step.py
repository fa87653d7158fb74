"""One step's forward and backward pass: batches in, each adapter's loss and gradients out.

On the CPU a step packs exactly what the batches hold (`nn.ragged`). On a CUDA device it runs as a
graph, on packed batches of few shapes (`nn.static`). Both do the same computation; their dropout masks
come from different generators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rankwise.nn.batch import Ids

Batches = Sequence[Sequence[Ids]]
Targets = Sequence[NDArray[np.int64]]


class TrainingStep(Protocol):
    """Fills a bank's gradients, which are zero before."""

    def __call__(self, batches: Batches, targets: Targets, number: int) -> Tensor:
        """Forward and backward pass.

        Args:
            batches: for each adapter its texts, each (length,) int64 ids.
            targets: for each adapter (texts,) label ids.
            number: of the step, from 0, which keys the dropout masks.

        Returns:
            (adapters,) float32 losses, on the bank's device.
        """
