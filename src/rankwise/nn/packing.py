"""Ragged texts -> one packed stream of tokens, without padding.

The stream of two adapters with two texts each::

    ids             a b c | d e | f | g h i j        (tokens,)
    positions       0 1 2 | 0 1 | 0 | 0 1 2 3        (tokens,)
    text_starts     0       3     5   6       10     (texts + 1,)
    adapter_starts  0             2            4     (adapters + 1,), in texts

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

    texts: NDArray[np.int64]  # (texts,) which texts of the stream
    width: int
    rows: NDArray[np.int64]  # (texts, width) the stream's row at each place
    real: NDArray[np.bool_]  # (texts, width) False where a row only fills the block up


@dataclass(frozen=True, slots=True)
class Distinct:
    """Each different batch of a stream once."""

    stream: Stream
    adapters: tuple[int, ...]  # whose batches these are: the first adapter that has each
    rows: Tensor  # (tokens,) int64: row of `stream` that equals each row of the whole
    texts: Tensor  # (texts,) int64: text of `stream` that equals each text of the whole


@dataclass(frozen=True, slots=True)
class Stream:
    """A packed stream. Offsets live on the host, what the trunk indexes with on the device."""

    ids: Tensor  # (tokens,) int64
    positions: Tensor  # (tokens,) int64, from 0 in each text
    text_starts: NDArray[np.int64]  # (texts + 1,)
    adapter_starts: NDArray[np.int64]  # (adapters + 1,), in texts
    last: Tensor  # (texts,) int64, row of each text's last token
    blocks: tuple[Block, ...]
    distinct: Distinct | None = None  # None: every adapter's batch is its own
    layouts: dict[Any, Any] = field(default_factory=dict, compare=False)  # see `layout.layout_of`

    @property
    def adapters(self) -> int:
        """Number of adapters."""
        return len(self.adapter_starts) - 1

    def text_rows(self) -> list[slice]:
        """Each adapter's texts."""
        starts = self.adapter_starts.tolist()
        return [slice(a, b) for a, b in pairwise(starts)]

    def token_rows(self) -> list[slice]:
        """Each adapter's tokens."""
        starts = self.text_starts[self.adapter_starts].tolist()
        return [slice(a, b) for a, b in pairwise(starts)]


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
    >>> stream.positions.tolist(), stream.text_starts.tolist()
    ([0, 1, 2, 0], [0, 3, 4])
    """
    texts = [text for batch in batches for text in batch]
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    if not len(lengths) or lengths.min() < 1:
        raise ValueError("a stream needs at least one text, and each text at least one token")
    text_starts = _starts(lengths)
    positions = np.arange(text_starts[-1]) - np.repeat(text_starts[:-1], lengths)
    return Stream(
        ids=_to(np.concatenate(texts), device),
        positions=_to(positions, device),
        text_starts=text_starts,
        adapter_starts=_starts(np.array([len(batch) for batch in batches], dtype=np.int64)),
        last=_to(text_starts[1:] - 1, device),
        blocks=tuple(_blocks(lengths, text_starts)),
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


def _blocks(lengths: NDArray[np.int64], text_starts: NDArray[np.int64]) -> Iterator[Block]:
    widths = np.array([block_width(int(n)) for n in lengths], dtype=np.int64)
    for width in np.unique(widths).tolist():
        members = np.flatnonzero(widths == width)
        most = max(1, MAX_BLOCK_SCORES // width**2)  # texts; one alone may exceed the cap
        for first in range(0, len(members), most):
            texts = members[first : first + most]
            n, steps = lengths[texts, None], np.arange(width)
            yield Block(texts, width, text_starts[texts, None] + np.minimum(steps, n - 1), steps < n)


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
    shift = np.repeat(stream.text_starts[texts] - _starts(lengths)[:-1], lengths)
    rows = np.arange(lengths.sum()) + shift
    return Distinct(stream, adapters, _to(rows, device), _to(texts, device))


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _to(array: NDArray[np.int64], device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
