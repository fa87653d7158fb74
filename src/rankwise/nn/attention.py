"""Causal attention within each text of a packed stream, with a hand-written backward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rankwise.nn.packing import Block, Stream


def attend(
    stream: Stream, q: Tensor, k: Tensor, v: Tensor, keep: list[Tensor] | None, rate: float, pooled: bool
) -> Tensor:
    """Causal attention within each text of the stream.

    Args:
        stream: the packed texts.
        q: (rows, heads, head_dim); a row is a token, or a text's last token if `pooled`.
        k: (tokens, kv_heads, head_dim), where `heads` is a multiple of `kv_heads` (Ainslie et al.
            2023, arXiv 2305.13245).
        v: as k.
        keep: dropout masks of the attention weights, one a block, from `Hook.keep`.
        rate: the drop rate of `keep`.
        pooled: one query a text.

    Returns:
        (rows, heads * head_dim), q's dtype.
    """
    out: Tensor = _Attention.apply(q, k, v, stream, keep, rate, pooled)  # type: ignore[no-untyped-call]
    return out


class _Attention(torch.autograd.Function):
    """Dense attention block by block, with the softmax in float32.

    Batched products on small blocks beat fused attention kernels on CPUs several times over at
    the lengths of short texts, above all in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        stream: Stream,
        keep: list[Tensor] | None,
        rate: float,
        pooled: bool,
    ) -> Tensor:
        groups = q.shape[1] // k.shape[1]
        q_rows = q.index_select(0, stream.text_gather) if pooled else q.index_select(0, stream.gather)
        k_rows, v_rows = k.index_select(0, stream.gather), v.index_select(0, stream.gather)
        out = torch.empty_like(q_rows)
        saved: list[Tensor] = []
        for i, (block, queries) in enumerate(_queries(stream, pooled)):
            qb = _to_heads(q_rows[queries], len(block.texts), groups)  # (b * kv, groups * queries, hd)
            kb, vb = (_to_heads(t[block.rows], len(block.texts), 1) for t in (k_rows, v_rows))
            scores = torch.bmm(qb, kb.transpose(1, 2)).float().mul_(1 / math.sqrt(q.shape[-1]))
            weights = _softmax(scores, block, pooled).to(q.dtype)
            dropped = _drop(weights, keep[i] if keep else None, rate)
            _from_heads(torch.bmm(dropped, vb), out[queries], len(block.texts), groups)
            saved += [qb, kb, vb, weights]
        ctx.save_for_backward(*saved)
        ctx.stream, ctx.keep, ctx.rate, ctx.pooled = stream, keep, rate, pooled
        ctx.shapes = q.shape, k.shape
        return out.index_select(0, stream.text_scatter if pooled else stream.scatter).flatten(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        stream, pooled = ctx.stream, ctx.pooled
        q_shape, k_shape = ctx.shapes
        groups = q_shape[1] // k_shape[1]
        gathered = (len(stream.gather), *k_shape[1:])
        d_out = grads[0].new_zeros((len(stream.last) if pooled else len(stream.gather), *q_shape[1:]))
        d_out[stream.text_scatter if pooled else stream.scatter] = grads[0].view(q_shape)
        dq, dk, dv = torch.empty_like(d_out), d_out.new_empty(gathered), d_out.new_empty(gathered)
        for i, (block, queries) in enumerate(_queries(stream, pooled)):
            qb, kb, vb, weights = ctx.saved_tensors[4 * i : 4 * i + 4]
            keep, texts = ctx.keep[i] if ctx.keep else None, len(block.texts)
            d_ob = _to_heads(d_out[queries], texts, groups)
            dropped = _drop(weights, keep, ctx.rate)
            d_weights = _drop(torch.bmm(d_ob, vb.transpose(1, 2)), keep, ctx.rate)
            d_scores = torch._softmax_backward_data(d_weights.float(), weights.float(), -1, torch.float32)
            d_scores = d_scores.mul_(1 / math.sqrt(q_shape[-1])).to(qb.dtype)
            _from_heads(torch.bmm(dropped.transpose(1, 2), d_ob), dv[block.rows], texts, 1)
            _from_heads(torch.bmm(d_scores, kb), dq[queries], texts, groups)
            _from_heads(torch.bmm(d_scores.transpose(1, 2), qb), dk[block.rows], texts, 1)
        back = stream.text_scatter if pooled else stream.scatter
        return (
            dq.index_select(0, back),
            dk.index_select(0, stream.scatter),
            dv.index_select(0, stream.scatter),
            None,
            None,
            None,
            None,
        )


def _queries(stream: Stream, pooled: bool) -> Iterator[tuple[Block, slice]]:
    """Each block with the rows of its queries."""
    row = 0
    for block in stream.blocks:
        rows = slice(row, row + len(block.texts) * (1 if pooled else block.width))
        yield block, rows
        row = rows.stop


def _to_heads(rows: Tensor, texts: int, groups: int) -> Tensor:
    """(texts * n, heads, head_dim) -> (texts * kv_heads, groups * n, head_dim), contiguous."""
    n, heads, head_dim = rows.shape[0] // texts, rows.shape[1], rows.shape[2]
    dense = rows.view(texts, n, heads // groups, groups, head_dim).permute(0, 2, 3, 1, 4)
    return dense.reshape(texts * (heads // groups), groups * n, head_dim)


def _from_heads(dense: Tensor, rows: Tensor, texts: int, groups: int) -> None:
    """The inverse of `_to_heads`, written into `rows`."""
    n, heads, head_dim = rows.shape[0] // texts, rows.shape[1], rows.shape[2]
    source = dense.view(texts, heads // groups, groups, n, head_dim).permute(0, 3, 1, 2, 4)
    rows.view(texts, n, heads // groups, groups, head_dim).copy_(source)


def _softmax(scores: Tensor, block: Block, pooled: bool) -> Tensor:
    """Attention weights from scores (texts * kv_heads, groups * queries, width), which are overwritten."""
    keys = torch.arange(block.width, device=scores.device)
    if pooled:
        shape, hidden = (len(block.texts), -1, block.width), keys > block.last[:, None, None]
    else:
        shape, hidden = (-1, block.width, block.width), keys > keys[:, None]
    return scores.view(shape).masked_fill_(hidden, -math.inf).softmax(-1).view_as(scores)


def _drop(weights: Tensor, keep: Tensor | None, rate: float) -> Tensor:
    return weights if keep is None else (weights * keep.view_as(weights)).mul_(1 / (1 - rate))
