"""Where each head of each token stands in the blocks that attention works on.

Attention needs one head of one text at a time; the stream has all heads of a token in a row. With
a layout one `index_select` brings the heads to their places, and one brings the result back.

Every tensor here has a shape that follows from the blocks' shapes alone, and is computed on the
stream's device: a CUDA graph can hold the computation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from rankwise.nn.batch import Block, Stream


@dataclass(frozen=True, slots=True)
class Part:
    """One block's queries, keys and values among the gathered heads."""

    q: slice
    k: slice
    v: slice
    batch: int  # texts * kv_heads
    scores: tuple[int, int, int]  # shape in which `hidden` fits the block's scores
    hidden: Tensor  # float32, -inf where a query may not look: (width, width), or (texts, 1, width)


@dataclass(frozen=True, slots=True)
class Layout:
    """The places of all heads of a stream.

    All queries come first, then all keys, then all values; within these block by block, each as
    (texts, heads, rows of a text). A row that fills a block up repeats its text's last token.
    """

    gather: Tensor  # (gathered,) int64, rows of qkv as (tokens * (heads + 2 * kv_heads), head_dim)
    scatter: Tensor  # (tokens * (heads + 2 * kv_heads),) the way back; `gathered` for what nobody reads
    out_gather: Tensor  # (queries,) int64, rows of the result as (rows * heads, head_dim)
    out_scatter: Tensor  # (rows * heads,) the way back; `queries` for rows of no text
    filling: Tensor  # (queries, 1) bool, the queries that only fill a block up
    heads: int
    parts: tuple[Part, ...]


def layout_of(stream: Stream, heads: int, kv_heads: int, pooled: bool) -> Layout:
    """The stream's layout for so many heads; the same object every time.

    Args:
        stream: the packed texts.
        heads: of the queries.
        kv_heads: of the keys, and of the values.
        pooled: only the last token of each text has a query, and the result a row a text.
    """
    key = heads, kv_heads, pooled
    if key not in stream.layouts:
        stream.layouts[key] = _lay_out(stream, heads, kv_heads, pooled)
    layout: Layout = stream.layouts[key]
    return layout


def _lay_out(stream: Stream, heads: int, kv_heads: int, pooled: bool) -> Layout:
    keys = [block.rows for block in stream.blocks]  # each (texts, width)
    queries = [rows[:, -1:] for rows in keys] if pooled else keys
    answers = [block.texts[:, None] for block in stream.blocks] if pooled else keys
    real_keys = [block.real for block in stream.blocks]
    real = [torch.ones_like(rows, dtype=torch.bool) for rows in queries] if pooled else real_keys
    every = heads + 2 * kv_heads  # heads of a token
    gather = [
        *_heads(queries, every, 0, heads),
        *_heads(keys, every, heads, kv_heads),
        *_heads(keys, every, heads + kv_heads, kv_heads),
    ]
    real_queries, real_keys_once = _repeated(real, heads), _repeated(real_keys, kv_heads)
    everything, out_gather = torch.cat(gather), torch.cat(_heads(answers, heads, 0, heads))
    rows = len(stream.last if pooled else stream.ids)
    return Layout(
        gather=everything,
        scatter=_inverse(
            everything, torch.cat([real_queries, real_keys_once, real_keys_once]), every * len(stream.ids)
        ),
        out_gather=out_gather,
        out_scatter=_inverse(out_gather, real_queries, heads * rows),
        filling=~real_queries[:, None],
        heads=heads,
        parts=tuple(_parts(stream.blocks, [len(each) for each in gather], kv_heads, pooled)),
    )


def _heads(blocks: Sequence[Tensor], every: int, first: int, count: int) -> list[Tensor]:
    """`count` heads of each block's rows (texts, n), as flat indices in the order (texts, heads, n)."""
    heads = torch.arange(first, first + count, device=blocks[0].device)[:, None]
    return [(rows[:, None] * every + heads).flatten() for rows in blocks]


def _repeated(blocks: Sequence[Tensor], count: int) -> Tensor:
    """What holds for a block's rows (texts, n), for `count` heads of them."""
    return torch.cat([rows[:, None].expand(-1, count, -1).flatten() for rows in blocks])


def _inverse(index: Tensor, real: Tensor, size: int) -> Tensor:
    """Where each of `size` places is found in `index`; its length for those that are not there."""
    found = index.new_full((size + 1,), len(index))  # the last one takes what is not real
    places = torch.arange(len(index), device=index.device)
    return found.scatter_(0, torch.where(real, index, size), places)[:size]


def _parts(blocks: Sequence[Block], sizes: Sequence[int], kv_heads: int, pooled: bool) -> Iterator[Part]:
    ends = list(accumulate(sizes, initial=0))
    for i, block in enumerate(blocks):
        q, k, v = (slice(ends[j], ends[j + 1]) for j in (i, len(blocks) + i, 2 * len(blocks) + i))
        texts, steps = len(block.texts), torch.arange(block.width, device=block.rows.device)
        hidden = steps >= block.lengths[:, None, None] if pooled else steps > steps[:, None]
        shape = (texts, -1, block.width) if pooled else (-1, block.width, block.width)
        bias = torch.zeros(hidden.shape, device=steps.device).masked_fill_(hidden, -math.inf)
        yield Part(q, k, v, texts * kv_heads, shape, bias)
