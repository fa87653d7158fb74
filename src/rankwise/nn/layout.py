"""Where each head of each token stands in the length buckets that attention works on.

Attention needs one head of one text at a time; the packed batch has all heads of a token in a row. With
a layout one `index_select` brings the heads to their places, and one brings the result back.

Every tensor here has a shape that follows from the length buckets' shapes alone, and is computed on the
packed batch's device: a CUDA graph can hold the computation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from rankwise.nn.batch import LengthBucket, PackedBatch


@dataclass(frozen=True, slots=True)
class BucketSlices:
    """One length bucket's queries, keys and values among the gathered heads."""

    q: slice
    k: slice
    v: slice
    batch: int  # texts * kv_heads
    scores: tuple[int, int, int]  # shape in which `hidden` fits the length bucket's scores
    hidden: Tensor  # float32, -inf where a query may not look: (width, width), or (texts, 1, width)


@dataclass(frozen=True, slots=True)
class Layout:
    """The places of all heads of a packed batch.

    All queries come first, then all keys, then all values; within these length bucket by length bucket, each as
    (texts, heads, rows of a text). A row that fills a length bucket up repeats its text's last token.
    """

    gather: Tensor  # (gathered,) int64, rows of qkv as (tokens * (heads + 2 * kv_heads), head_dim)
    scatter: Tensor  # (tokens * (heads + 2 * kv_heads),) the way back; `gathered` for what nobody reads
    out_gather: Tensor  # (queries,) int64, rows of the result as (rows * heads, head_dim)
    out_scatter: Tensor  # (rows * heads,) the way back; `queries` for rows of no text
    filling: Tensor  # (queries, 1) bool, the queries that only fill a length bucket up
    heads: int
    slices: tuple[BucketSlices, ...]


def layout_of(packed: PackedBatch, heads: int, kv_heads: int, pooled: bool) -> Layout:
    """The packed batch's layout for so many heads; the same object every time.

    Args:
        packed batch: the packed texts.
        heads: of the queries.
        kv_heads: of the keys, and of the values.
        pooled: only the last token of each text has a query, and the result a row a text.
    """
    key = heads, kv_heads, pooled
    if key not in packed.layouts:
        packed.layouts[key] = _lay_out(packed, heads, kv_heads, pooled)
    layout: Layout = packed.layouts[key]
    return layout


def _lay_out(packed: PackedBatch, heads: int, kv_heads: int, pooled: bool) -> Layout:
    keys = [bucket.rows for bucket in packed.buckets]  # each (texts, width)
    queries = [rows[:, -1:] for rows in keys] if pooled else keys
    answers = [bucket.texts[:, None] for bucket in packed.buckets] if pooled else keys
    real_keys = [bucket.real for bucket in packed.buckets]
    real = [torch.ones_like(rows, dtype=torch.bool) for rows in queries] if pooled else real_keys
    every = heads + 2 * kv_heads  # heads of a token
    gather = [
        *_heads(queries, every, 0, heads),
        *_heads(keys, every, heads, kv_heads),
        *_heads(keys, every, heads + kv_heads, kv_heads),
    ]
    real_queries, real_keys_once = _repeated(real, heads), _repeated(real_keys, kv_heads)
    everything, out_gather = torch.cat(gather), torch.cat(_heads(answers, heads, 0, heads))
    rows = len(packed.last if pooled else packed.ids)
    return Layout(
        gather=everything,
        scatter=_inverse(
            everything, torch.cat([real_queries, real_keys_once, real_keys_once]), every * len(packed.ids)
        ),
        out_gather=out_gather,
        out_scatter=_inverse(out_gather, real_queries, heads * rows),
        filling=~real_queries[:, None],
        heads=heads,
        slices=tuple(_slices(packed.buckets, [len(each) for each in gather], kv_heads, pooled)),
    )


def _heads(buckets: Sequence[Tensor], every: int, first: int, count: int) -> list[Tensor]:
    """`count` heads of each length bucket's rows (texts, n), as flat indices in the order (texts, heads, n)."""
    heads = torch.arange(first, first + count, device=buckets[0].device)[:, None]
    return [(rows[:, None] * every + heads).flatten() for rows in buckets]


def _repeated(buckets: Sequence[Tensor], count: int) -> Tensor:
    """What holds for a length bucket's rows (texts, n), for `count` heads of them."""
    return torch.cat([rows[:, None].expand(-1, count, -1).flatten() for rows in buckets])


def _inverse(index: Tensor, real: Tensor, size: int) -> Tensor:
    """Where each of `size` places is found in `index`; its length for those that are not there."""
    found = index.new_full((size + 1,), len(index))  # the last one takes what is not real
    places = torch.arange(len(index), device=index.device)
    return found.scatter_(0, torch.where(real, index, size), places)[:size]


def _slices(
    buckets: Sequence[LengthBucket], sizes: Sequence[int], kv_heads: int, pooled: bool
) -> Iterator[BucketSlices]:
    ends = list(accumulate(sizes, initial=0))
    for i, bucket in enumerate(buckets):
        q, k, v = (slice(ends[j], ends[j + 1]) for j in (i, len(buckets) + i, 2 * len(buckets) + i))
        texts, steps = len(bucket.texts), torch.arange(bucket.width, device=bucket.rows.device)
        hidden = steps >= bucket.lengths[:, None, None] if pooled else steps > steps[:, None]
        shape = (texts, -1, bucket.width) if pooled else (-1, bucket.width, bucket.width)
        bias = torch.zeros(hidden.shape, device=steps.device).masked_fill_(hidden, -math.inf)
        yield BucketSlices(q, k, v, texts * kv_heads, shape, bias)
