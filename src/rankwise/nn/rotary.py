"""Rotary position embeddings (Su et al. 2021, arXiv 2104.09864), applied to all or part of each head.

The first `r` elements of a head are rotated in pairs: element j and element j + r / 2, by the angle
`position * frequency_j`. With r = 4 and one head at position p::

    before   a0 a1 | b0 b1 | c ...                      the rest, c, is not rotated
    after    a0 cos(p f0) - b0 sin(p f0)                and a1, b1 by p f1
             b0 cos(p f0) + a0 sin(p f0)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankwise.nn import fused, gradient
from rankwise.nn.batch import PackedBatch


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's frequency scaling, which extends the context beyond the original training length."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int


@dataclass(frozen=True)
class Rotary:
    """The rotary embedding settings of a model's config."""

    theta: float
    share: float = 1.0  # fraction of a head's elements that are rotated, from the start
    scaling: Llama3Scaling | None = None


def frequencies(rotary: Rotary, head_dim: int) -> Tensor:
    """(int(head_dim * share) / 2,) float32, in radians per position."""
    rotated = int(head_dim * rotary.share)
    exponents = torch.arange(0, rotated, 2, dtype=torch.int64).float() / rotated
    plain = 1.0 / (rotary.theta**exponents)
    return plain if rotary.scaling is None else _stretched(plain, rotary.scaling)


def rotation(packed: PackedBatch, frequencies: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the packed batch's positions, each (tokens, 1, r / 2) in `dtype`.

    They are computed once and shared by all layers.
    """
    key = "rotation", dtype
    if key not in packed.layouts:
        angles = packed.positions[:, None].float() * frequencies  # (tokens, r / 2)
        packed.layouts[key] = angles.cos()[:, None].to(dtype), angles.sin()[:, None].to(dtype)
    turning: tuple[Tensor, Tensor] = packed.layouts[key]
    return turning


def rotate(x: Tensor, heads: int, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first `heads` heads of x (tokens, all heads, head_dim); the value heads stay as they are.

    Without a gradient, x may be modified in place.
    """
    if not gradient.is_needed(x) and not fused.used_on(x):
        return _turn_in_place(x, heads, cos, sin)
    out: Tensor = _Rotate.apply(x, heads, cos, sin)  # type: ignore[no-untyped-call]
    return out


def _stretched(plain: Tensor, scaling: Llama3Scaling) -> Tensor:
    wavelengths = 2 * math.pi / plain
    turns = scaling.original_positions / wavelengths  # over the original training length
    smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = smooth.clamp(0, 1)  # 0: scaled by the factor, 1: unchanged
    return (1 - smooth) * plain / scaling.factor + smooth * plain


def _turn(x: Tensor, heads: int, cos: Tensor, sin: Tensor, sign: int = 1) -> Tensor:
    if fused.used_on(x):
        return fused.turn(x, heads, cos, sin, sign)
    sin = sin * sign
    width = 2 * cos.shape[-1]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    out[:, heads:] = x[:, heads:]
    if width < x.shape[-1]:
        out[:, :heads, width:] = x[:, :heads, width:]
    a, b = x[:, :heads, :width].chunk(2, -1)
    left, right = out[:, :heads, :width].chunk(2, -1)
    torch.mul(a, cos, out=left).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=right).addcmul_(a, sin)
    return out


def _turn_in_place(x: Tensor, heads: int, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x[:, :heads, : 2 * cos.shape[-1]].chunk(2, -1)
    before = a.clone()
    a.mul_(cos).addcmul_(b, sin, value=-1)
    b.mul_(cos).addcmul_(before, sin)
    return x


class _Rotate(torch.autograd.Function):
    """Saves only the angles: the gradient is rotated in the opposite direction."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, heads: int, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.heads = heads
        return _turn(x, heads, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grads[0], ctx.heads, cos, sin, -1), None, None, None
