"""Ragged texts -> one packed stream of tokens, without padding.

The stream of two adapters with two texts each::

    ids             a b c | d e | f | g h i j        (tokens,)
    positions       0 1 2 | 0 1 | 0 | 0 1 2 3        (tokens,)
    last                2 |   4 | 5 |       9        (texts,), in tokens
    adapter_starts  0             2            4     (adapters + 1,), in texts
    token_starts    0             5           10     (adapters + 1,), in tokens

Attention needs the texts one by one. Texts of like length stand together in a `Block`, a small
dense array (texts, width). A row that fills up a block repeats its text's last token; causality
hides it from the real ones.

Adapters of one seed meet the same texts in the same order. Up to the first layer that any of them
adapts they compute the same, so a stream also knows its `Distinct` batches, each packed once.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ids = NDArray[np.int64]

MAX_BLOCK_SCORES = 1 << 21
"""Most attention scores of one head in a block; more texts start another block."""


@dataclass(frozen=True, slots=True)
class Block:
    """Texts whose lengths round up to the same width, as a dense array."""

    texts: Tensor  # (texts,) int64, which texts of the stream
    lengths: Tensor  # (texts,) int64
    width: int
    rows: Tensor  # (texts, width) int64, the stream's row at each place

    @property
    def real(self) -> Tensor:
        """(texts, width) bool: False where a row only fills the block up."""
        return torch.arange(self.width, device=self.rows.device) < self.lengths[:, None]


@dataclass(frozen=True, slots=True)
class Distinct:
    """Each different batch of a stream once."""

    stream: Stream
    adapters: tuple[int, ...]  # whose batches these are: the first adapter that has each
    rows: Tensor  # (tokens,) int64: row of `stream` that equals each row of the whole
    texts: Tensor  # (texts,) int64: text of `stream` that equals each text of the whole


@dataclass(frozen=True, slots=True)
class Stream:
    """A packed stream. Adapters' offsets live on the host, what the trunk indexes with on the device."""

    ids: Tensor  # (tokens,) int64
    positions: Tensor  # (tokens,) int64, from 0 in each text
    last: Tensor  # (texts,) int64, row of each text's last token
    adapter_starts: NDArray[np.int64]  # (adapters + 1,), in texts
    token_starts: NDArray[np.int64]  # (adapters + 1,), in tokens
    blocks: tuple[Block, ...]
    distinct: Distinct | None = None  # None: every adapter's batch is its own
    layouts: dict[Any, Any] = field(default_factory=dict, compare=False)  # see `layout.layout_of`

    @property
    def adapters(self) -> int:
        """Number of adapters."""
        return len(self.adapter_starts) - 1

    def text_rows(self) -> list[slice]:
        """Each adapter's texts."""
        return [slice(a, b) for a, b in pairwise(self.adapter_starts.tolist())]

    def token_rows(self) -> list[slice]:
        """Each adapter's tokens."""
        return [slice(a, b) for a, b in pairwise(self.token_starts.tolist())]


def pack(
    batches: Sequence[Sequence[Ids]],
    device: torch.device | str = "cpu",
    same: Sequence[Hashable] | None = None,
) -> Stream:
    """One stream of every adapter's batch of texts.

    Args:
        batches: for each adapter its texts, each (length,) int64 ids, length at least 1.
        device: where the stream shall live.
        same: a key for each adapter; those with equal keys have equal batches, dropout masks included.

    Raises:
        ValueError: there is no text, or a text without tokens.

    >>> stream = pack([[np.array([5, 6, 7])], [np.array([8])]])
    >>> stream.positions.tolist(), stream.last.tolist(), stream.token_starts.tolist()
    ([0, 1, 2, 0], [2, 3], [0, 3, 4])
    """
    texts = [text for batch in batches for text in batch]
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    if not len(lengths) or lengths.min() < 1:
        raise ValueError("a stream needs at least one text, and each text at least one token")
    starts = offsets(lengths)
    adapter_starts = offsets(np.array([len(batch) for batch in batches], dtype=np.int64))
    return Stream(
        ids=_to(np.concatenate(texts), device),
        positions=_to(np.arange(starts[-1]) - np.repeat(starts[:-1], lengths), device),
        last=_to(starts[1:] - 1, device),
        adapter_starts=adapter_starts,
        token_starts=starts[adapter_starts],
        blocks=tuple(_blocks(lengths, starts, device)),
        distinct=_distinct(batches, lengths, device, same or range(len(batches))),
    )


def block_width(length: int) -> int:
    """Width of the block that a text of this length stands in: eight steps to each doubling.

    It depends on the text alone, so that a text is computed alike among any neighbours.

    >>> [block_width(n) for n in (1, 7, 9, 31, 33, 100, 1000)]
    [8, 8, 16, 32, 40, 104, 1024]
    """
    step = 1 << max(3, (length - 1).bit_length() - 4)
    return -(-length // step) * step


def block_rows(starts: NDArray[np.int64], lengths: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """(texts, width) rows of texts that start at these rows, each text's last token repeated."""
    return starts[:, None] + np.minimum(np.arange(width), lengths[:, None] - 1)


def offsets(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n + 1,) where each of n things begins that stand in a row, and where the last ends."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _blocks(
    lengths: NDArray[np.int64], starts: NDArray[np.int64], device: torch.device | str
) -> Iterator[Block]:
    widths = np.array([block_width(int(n)) for n in lengths], dtype=np.int64)
    for width in np.unique(widths).tolist():
        members = np.flatnonzero(widths == width)
        most = max(1, MAX_BLOCK_SCORES // width**2)  # texts; one alone may exceed the cap
        for first in range(0, len(members), most):
            texts = members[first : first + most]
            rows = block_rows(starts[texts], lengths[texts], width)
            yield Block(_to(texts, device), _to(lengths[texts], device), width, _to(rows, device))


def _distinct(
    batches: Sequence[Sequence[Ids]],
    lengths: NDArray[np.int64],
    device: torch.device | str,
    keys: Sequence[Hashable],
) -> Distinct | None:
    first = {key: keys.index(key) for key in keys}
    if len(first) == len(keys):
        return None
    adapters = tuple(first.values())
    stream = pack([batches[adapter] for adapter in adapters], device)
    place = {key: texts for key, texts in zip(first, stream.text_rows(), strict=True)}
    texts = np.concatenate([np.arange(place[key].start, place[key].stop) for key in keys])
    own = offsets(np.array([len(text) for k in adapters for text in batches[k]], dtype=np.int64))
    rows = np.arange(lengths.sum()) + np.repeat(own[texts] - offsets(lengths)[:-1], lengths)
    return Distinct(stream, adapters, _to(rows, device), _to(texts, device))


def _to(array: NDArray[np.int64], device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
