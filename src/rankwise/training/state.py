"""The state of an adapter in training, which is copied, saved and restored as a unit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Kept:
    """A snapshot of an adapter after a validated epoch."""

    epoch: int  # from 1
    score: float  # on validation, by the metric of the run; higher is better
    tensors: dict[str, Tensor]  # names and shapes as in `Bank.tensors`, float32, on the CPU
    logits: NDArray[np.float32]  # (validation texts, classes)


@dataclass
class AdapterState:
    """Everything needed to resume training of one adapter.

    In a trainer, the tensors are views of its bank and optimizer, so the state is always current; a copy
    is on the CPU and shares no memory. Data order and dropout masks are keyed by seed, epoch and step, so
    there is no random state: the number of losses determines the position in the data.
    """

    parameters: Tensor  # (parameters,) float32, as are the next two
    exp_avg: Tensor
    exp_avg_sq: Tensor
    losses: list[float] = field(default_factory=list)  # one per step so far
    validated: int = 0  # steps at the last validation
    kept: Kept | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        return len(self.losses)

    def copy(self) -> AdapterState:
        """A copy of the current state, on the CPU."""
        return replace(
            self,
            parameters=self.parameters.detach().to("cpu", copy=True),
            exp_avg=self.exp_avg.to("cpu", copy=True),
            exp_avg_sq=self.exp_avg_sq.to("cpu", copy=True),
            losses=list(self.losses),
        )

    @torch.no_grad()
    def restore(self, saved: AdapterState) -> None:
        """Restore a saved copy in place."""
        self.parameters.copy_(saved.parameters)
        self.exp_avg.copy_(saved.exp_avg)
        self.exp_avg_sq.copy_(saved.exp_avg_sq)
        self.losses, self.validated, self.kept = list(saved.losses), saved.validated, saved.kept
