"""Causal attention within each text of a packed batch, with a hand-written backward pass."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rankwise.nn.batch import PackedBatch
from rankwise.nn.layout import BucketSlices, Layout, layout_of


def attend(
    packed: PackedBatch, qkv: Tensor, heads: int, mask: list[Tensor] | None, rate: float, pooled: bool
) -> Tensor:
    """Causal attention within each text of the packed batch.

    Args:
        packed batch: the packed texts.
        qkv: (tokens, heads + 2 * kv_heads, head_dim): the query, key and value heads of each token,
            where `heads` is a multiple of `kv_heads` (Ainslie et al. 2023, arXiv 2305.13245).
        heads: number of query heads.
        keep: dropout masks of the attention weights, one a length bucket, from `Hook.keep`.
        rate: the drop rate of `keep`.
        pooled: one query a text, that of its last token.

    Returns:
        (rows, heads * head_dim), qkv's dtype; a row is a token, or a text if `pooled`.
    """
    layout = layout_of(packed, heads, (qkv.shape[1] - heads) // 2, pooled)
    scale = 1 / (1 - rate) if mask else 1.0
    out: Tensor = _Attention.apply(qkv, layout, mask, scale)  # type: ignore[no-untyped-call]
    return out


class _Attention(torch.autograd.Function):
    """Dense attention length bucket by length bucket, with the softmax in float32.

    Batched products on small length buckets beat fused attention kernels on CPUs several times over at
    the lengths of short texts, above all in the backward pass. `scale` makes up for what dropout
    takes; it and the scale of the scores are folded into the products.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, layout: Layout, mask: list[Tensor] | None, scale: float) -> Tensor:
        head_dim = qkv.shape[2]
        rows = qkv.reshape(-1, head_dim).index_select(0, layout.gather)
        out = rows.new_empty(len(layout.out_gather) + 1, head_dim)
        out[-1] = 0  # what rows of no text get
        saved = [rows]
        for i, part in enumerate(layout.slices):
            q, k, v = (_batches(rows, part, at) for at in (part.q, part.k, part.v))
            scores = _product(q, k.transpose(1, 2), 1 / math.sqrt(head_dim)).float()
            shown = scores.view(part.scores).add_(part.hidden)
            weights = shown.softmax(-1).view_as(scores).to(rows.dtype)
            _product(_drop(weights, mask, i), v, scale, out=_batches(out, part, part.q))
            saved.append(weights)
        ctx.save_for_backward(*saved)
        ctx.layout, ctx.mask, ctx.scale, ctx.shape = layout, mask, scale, qkv.shape
        return out.index_select(0, layout.out_scatter).view(-1, layout.heads * head_dim)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        layout, scale, head_dim = ctx.layout, ctx.scale, ctx.shape[2]
        rows, *saved = ctx.saved_tensors
        d_out = grads[0].reshape(-1, head_dim).index_select(0, layout.out_gather)
        d_out.masked_fill_(layout.filling, 0)
        d_rows = rows.new_empty(len(rows) + 1, head_dim)
        d_rows[-1] = 0  # what nobody reads: the other queries, where there is one a text
        for i, (part, weights) in enumerate(zip(layout.slices, saved, strict=True)):
            q, k, v = (_batches(rows, part, at) for at in (part.q, part.k, part.v))
            dq, dk, dv = (_batches(d_rows, part, at) for at in (part.q, part.k, part.v))
            d_answers = _batches(d_out, part, part.q)
            _product(_drop(weights, ctx.mask, i).transpose(1, 2), d_answers, scale, out=dv)
            d_weights = _drop(_product(d_answers, v.transpose(1, 2), scale), ctx.mask, i)
            d_scores = torch._softmax_backward_data(d_weights.float(), weights.float(), -1, torch.float32)
            d_scores = d_scores.to(rows.dtype)
            _product(d_scores, k, 1 / math.sqrt(head_dim), out=dq)
            _product(d_scores.transpose(1, 2), q, 1 / math.sqrt(head_dim), out=dk)
        return d_rows.index_select(0, layout.scatter).view(ctx.shape), None, None, None


def _batches(rows: Tensor, part: BucketSlices, at: slice) -> Tensor:
    """Gathered rows of a length bucket as (texts * kv_heads, rows of each, head_dim); a view."""
    return rows[at].view(part.batch, -1, rows.shape[1])


def _product(a: Tensor, b: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """scale * a b for batches of matrices, rounded once."""
    return torch.baddbmm(a.new_empty(1), a, b, beta=0, alpha=scale, out=out)


def _drop(weights: Tensor, mask: list[Tensor] | None, bucket: int) -> Tensor:
    return weights if mask is None else weights * mask[bucket].view_as(weights).to(weights.dtype)
