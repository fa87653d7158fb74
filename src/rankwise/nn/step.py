"""One step's forward and backward pass: batches in, each adapter's loss and gradients out.

On the CPU a step packs exactly what the batches hold (`RaggedStep`). On a CUDA device it runs as a
graph, on streams of few shapes (`EvenStep`). Both do the same computation; their dropout masks
come from different generators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rankwise.nn.backbone import Trunk
from rankwise.nn.bank import Bank
from rankwise.nn.batch import Ids
from rankwise.nn.ragged.step import RaggedStep
from rankwise.nn.static.graphs import CudaRecorder
from rankwise.nn.static.step import EvenStep

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
