"""Causal attention within each text of a packed batch, with a hand-written backward pass.

For one head of one text, with M the dropout mask and c = 1 / (1 - rate)::

    S = Q K^T / sqrt(head_dim) + hidden      (queries, width), hidden: -inf for masked keys
    P = softmax(S)                           row by row, in float32
    O = c (M * P) V                          (queries, head_dim)

and backward, from dO::

    dV = c (M * P)^T dO
    dP = c M * (dO V^T)
    dS = P * (dP - rowsum(dP * P))           the softmax's own backward pass
    dQ = dS K   / sqrt(head_dim)
    dK = dS^T Q / sqrt(head_dim)

The factors c and 1 / sqrt(head_dim) are folded into the matrix products, so each result is rounded once.

One batched product covers all texts and heads of a length bucket. Grouped-query attention needs no
special case: query heads that share a key head are adjacent, and become extra query rows of one matrix.

A single text without a gradient needs no length buckets, so its rows are not copied, and torch's fused
kernel makes one call instead of twenty. With more texts in a batch, batched products are faster.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.nn import fused, gradient
from rankwise.nn.batch import PackedBatch
from rankwise.nn.layout import BucketSlices, Layout, layout_of
from rankwise.nn.masks import AttentionMask


def attend(
    packed: PackedBatch, qkv: Tensor, heads: int, mask: AttentionMask | None, rate: float, pooled: bool
) -> Tensor:
    """Causal attention within each text of the packed batch; on CUDA devices by the kernels of `fused`.

    Args:
        packed: the packed batch.
        qkv: (tokens, heads + 2 * kv_heads, head_dim): the query, key and value heads of each token;
            `heads` is a multiple of `kv_heads` (Ainslie et al. 2023, arXiv 2305.13245).
        heads: number of query heads.
        mask: dropout masks for the attention weights, from `Hook.mask`.
        rate: the dropout rate of `mask`.
        pooled: whether each text has a single query, that of its last token.

    Returns:
        (rows, heads * head_dim), in qkv's dtype; one row per text if `pooled`, else per token.

    One text of two tokens, one head of size 1. With q = 0, each token averages the values it attends to:

    >>> import numpy as np
    >>> from rankwise.nn.ragged.batch import pack
    >>> qkv = torch.tensor([[[0.0], [0.0], [1.0]], [[0.0], [0.0], [3.0]]])  # (tokens, q k v, 1)
    >>> attend(pack([[np.array([5, 6])]]), qkv, 1, None, 0.0, pooled=False).tolist()
    [[1.0], [2.0]]
    """
    if isinstance(mask, fused.HeadMask) or (mask is None and fused.fits(packed)):
        return fused.attend(packed, qkv, heads, mask, rate, pooled)
    if mask is None and _is_one_text(packed) and not gradient.is_needed(qkv):
        return _attend_in_one_text(qkv, heads, pooled)
    layout = layout_of(packed, heads, (qkv.shape[1] - heads) // 2, pooled)
    scale = 1 / (1 - rate) if mask else 1.0
    out: Tensor = _Attention.apply(qkv, layout, mask, scale)  # type: ignore[no-untyped-call]
    return out


def _is_one_text(packed: PackedBatch) -> bool:
    """Whether a packed batch on the CPU is a single text without padding."""
    if len(packed.last) > 1 or packed.last.device.type != "cpu":
        return False
    return int(packed.last) == len(packed.ids) - 1


def _attend_in_one_text(qkv: Tensor, heads: int, pooled: bool) -> Tensor:
    by_head = qkv.transpose(0, 1)[None]  # (1, heads + 2 * kv_heads, tokens, head_dim)
    kv_heads = (qkv.shape[1] - heads) // 2
    q, k, v = by_head[:, :heads], by_head[:, heads:-kv_heads], by_head[:, -kv_heads:]
    q = q[:, :, -1:] if pooled else q
    # The last token attends to the whole text, so `pooled` has no mask.
    out = F.scaled_dot_product_attention(q, k, v, is_causal=not pooled, enable_gqa=kv_heads != heads)
    return out[0].transpose(0, 1).flatten(1)  # (rows, heads * head_dim)


class _Attention(torch.autograd.Function):
    """Dense attention, one length bucket at a time.

    For short texts on CPUs, batched products over small length buckets are several times faster than
    fused attention kernels, especially in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, layout: Layout, mask: list[Tensor] | None, scale: float) -> Tensor:
        head_dim = qkv.shape[2]
        rows = qkv.reshape(-1, head_dim).index_select(0, layout.gather)  # (places, head_dim)
        out = rows.new_empty(len(layout.out_gather) + 1, head_dim)  # (query places + 1, head_dim)
        out[-1] = 0  # the result for padding rows, which belong to no text
        saved = [rows]
        for i, part in enumerate(layout.slices):
            q, k, v = (_matrices(rows, part, at) for at in (part.q, part.k, part.v))
            scores = _product(q, k.transpose(1, 2), 1 / math.sqrt(head_dim)).float()
            seen = scores.view(part.scores).add_(part.hidden)
            weights = seen.softmax(-1).view_as(scores).to(rows.dtype)  # (batch, queries, width)
            _product(_dropped(weights, mask, i), v, scale, out=_matrices(out, part, part.q))
            saved.append(weights)
        ctx.save_for_backward(*saved)
        ctx.layout, ctx.mask, ctx.scale, ctx.shape = layout, mask, scale, qkv.shape
        return out.index_select(0, layout.out_scatter).view(-1, layout.heads * head_dim)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        layout, scale, head_dim = ctx.layout, ctx.scale, ctx.shape[2]
        rows, *saved = ctx.saved_tensors
        d_out = grads[0].reshape(-1, head_dim).index_select(0, layout.out_gather)
        d_out.masked_fill_(layout.filling, 0)  # a copy of a token must not add to its gradient
        d_rows = rows.new_empty(len(rows) + 1, head_dim)
        d_rows[-1] = 0  # the gradient of the queries that `pooled` omits
        for i, (part, weights) in enumerate(zip(layout.slices, saved, strict=True)):
            q, k, v = (_matrices(rows, part, at) for at in (part.q, part.k, part.v))
            dq, dk, dv = (_matrices(d_rows, part, at) for at in (part.q, part.k, part.v))
            d_result = _matrices(d_out, part, part.q)  # (batch, queries, head_dim)
            _product(_dropped(weights, ctx.mask, i).transpose(1, 2), d_result, scale, out=dv)
            d_weights = _dropped(_product(d_result, v.transpose(1, 2), scale), ctx.mask, i)
            d_scores = torch._softmax_backward_data(d_weights.float(), weights.float(), -1, torch.float32)
            d_scores = d_scores.to(rows.dtype)  # (batch, queries, width)
            _product(d_scores, k, 1 / math.sqrt(head_dim), out=dq)
            _product(d_scores.transpose(1, 2), q, 1 / math.sqrt(head_dim), out=dk)
        # Only the real position of a text's last token is read back. Its copies have zero gradient: as
        # queries they were zeroed above, and as keys and values no real query attends to them.
        return d_rows.index_select(0, layout.scatter).view(ctx.shape), None, None, None


def _matrices(rows: Tensor, part: BucketSlices, at: slice) -> Tensor:
    """Rows of a length bucket as (texts * kv_heads, n, head_dim); a view."""
    return rows[at].view(part.batch, -1, rows.shape[1])


def _product(a: Tensor, b: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """scale * (a @ b) for batches of matrices, rounded once."""
    return torch.baddbmm(a.new_empty(1), a, b, beta=0, alpha=scale, out=out)


def _dropped(weights: Tensor, mask: list[Tensor] | None, bucket: int) -> Tensor:
    """M * weights; the caller folds in 1 / (1 - rate)."""
    return weights if mask is None else weights * mask[bucket].view_as(weights).to(weights.dtype)
