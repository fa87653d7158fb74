"""The base model's own dropout, applied at the backbone's hooks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rankwise.nn.backbone import Hook
from rankwise.nn.masks import Masks


class DropoutHook(Hook):
    """The base model's own dropout, each adapter with its own masks; none without masks."""

    def __init__(self, masks: Masks | None) -> None:
        self.base_masks = masks

    def drop(self, module: str, x: Tensor, rate: float, pooled: bool = False) -> Tensor:
        """Dropout on x (rows, d_model)."""
        if self.base_masks is None or not rate:
            return x
        return x * self._rows_kept(self.base_masks, module, x, rate, pooled).to(x.dtype) * (1 / (1 - rate))

    def add(self, module: str, x: Tensor, branch: Tensor, rate: float, pooled: bool = False) -> Tensor:
        """x + dropout(branch), both (rows, d_model)."""
        if self.base_masks is None or not rate:
            return x + branch
        mask = self._rows_kept(self.base_masks, module, branch, rate, pooled)
        out: Tensor = _AddDropped.apply(x, branch, mask, 1 / (1 - rate))  # type: ignore[no-untyped-call]
        return out

    def mask(self, module: str, heads: int, rate: float, pooled: bool = False) -> list[Tensor] | None:
        """Masks for the attention weights of each length bucket."""
        if self.base_masks is None or not rate:
            return None
        return self.base_masks.attention(module, heads, rate, pooled)

    @staticmethod
    def _rows_kept(masks: Masks, module: str, x: Tensor, rate: float, pooled: bool) -> Tensor:
        return masks.rows(module, x.shape[1], [rate] * masks.packed.adapters, pooled)


class _AddDropped(torch.autograd.Function):
    """x + scale * keep * branch, in one pass; keeps the mask's bytes alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale, ctx.dtype = scale, branch.dtype
        return torch.addcmul(x, branch, mask.to(branch.dtype), value=scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        d_branch = mask.to(grads[0].dtype).mul_(grads[0]).mul_(ctx.scale)
        return grads[0], d_branch.to(ctx.dtype), None, None
