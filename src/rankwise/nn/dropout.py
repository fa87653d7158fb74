"""The base model's own dropout, applied where the backbone calls its hook."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rankwise.nn import fused
from rankwise.nn.backbone import Hook
from rankwise.nn.masks import AttentionMask, Masks


class DropoutHook(Hook):
    """The base model's own dropout, with separate masks for each adapter.

    Args:
        masks: dropout masks of this step; None for no dropout.
    """

    def __init__(self, masks: Masks | None) -> None:
        self.base_masks = masks

    def drop(self, name: str, x: Tensor, rate: float, pooled: bool = False) -> Tensor:
        """Dropout on x (rows, d_model)."""
        if self.base_masks is None or not rate:
            return x
        return x * _row_mask(self.base_masks, name, x, rate, pooled).to(x.dtype) * (1 / (1 - rate))

    def add(self, name: str, x: Tensor, branch: Tensor, rate: float, pooled: bool = False) -> Tensor:
        """x + dropout(branch), both (rows, d_model)."""
        if self.base_masks is None or not rate:
            return x + branch
        mask = _row_mask(self.base_masks, name, branch, rate, pooled)
        if fused.used_on(x):
            return fused.add_dropped(x, branch, mask, 1 / (1 - rate))
        out: Tensor = _AddDropped.apply(x, branch, mask, 1 / (1 - rate))  # type: ignore[no-untyped-call]
        return out

    def mask(self, name: str, heads: int, rate: float, pooled: bool = False) -> AttentionMask | None:
        """Dropout masks for the attention weights."""
        if self.base_masks is None or not rate:
            return None
        masks = self.base_masks
        return masks.undrawn(name) or masks.attention(name, heads, rate, pooled)


def _row_mask(masks: Masks, name: str, x: Tensor, rate: float, pooled: bool) -> Tensor:
    """The mask for x (rows, width), with the same rate for all adapters."""
    return masks.rows(name, x.shape[1], [rate] * masks.packed.adapters, pooled)


class _AddDropped(torch.autograd.Function):
    """y = x + scale * mask * branch in one pass; saves only the uint8 mask.

    Backward: dx = dy, d_branch = scale * mask * dy.
    """

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
