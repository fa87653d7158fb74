"""Where each head of each token stands in the blocks that attention works on.

Attention needs one head of one text at a time; the stream has all heads of a token in a row. With
a layout one `index_select` brings the heads to their places, and one brings the result back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise.nn.packing import Stream

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


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
    out_scatter: Tensor  # (rows * heads,) the way back
    filled: Tensor  # int64, the queries that only fill a block up
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
    real = [np.ones_like(rows, dtype=bool) for rows in queries] if pooled else real_keys
    every = heads + 2 * kv_heads  # heads of a token
    gather = [
        *_heads(queries, every, 0, heads),
        *_heads(keys, every, heads, kv_heads),
        *_heads(keys, every, heads + kv_heads, kv_heads),
    ]
    real_queries = _repeated(real, heads)
    real_keys_once = _repeated(real_keys, kv_heads)
    real_all = np.concatenate([real_queries, real_keys_once, real_keys_once])
    out_gather = np.concatenate(_heads(answers, heads, 0, heads))
    device = stream.ids.device
    return Layout(
        gather=_to(np.concatenate(gather), device),
        scatter=_to(_inverse(np.concatenate(gather), real_all, every * len(stream.ids)), device),
        out_gather=_to(out_gather, device),
        out_scatter=_to(_inverse(out_gather, real_queries, int(real_queries.sum())), device),
        filled=_to(np.flatnonzero(~real_queries), device),
        heads=heads,
        parts=tuple(_parts(stream, gather, kv_heads, pooled)),
    )


def _heads(blocks: Sequence[Ints], every: int, first: int, count: int) -> list[Ints]:
    """`count` heads of each block's rows (texts, n), as flat indices in the order (texts, heads, n)."""
    heads = np.arange(first, first + count)[:, None]
    return [(rows[:, None] * every + heads).ravel() for rows in blocks]


def _repeated(blocks: Sequence[Bools], count: int) -> Bools:
    """What holds for a block's rows (texts, n), for `count` heads of them."""
    return np.concatenate([np.repeat(rows[:, None], count, axis=1).ravel() for rows in blocks])


def _inverse(index: Ints, real: Bools, size: int) -> Ints:
    """Where each of `size` places is found in `index`; its length for those that are not there."""
    found = np.full(size, len(index))
    found[index[real]] = np.flatnonzero(real)
    return found


def _parts(stream: Stream, gather: Sequence[Ints], kv_heads: int, pooled: bool) -> Iterator[Part]:
    ends = np.cumsum([0, *map(len, gather)]).tolist()
    number = len(stream.blocks)
    for i, block in enumerate(stream.blocks):
        q, k, v = (slice(ends[j], ends[j + 1]) for j in (i, number + i, 2 * number + i))
        texts, steps = len(block.texts), np.arange(block.width)
        last = block.real.sum(1)[:, None, None] - 1
        hidden = steps > last if pooled else steps > steps[:, None]
        shape = (texts, -1, block.width) if pooled else (-1, block.width, block.width)
        bias = torch.from_numpy(np.where(hidden, -math.inf, 0.0).astype(np.float32))
        yield Part(q, k, v, texts * kv_heads, shape, bias.to(stream.ids.device))


def _to(array: Ints, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
