"""Layer norm and RMS norm with frozen weights: float32 in, the dtype of the matrix products out."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.nn import fused, gradient


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
    if not gradient.is_needed(x):
        return _normalized(x, _inverse_rms(x, eps), weight, dtype)
    out: Tensor = _RMSNorm.apply(x, weight, eps, dtype)  # type: ignore[no-untyped-call]
    return out


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """(rows, 1): the scale that makes the root mean square of each row 1."""
    mean_square: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() / x.shape[-1]
    return (mean_square + eps).rsqrt_()


def _normalized(x: Tensor, scale: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    return (x * scale).mul_(weight).to(dtype)


class _RMSNorm(torch.autograd.Function):
    """Saves its input and one scale per row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        scale = _inverse_rms(x, eps)
        ctx.save_for_backward(x, weight, scale)
        return _normalized(x, scale, weight, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        x, weight, scale = ctx.saved_tensors
        weighted = grads[0] * weight  # (rows, d_model) float32
        dot = torch.linalg.vecdot(weighted, x)[:, None]
        return weighted.mul_(scale).addcmul_(x, dot * scale**3, value=-1 / x.shape[-1]), None, None, None
