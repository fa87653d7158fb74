"""Compares values and gradients of two implementations of the same computation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.unit.nn.models import close

TIGHT = 2e-6  # relative, in float32


def leaves(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def compare(ours: Tensor, theirs: Tensor, inputs: Sequence[Tensor], relative: float = TIGHT) -> None:
    """Values, and the gradients of every input for the same random gradient of the output."""
    assert close(ours, theirs, relative)
    (direction,) = leaves(tuple(ours.shape), seed=99)
    mine = torch.autograd.grad(ours, inputs, direction.to(ours.dtype))
    other = torch.autograd.grad(theirs, inputs, direction.to(theirs.dtype))
    for a, b in zip(mine, other, strict=True):
        assert close(a, b, relative)
