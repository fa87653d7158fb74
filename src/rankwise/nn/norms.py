"""Layer norm and RMS norm with frozen weights: float32 in, the dtype of the matrix products out."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.nn import fused


class NormWeights(NamedTuple):
    """A layer norm's parameters, both (d_model,) float32."""

    weight: Tensor
    bias: Tensor


def layer_norm(x: Tensor, norm: NormWeights, eps: float, dtype: torch.dtype) -> Tensor:
    """Layer norm (Ba et al. 2016, arXiv 1607.06450) of x (rows, d_model) float32, in `dtype`."""
    if fused.used_on(x):
        return fused.norm(x, norm.weight, norm.bias, eps, dtype)
    return F.layer_norm(x, (x.shape[-1],), norm.weight, norm.bias, eps).to(dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """RMS norm (Zhang and Sennrich 2019, arXiv 1910.07467) of x (rows, d_model) float32, in `dtype`."""
    if fused.used_on(x):
        return fused.norm(x, weight, None, eps, dtype)
    out: Tensor = _RMSNorm.apply(x, weight, eps, dtype)  # type: ignore[no-untyped-call]
    return out


class _RMSNorm(torch.autograd.Function):
    """Saves its input and one scale per row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        scale = (torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() / x.shape[-1] + eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        y: Tensor = (x * scale).mul_(weight).to(dtype)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        x, weight, scale = ctx.saved_tensors
        weighted = grads[0] * weight  # (rows, d_model) float32
        dot = torch.linalg.vecdot(weighted, x)[:, None]
        return weighted.mul_(scale).addcmul_(x, dot * scale**3, value=-1 / x.shape[-1]), None, None, None
