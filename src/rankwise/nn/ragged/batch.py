"""Builds packed batches without padding. The counterpart of `static.batch`.

`nn.batch` describes packed batches. This module adds two things.

*Distinct batches.* Adapters with the same seed see the same texts in the same order. If their keys say so
(`same`), the packed batch also holds its `Distinct` batches, each packed once. Three adapters, of which
the first and the last have the same texts::

    same             7        8          7
    ids              a b | c  d e | f    a b | c         the packed batch
    distinct.ids     a b | c  d e | f                    the distinct batches
    distinct.rows    0 1   2  3 4   5    0 1   2         the distinct row of each token

*Shared prefixes.* A token's hidden state only depends on the tokens up to it. In a forward pass without
dropout, a prefix shared by several texts is therefore computed once (`shared`). In lexical order, the
longest shared prefix is always with the preceding text. Three texts, 4 rows instead of 7::

    the            rows 0        row 0 is new
    the cat ran    rows 0 1 2    rows 1 and 2 are new
    the cat sat    rows 0 1 3    row 3 is new
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
    """Pack every adapter's batch of texts into one packed batch.

    Args:
        batches: for each adapter its texts, each (length,) int64 ids, not empty.
        device: device of the packed batch.
        same: a key for each adapter; adapters with equal keys have the same texts and dropout masks.
        shared: whether to store shared prefixes of an adapter's texts once. Only for forward passes
            without dropout.

    Raises:
        ValueError: there are no texts, or a text has no tokens.

    >>> packed = pack([[np.array([5, 6, 7])], [np.array([8])]])
    >>> packed.positions.tolist(), packed.last.tolist(), packed.token_starts.tolist()
    ([0, 1, 2, 0], [2, 3], [0, 3, 4])
    >>> packed = pack([[np.array([5, 6, 7]), np.array([5, 6, 8])]], shared=True)
    >>> packed.ids.tolist(), packed.positions.tolist(), packed.last.tolist()
    ([5, 6, 7, 8], [0, 1, 2, 2], [2, 3])
    """
    texts = [text for batch in batches for text in batch]
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    if not len(lengths) or lengths.min() < 1:
        raise ValueError("a packed batch needs at least one text, and each text at least one token")
    starts, adapter_starts = offsets(lengths), _offsets_of(batches)
    # For each adapter: the row of each token, and the token of each row.
    maps = [_shared_rows(batch) if shared else _plain_rows(batch) for batch in batches]
    token_starts = _offsets_of([tokens for _, tokens in maps])
    row_of_token = np.concatenate([rows + token_starts[k] for k, (rows, _) in enumerate(maps)])
    token_of_row = np.concatenate([tokens + starts[adapter_starts[k]] for k, (_, tokens) in enumerate(maps)])
    positions = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    return PackedBatch(
        ids=_to(np.concatenate(texts)[token_of_row], device),
        positions=_to(positions[token_of_row], device),
        last=_to(row_of_token[starts[1:] - 1], device),
        adapter_starts=adapter_starts,
        token_starts=token_starts,
        buckets=tuple(_buckets(lengths, starts, row_of_token, device)),
        distinct=_distinct(batches, device, same or range(len(batches)), shared),
        is_contiguous=not shared,
    )


def bucket_width(length: int) -> int:
    """Width of the length bucket for a text of this length: eight steps per power of two.

    It only depends on the text's length, so a text is computed in the same way in any batch.

    >>> [bucket_width(n) for n in (1, 7, 9, 31, 33, 100, 1000)]
    [8, 8, 16, 32, 40, 104, 1024]
    """
    step = 1 << max(3, (length - 1).bit_length() - 4)
    return -(-length // step) * step


def lexical_order(texts: Sequence[Ids]) -> list[int]:
    """Indices of the texts in lexical order, so that shared prefixes are adjacent.

    >>> lexical_order([np.array([5, 9]), np.array([2]), np.array([5])])
    [1, 2, 0]
    """
    return sorted(range(len(texts)), key=lambda i: texts[i].astype(">i8").tobytes())


def _buckets(
    lengths: NDArray[np.int64],
    starts: NDArray[np.int64],
    row_of_token: NDArray[np.int64],
    device: torch.device | str,
) -> Iterator[LengthBucket]:
    """Length buckets, narrowest first.

    Args:
        lengths: (texts,).
        starts: (texts + 1,) offset of each text in the concatenated tokens.
        row_of_token: (tokens,) the packed batch's row of each token.
        device: device of the buckets.
    """
    widths = np.array([bucket_width(int(n)) for n in lengths], dtype=np.int64)
    for width in np.unique(widths).tolist():
        members = np.flatnonzero(widths == width)
        most = max(1, MAX_BUCKET_SCORES // width**2)  # a single text may exceed the cap
        for first in range(0, len(members), most):
            texts = members[first : first + most]
            rows = row_of_token[bucket_rows(starts[texts], lengths[texts], width)]
            yield LengthBucket(_to(texts, device), _to(lengths[texts], device), width, _to(rows, device))


def _plain_rows(texts: Sequence[Ids]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The same as `_shared_rows`, with a separate row for every token."""
    rows = np.arange(sum(len(text) for text in texts))
    return rows, rows


def _shared_rows(texts: Sequence[Ids]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of one adapter's batch, with shared prefixes stored once.

    In lexical order, a text's longest shared prefix is with the preceding text.

    Returns:
        (tokens,) the row of each token, and (rows,) the token of each row.

    >>> the, cat, sat, ran = 1, 2, 4, 3
    >>> _shared_rows([np.array([the, cat, sat]), np.array([the]), np.array([the, cat, ran])])
    (array([0, 1, 3, 0, 0, 1, 2]), array([3, 5, 6, 2]))
    """
    starts = _offsets_of(texts)
    row_of_token, tokens = np.empty(starts[-1], dtype=np.int64), []
    count, before = 0, texts[0][:0]  # rows so far; the preceding text
    rows_before = row_of_token[:0]
    for i in lexical_order(texts):
        rows, prefix = row_of_token[starts[i] : starts[i + 1]], _shared_prefix(before, texts[i])
        rows[:prefix] = rows_before[:prefix]
        rows[prefix:] = np.arange(count, count + len(rows) - prefix)
        tokens.append(np.arange(starts[i] + prefix, starts[i + 1]))
        count, before, rows_before = count + len(rows) - prefix, texts[i], rows
    return row_of_token, np.concatenate(tokens)


def _shared_prefix(a: Ids, b: Ids) -> int:
    """Length of the shared prefix of two texts.

    >>> _shared_prefix(np.array([1, 2, 3]), np.array([1, 2, 4, 5]))
    2
    """
    unequal = np.flatnonzero(a[: len(b)] != b[: len(a)])
    return int(unequal[0]) if len(unequal) else min(len(a), len(b))


def _distinct(
    batches: Sequence[Sequence[Ids]],
    device: torch.device | str,
    keys: Sequence[Hashable],
    shared: bool,
) -> Distinct | None:
    first = {key: keys.index(key) for key in keys}  # the first adapter with each key
    if len(first) == len(keys):
        return None
    adapters = tuple(first.values())
    packed = pack([batches[adapter] for adapter in adapters], device, shared=shared)
    places = [adapters.index(first[key]) for key in keys]  # for each adapter, its batch in `packed`
    rows, texts = (
        np.concatenate([np.arange(starts[k], starts[k + 1]) for k in places])
        for starts in (packed.token_starts, packed.adapter_starts)
    )
    return Distinct(packed, adapters, _to(rows, device), _to(texts, device))


def _offsets_of(groups: Sequence[Sized]) -> NDArray[np.int64]:
    return offsets(np.array([len(group) for group in groups], dtype=np.int64))


def _to(array: NDArray[np.int64], device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
