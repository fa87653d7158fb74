"""Learning rate schedules equal transformers'."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
import transformers

from rankwise.training.schedule import schedule


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("steps", "warmup"), [(50, 0), (50, 7), (1, 0), (5, 5), (4, 9)])
def test_schedules_equal_transformers(
    kind: Literal["linear", "cosine", "constant"], steps: int, warmup: int
) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = transformers.get_scheduler(
        "constant_with_warmup" if kind == "constant" else kind,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=steps,
    )
    for step in range(steps):
        assert schedule(kind, step, steps, warmup) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()
