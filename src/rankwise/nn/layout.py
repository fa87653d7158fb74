"""The mapping between heads in the packed batch and their positions in attention's length buckets.

In the packed batch, all heads of a token are contiguous; attention needs all tokens of one head of one
text to be contiguous. A layout holds the indices: one `index_select` gathers the heads, and another
scatters the results back.

Worked example: two texts, of 2 tokens and of 1, in one length bucket of width 2. Two query heads share
one key head and one value head, so a token has 4 heads. qkv, flattened to rows of one head each::

              q0  q1   k   v
    token 0    0   1   2   3      text 0, its first token
    token 1    4   5   6   7      text 0, its last token
    token 2    8   9  10  11      text 1, its only token; the bucket repeats it

`gather` lists the queries, then the keys, then the values, each as (texts, heads, width)::

    place      0  1    2  3    4  5    6  7  |  8  9   10 11  | 12 13   14 15
    gather     0  4    1  5    8  8*   9  9* |  2  6   10 10* |  3  7   11 11*
               t0 q0   t0 q1   t1 q0   t1 q1 |  t0 k    t1 k  |  t0 v    t1 v

    * a copy of a text's last token, which pads the bucket

`scatter` is the inverse: the place of each row of qkv, ignoring the copies. Row 4 is at place 1; row 8 is
at place 4, not 5. The backward pass uses it for the gradient of qkv. `out_gather` and `out_scatter` do
the same for the result, which only has the query heads.

With `pooled`, each text has one query, that of its last token. The queries of the other tokens have no
place; `scatter` maps them to one past the end, where attention stores a row of zeros.

All tensor shapes follow from the shapes of the length buckets, and everything is computed on the packed
batch's device without synchronization, so a CUDA graph can record the computation.
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
    """The queries, keys and values of one length bucket among the gathered heads."""

    q: slice
    k: slice
    v: slice
    batch: int  # texts * kv_heads: the batch size of the batched products
    scores: tuple[int, int, int]  # shape of the scores to which `hidden` broadcasts
    hidden: Tensor  # float32, -inf for masked keys: (width, width), or (texts, 1, width)


@dataclass(frozen=True, slots=True)
class Layout:
    """The places of all heads of a packed batch; see the example above."""

    gather: Tensor  # (places,) int64, rows of qkv as (tokens * (heads + 2 * kv_heads), head_dim)
    scatter: Tensor  # (tokens * (heads + 2 * kv_heads),) int64, a place; `places` for omitted queries
    out_gather: Tensor  # (query places,) int64, rows of the result as (rows * heads, head_dim)
    out_scatter: Tensor  # (rows * heads,) int64, a query place; `query places` for rows of no text
    filling: Tensor  # (query places, 1) bool, True for copies that pad a length bucket
    heads: int
    slices: tuple[BucketSlices, ...]  # of each length bucket


def layout_of(packed: PackedBatch, heads: int, kv_heads: int, pooled: bool) -> Layout:
    """The packed batch's layout for these head counts, computed once and shared by all layers.

    Args:
        packed: the packed batch.

        heads: number of query heads.
        kv_heads: number of key heads and of value heads.
        pooled: whether only the last token of each text has a query, so that the result has one row per text.

    >>> import numpy as np
    >>> bucket = LengthBucket(torch.arange(2), torch.tensor([2, 1]), 2, torch.tensor([[0, 1], [2, 2]]))
    >>> ids, positions, last = torch.tensor([5, 6, 7]), torch.tensor([0, 1, 0]), torch.tensor([1, 2])
    >>> packed = PackedBatch(ids, positions, last, np.array([0, 2]), np.array([0, 3]), (bucket,))
    >>> layout = layout_of(packed, heads=2, kv_heads=1, pooled=False)
    >>> layout.gather.tolist()
    [0, 4, 1, 5, 8, 8, 9, 9, 2, 6, 10, 10, 3, 7, 11, 11]
    >>> layout.scatter.tolist()
    [0, 2, 8, 12, 1, 3, 9, 13, 4, 6, 10, 14]
    >>> layout_of(packed, heads=2, kv_heads=1, pooled=True).gather.tolist()  # queries: t0 q0, t0 q1, ...
    [4, 5, 8, 9, 2, 6, 10, 10, 3, 7, 11, 11]
    """
    key = heads, kv_heads, pooled
    if key not in packed.layouts:
        packed.layouts[key] = _lay_out(packed, heads, kv_heads, pooled)
    layout: Layout = packed.layouts[key]
    return layout


def _lay_out(packed: PackedBatch, heads: int, kv_heads: int, pooled: bool) -> Layout:
    queries, results, real_queries = _queries(packed, pooled)
    keys, real_keys = [bucket.rows for bucket in packed.buckets], [bucket.real for bucket in packed.buckets]
    per_token = heads + 2 * kv_heads
    parts = [
        *_head_rows(queries, per_token, 0, heads),
        *_head_rows(keys, per_token, heads, kv_heads),
        *_head_rows(keys, per_token, heads + kv_heads, kv_heads),
    ]
    gather, out_gather = torch.cat(parts), torch.cat(_head_rows(results, heads, 0, heads))
    real_q, real_kv = _for_heads(real_queries, heads), _for_heads(real_keys, kv_heads)
    return Layout(
        gather=gather,
        scatter=_inverse(gather, torch.cat([real_q, real_kv, real_kv]), per_token * len(packed.ids)),
        out_gather=out_gather,
        out_scatter=_inverse(out_gather, real_q, heads * len(packed.last if pooled else packed.ids)),
        filling=~real_q[:, None],
        heads=heads,
        slices=tuple(_slices(packed.buckets, [len(part) for part in parts], kv_heads, pooled)),
    )


def _queries(packed: PackedBatch, pooled: bool) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The queries of each length bucket.

    Returns:
        For each bucket, three arrays (texts, n): the rows of qkv that hold its queries, the corresponding
        rows of the result, and False for copies that only pad the bucket.
    """
    rows = [bucket.rows for bucket in packed.buckets]
    if not pooled:
        return rows, rows, [bucket.real for bucket in packed.buckets]
    last = [of_bucket[:, -1:] for of_bucket in rows]
    texts = [bucket.texts[:, None] for bucket in packed.buckets]
    return last, texts, [torch.ones_like(of_bucket, dtype=torch.bool) for of_bucket in last]


def _head_rows(buckets: Sequence[Tensor], per_token: int, first: int, count: int) -> list[Tensor]:
    """Flat indices of some heads of each length bucket's rows.

    Args:
        buckets: each (texts, n) int64 rows.
        per_token: heads per row.
        first: index of the first head.
        count: number of heads.

    Returns:
        For each bucket (texts * count * n,) int64, in the order (texts, heads, n).
    """
    heads = torch.arange(first, first + count, device=buckets[0].device)[:, None]  # (count, 1)
    return [(rows[:, None] * per_token + heads).flatten() for rows in buckets]


def _for_heads(buckets: Sequence[Tensor], count: int) -> Tensor:
    """Values for the rows (texts, n) of each length bucket, repeated for `count` heads, as one vector."""
    return torch.cat([rows[:, None].expand(-1, count, -1).flatten() for rows in buckets])


def _inverse(index: Tensor, real: Tensor, size: int) -> Tensor:
    """The inverse of an index: for each of `size` numbers, its place.

    Args:
        index: (places,) int64.
        real: (places,) bool, False for places to ignore.
        size: length of the result; larger than any number in the index.

    Returns:
        (size,) int64; `places` for numbers that do not occur.

    >>> _inverse(torch.tensor([3, 0, 0]), torch.tensor([True, True, False]), 4).tolist()
    [1, 3, 3, 0]
    """
    inverse = index.new_full((size + 1,), len(index))  # the extra place collects the ignored ones
    places = torch.arange(len(index), device=index.device)
    return inverse.scatter_(0, torch.where(real, index, size), places)[:size]


def _slices(
    buckets: Sequence[LengthBucket], sizes: Sequence[int], kv_heads: int, pooled: bool
) -> Iterator[BucketSlices]:
    """Each bucket's slices, from the sizes of all queries, then all keys, then all values."""
    ends, n = list(accumulate(sizes, initial=0)), len(buckets)
    for i, bucket in enumerate(buckets):
        q, k, v = (slice(ends[j], ends[j + 1]) for j in (i, n + i, 2 * n + i))
        texts, width = len(bucket.texts), bucket.width
        keys = torch.arange(width, device=bucket.rows.device)
        if pooled:  # the last token attends to the whole text, but not to its own copies
            hidden, shape = keys >= bucket.lengths[:, None, None], (texts, -1, width)
        else:  # copies come last, so the causal mask hides them from every real token
            hidden, shape = keys > keys[:, None], (-1, width, width)
        bias = torch.zeros(hidden.shape, dtype=torch.float32, device=keys.device).masked_fill_(
            hidden, -math.inf
        )
        yield BucketSlices(q, k, v, texts * kv_heads, shape, bias)
