"""Ragged texts -> one packed batch of tokens, without padding.

The packed batch of two adapters with two texts each::

    ids             a b c | d e | f | g h i j        (tokens,)
    positions       0 1 2 | 0 1 | 0 | 0 1 2 3        (tokens,)
    last                2 |   4 | 5 |       9        (texts,), in tokens
    adapter_starts  0             2            4     (adapters + 1,), in texts
    token_starts    0             5           10     (adapters + 1,), in tokens

Attention needs the texts one by one. Texts of like length stand together in a `Block`, a small
dense array (texts, width). A row that fills up a length bucket repeats its text's last token; causality
hides it from the real ones.

Adapters of one seed meet the same texts in the same order. Up to the first layer that any of them
adapts they compute the same, so a packed batch also knows its `Distinct` batches, each packed once.

Without dropout, texts that begin alike compute the same up to where they part: a token sees only
what is before it. For a forward pass alone, such a beginning can be in the packed batch once (`shared`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence, Sized

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise.nn.batch import (
    MAX_BUCKET_SCORES,
    Distinct,
    Ids,
    LengthBucket,
    PackedBatch,
    bucket_rows,
    offsets,
)


def pack(
    batches: Sequence[Sequence[Ids]],
    device: torch.device | str = "cpu",
    same: Sequence[Hashable] | None = None,
    *,
    shared: bool = False,
) -> PackedBatch:
    """One packed batch of every adapter's batch of texts.

    Args:
        batches: for each adapter its texts, each (length,) int64 ids, length at least 1.
        device: where the packed batch shall live.
        same: a key for each adapter; those with equal keys have equal batches, dropout masks included.
        shared: what several texts of a batch begin with is there once. For a forward pass without
            dropout; a token's gradient would have to be the sum over its texts.

    Raises:
        ValueError: there is no text, or a text without tokens.

    >>> packed batch = pack([[np.array([5, 6, 7])], [np.array([8])]])
    >>> packed batch.positions.tolist(), packed batch.last.tolist(), packed batch.token_starts.tolist()
    ([0, 1, 2, 0], [2, 3], [0, 3, 4])
    >>> packed batch = pack([[np.array([5, 6, 7]), np.array([5, 6, 8])]], shared=True)
    >>> packed batch.ids.tolist(), packed batch.positions.tolist(), packed batch.last.tolist()
    ([5, 6, 7, 8], [0, 1, 2, 2], [2, 3])
    """
    texts = [text for batch in batches for text in batch]
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    if not len(lengths) or lengths.min() < 1:
        raise ValueError("a packed batch needs at least one text, and each text at least one token")
    starts, adapter_starts = offsets(lengths), _offsets_of(batches)
    rows = [_prefixes(batch) for batch in batches] if shared else [_every(batch) for batch in batches]
    token_starts = _offsets_of([kept for _, kept in rows])
    of_tokens = np.concatenate([own + start for (own, _), start in zip(rows, token_starts, strict=False)])
    kept = np.concatenate([k + starts[a] for (_, k), a in zip(rows, adapter_starts, strict=False)])
    return PackedBatch(
        ids=_to(np.concatenate(texts)[kept], device),
        positions=_to((np.arange(starts[-1]) - np.repeat(starts[:-1], lengths))[kept], device),
        last=_to(of_tokens[starts[1:] - 1], device),
        adapter_starts=adapter_starts,
        token_starts=token_starts,
        buckets=tuple(_buckets(lengths, starts, of_tokens, device)),
        distinct=_distinct(batches, device, same or range(len(batches)), shared),
    )


def bucket_width(length: int) -> int:
    """Width of the length bucket that a text of this length stands in: eight steps to each doubling.

    It depends on the text alone, so that a text is computed alike among any neighbors.

    >>> [bucket_width(n) for n in (1, 7, 9, 31, 33, 100, 1000)]
    [8, 8, 16, 32, 40, 104, 1024]
    """
    step = 1 << max(3, (length - 1).bit_length() - 4)
    return -(-length // step) * step


def lexical_order(texts: Sequence[Ids]) -> list[int]:
    """The order of a dictionary, in which texts that begin alike are neighbors."""
    return sorted(range(len(texts)), key=lambda i: texts[i].astype(">i8").tobytes())


def _buckets(
    lengths: NDArray[np.int64],
    starts: NDArray[np.int64],
    of_tokens: NDArray[np.int64],
    device: torch.device | str,
) -> Iterator[LengthBucket]:
    widths = np.array([bucket_width(int(n)) for n in lengths], dtype=np.int64)
    for width in np.unique(widths).tolist():
        members = np.flatnonzero(widths == width)
        most = max(1, MAX_BUCKET_SCORES // width**2)  # texts; one alone may exceed the cap
        for first in range(0, len(members), most):
            texts = members[first : first + most]
            rows = of_tokens[bucket_rows(starts[texts], lengths[texts], width)]
            yield LengthBucket(_to(texts, device), _to(lengths[texts], device), width, _to(rows, device))


def _every(texts: Sequence[Ids]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A batch's rows where every token has its own; as `_prefixes` gives them."""
    rows = np.arange(sum(len(text) for text in texts))
    return rows, rows


def _prefixes(texts: Sequence[Ids]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A batch's rows where texts that begin alike share them.

    In lexical order a text shares most with the one before it.

    Returns:
        (tokens,) the row of each token, and (rows,) the token that each row is made of.
    """
    starts = _offsets_of(texts)
    rows, kept = np.empty(starts[-1], dtype=np.int64), []
    count, before = 0, texts[0][:0]
    rows_before = rows[:0]
    for i in lexical_order(texts):
        own, common = rows[starts[i] : starts[i + 1]], _common(before, texts[i])
        own[:common] = rows_before[:common]
        own[common:] = np.arange(count, count + len(own) - common)
        kept.append(np.arange(starts[i] + common, starts[i + 1]))
        count, before, rows_before = count + len(own) - common, texts[i], own
    return rows, np.concatenate(kept)


def _common(a: Ids, b: Ids) -> int:
    """How many tokens two texts have in common at their beginning."""
    unlike = np.flatnonzero(a[: len(b)] != b[: len(a)])
    return int(unlike[0]) if len(unlike) else min(len(a), len(b))


def _distinct(
    batches: Sequence[Sequence[Ids]],
    device: torch.device | str,
    keys: Sequence[Hashable],
    shared: bool,
) -> Distinct | None:
    first = {key: keys.index(key) for key in keys}
    if len(first) == len(keys):
        return None
    adapters = tuple(first.values())
    packed = pack([batches[adapter] for adapter in adapters], device, shared=shared)
    place = [adapters.index(first[key]) for key in keys]
    rows, texts = (
        np.concatenate([np.arange(starts[k], starts[k + 1]) for k in place])
        for starts in (packed.token_starts, packed.adapter_starts)
    )
    return Distinct(packed, adapters, _to(rows, device), _to(texts, device))


def _offsets_of(parts: Sequence[Sized]) -> NDArray[np.int64]:
    return offsets(np.array([len(part) for part in parts], dtype=np.int64))


def _to(array: NDArray[np.int64], device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
