"""The fused kernels of `kernels` as functions of tensors, with their gradients.

They are used on CUDA devices, if Triton is installed: it comes with torch's CUDA builds for Linux. Elsewhere,
and for attention within longer texts, torch's own kernels compute the same functions.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rankwise.nn.batch import PackedBatch

MOST_TOKENS = 128
"""Tokens of the longest text whose attention fits into one block of threads."""

MOST_QUERIES = 1 << 16
"""An upper bound on the number of tokens of a text, for the numbers of mask bits."""

LEAST_BLOCK = 16
"""The smallest matrix that Triton multiplies."""

BLOCK = 1024
"""Elements that one program of an elementwise kernel computes."""


class HeadMask(NamedTuple):
    """A dropout mask for attention weights that has not been drawn: what its bits are hashed from."""

    keys: Tensor  # (adapters,) int32, of this step
    texts: Tensor  # (texts,) int32, each text's number in its adapter's batch
    crc: int  # CRC-32 of the mask's name, as a signed integer


def fits(packed: PackedBatch) -> bool:
    """Whether the fused kernels can attend within the texts of this packed batch."""
    return used_on(packed.ids) and packed.is_contiguous and widest(packed) <= MOST_TOKENS


def used_on(x: Tensor) -> bool:
    """Whether the fused kernels are used on this tensor's device."""
    return x.is_cuda and has_triton()


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def widest(packed: PackedBatch) -> int:
    """An upper bound on the number of tokens of a text."""
    return max(bucket.width for bucket in packed.buckets)


def attend(
    packed: PackedBatch, qkv: Tensor, heads: int, mask: HeadMask | None, rate: float, pooled: bool
) -> Tensor:
    """See `attention.attend`. The rows of the result that belong to no text are zero."""
    return _applied(_Attention, qkv.contiguous(), packed, heads, mask, rate, pooled)


def _applied(function: Any, *arguments: Any) -> Tensor:
    """The result of an autograd function; torch gives `apply` no types."""
    result: Tensor = function.apply(*arguments)
    return result


class _Attention(torch.autograd.Function):
    """Saves its input alone."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        packed: PackedBatch,
        heads: int,
        mask: HeadMask | None,
        rate: float,
        pooled: bool,
    ) -> Tensor:
        from rankwise.nn import kernels

        ctx.save_for_backward(qkv)
        ctx.arguments = packed, heads, mask, rate, pooled
        out = qkv.new_zeros(len(packed.last if pooled else packed.ids), heads * qkv.shape[2])
        _launch(kernels.attention_forward, heads, (out, qkv), *ctx.arguments)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        from rankwise.nn import kernels

        (qkv,) = ctx.saved_tensors
        d_qkv, heads = torch.zeros_like(qkv), ctx.arguments[1]
        programs = (qkv.shape[1] - heads) // 2
        _launch(kernels.attention_backward, programs, (d_qkv, grads[0].contiguous(), qkv), *ctx.arguments)
        return d_qkv, None, None, None, None, None


def _launch(
    kernel: Any,
    programs: int,
    tensors: tuple[Tensor, ...],
    packed: PackedBatch,
    heads: int,
    mask: HeadMask | None,
    rate: float,
    pooled: bool,
) -> None:
    """Run one of the attention kernels, with `programs` programs for each text."""
    qkv = tensors[-1]
    dim, block = qkv.shape[2], _power_of_two(widest(packed))
    drawn = mask or HeadMask(packed.last, packed.last, 0)
    kernel[(len(packed.last), programs)](
        *tensors,
        packed.last,
        packed.positions,
        *drawn,
        round(rate * (1 << 16)),
        max(1, len(packed.last) // packed.adapters),
        1 / math.sqrt(dim),
        1 / (1 - rate) if mask else 1.0,
        HEADS=heads,
        KV_HEADS=(qkv.shape[1] - heads) // 2,
        DIM=dim,
        WIDE=_power_of_two(dim),
        BLOCK=block,
        QUERIES=MOST_QUERIES,
        POOLED=pooled,
        DROPOUT=mask is not None,
        PRECISION="tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
        num_warps=8 if block > 64 else 4,
    )


def _power_of_two(number: int) -> int:
    return max(LEAST_BLOCK, 1 << (number - 1).bit_length())


def decided(keys: Tensor, numbers: Tensor, rates: Sequence[float]) -> Tensor:
    """The mask bits at numbered positions, as `static.masks._decided` computes them.

    Args:
        keys: (names, adapters) int32.
        numbers: (n,) int32, or (adapters, n); one word per number.
        rates: each adapter's dropout rate.

    Returns:
        (names, adapters, 2 n) uint8, 1 for kept elements.
    """
    from rankwise.nn import kernels

    adapters, row = len(rates), numbers.shape[-1]
    out = keys.new_empty(*keys.shape, 2 * row, dtype=torch.uint8)
    thresholds = [keys.new_full((1,), round(rate * (1 << 16))) for rate in rates]  # no copy from the host
    kernels.decide[(keys.numel(), -(-2 * row // BLOCK))](
        out,
        keys.contiguous(),
        numbers.contiguous(),
        torch.cat(thresholds),
        adapters,
        row,
        row if numbers.dim() == 2 else 0,
        BLOCK=BLOCK,
    )
    return out


def norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    """Layer norm of x (rows, width) float32, in `dtype`; RMS norm if there is no bias. See `norms`."""
    return _applied(_Norm, x, weight, bias, eps, dtype)


class _Norm(torch.autograd.Function):
    """Saves its input alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype
    ) -> Tensor:
        from rankwise.nn import kernels

        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.settings = {
            "eps": eps,
            "WIDTH": x.shape[1],
            "BLOCK": _power_of_two(x.shape[1]),
            "CENTERED": bias is not None,
        }
        y = torch.empty_like(x, dtype=dtype)
        kernels.norm_forward[(len(x),)](y, x, weight, weight if bias is None else bias, **ctx.settings)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        from rankwise.nn import kernels

        x, weight = ctx.saved_tensors
        dx = torch.empty_like(x)
        kernels.norm_backward[(len(x),)](dx, grads[0].contiguous(), x, weight, **ctx.settings)
        return dx, None, None, None, None


def add_dropped(x: Tensor, branch: Tensor, mask: Tensor, scale: float) -> Tensor:
    """x + scale * mask * branch; x (rows, width) float32, the others the same shape, mask uint8."""
    return _applied(_AddDropped, x.contiguous(), branch.contiguous(), mask.contiguous(), scale)


class _AddDropped(torch.autograd.Function):
    """Saves the mask alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, mask: Tensor, scale: float) -> Tensor:
        from rankwise.nn import kernels

        ctx.save_for_backward(mask)
        ctx.scale, ctx.dtype = scale, branch.dtype
        y = torch.empty_like(x)
        programs = (-(-x.numel() // BLOCK),)
        kernels.add_dropped_forward[programs](y, x, branch, mask, scale, x.numel(), BLOCK=BLOCK)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        from rankwise.nn import kernels

        (mask,) = ctx.saved_tensors
        dy = grads[0].contiguous()
        d_branch = torch.empty_like(dy, dtype=ctx.dtype)
        programs = (-(-dy.numel() // BLOCK),)
        kernels.add_dropped_backward[programs](d_branch, dy, mask, ctx.scale, dy.numel(), BLOCK=BLOCK)
        return dy, d_branch, None, None


def swiglu(gate_up: Tensor) -> Tensor:
    """See `activation.swiglu`."""
    return _applied(_SwiGLU, gate_up.contiguous())


class _SwiGLU(torch.autograd.Function):
    """Saves its input alone."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        from rankwise.nn import kernels

        ctx.save_for_backward(gate_up)
        rows, width = len(gate_up), gate_up.shape[1] // 2
        y = gate_up.new_empty(rows, width)
        kernels.swiglu_forward[(rows, -(-width // BLOCK))](y, gate_up, width, BLOCK=BLOCK)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor]:
        from rankwise.nn import kernels

        (gate_up,) = ctx.saved_tensors
        rows, width = len(gate_up), gate_up.shape[1] // 2
        d_gate_up = torch.empty_like(gate_up)
        kernels.swiglu_backward[(rows, -(-width // BLOCK))](
            d_gate_up, grads[0].contiguous(), gate_up, width, BLOCK=BLOCK
        )
        return (d_gate_up,)


def turn(x: Tensor, heads: int, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    """x (tokens, all heads, head_dim) with the first `heads` heads rotated; see `rotary`.

    Args:
        x: the heads.
        heads: number of heads to rotate.
        cos: (tokens, 1, r / 2), in x's dtype.
        sin: the same for the sines.
        sign: 1, or -1 to rotate in the opposite direction.
    """
    from rankwise.nn import kernels

    x, half = x.contiguous(), cos.shape[-1]
    out = torch.empty_like(x)
    kernels.turn[(len(x),)](
        out,
        x,
        cos,
        sin,
        sign,
        heads,
        x.shape[1],
        DIM=x.shape[2],
        HALF=half,
        ROWS=_power_of_two(x.shape[1]),
        PAIRS=_power_of_two(max(half, x.shape[2] - 2 * half)),
    )
    return out


class PartSettings(NamedTuple):
    """Settings of AdamW for each part of a bank, all (parts,) float32."""

    learning_rates: Tensor
    weight_decays: Tensor
    first: Tensor  # 1 - beta_1 ** step
    second: Tensor  # 1 - beta_2 ** step
    clips: Tensor  # factors on the gradient


def adamw(
    weight: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    parts: Tensor,
    settings: PartSettings,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """One update of AdamW in place, with settings of each part; zeroes the gradient.

    Args:
        weight: (parameters,) float32.
        gradient: the same shape, as the next two.
        exp_avg: the moving average of the gradient.
        exp_avg_sq: the moving average of its square.
        parts: (parameters,) int32, the part that each belongs to.
        settings: of each part.
        betas: decay rates of the averages.
        eps: added to the denominator.
    """
    from rankwise.nn import kernels

    kernels.adamw[(-(-len(weight) // BLOCK),)](
        weight,
        gradient,
        exp_avg,
        exp_avg_sq,
        parts,
        *settings,
        len(weight),
        BETA_1=betas[0],
        BETA_2=betas[1],
        EPS=eps,
        BLOCK=BLOCK,
    )
