"""Learning rate schedules."""

from __future__ import annotations

import math
from typing import Literal


def schedule(kind: Literal["linear", "cosine", "constant"], step: int, steps: int, warmup: int) -> float:
    """The learning rate multiplier at a step, as in transformers' schedules.

    Args:
        kind: schedule after the warmup.
        step: step number, from 0.
        steps: total number of steps.
        warmup: number of steps over which the factor rises linearly from 0.

    >>> [schedule("linear", step, 4, 0) for step in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    >>> [schedule("constant", step, 4, 2) for step in range(4)]
    [0.0, 0.5, 1.0, 1.0]
    """
    if step < warmup:
        return step / max(1, warmup)
    done = (step - warmup) / max(1, steps - warmup)
    if kind == "linear":
        return max(0.0, 1 - done)
    return max(0.0, 0.5 * (1 + math.cos(math.pi * done))) if kind == "cosine" else 1.0
