"""The packed batch: the texts of several adapters concatenated along one token axis.

Two adapters with two texts each, packed without padding::

    ids             a b c | d e | f | g h i j        (tokens,)
    positions       0 1 2 | 0 1 | 0 | 0 1 2 3        (tokens,)
    last                2     4   5         9        (texts,), each text's last row
    adapter_starts  0             2            4     (adapters + 1,), in texts
    token_starts    0             5           10     (adapters + 1,), in rows

A *row* is an index along the first axis: a token in (tokens, d_model), a text in (texts, d_model).

The whole model works row by row except attention, which works text by text. For attention, texts
of similar length share a `LengthBucket`, a dense array (texts, width). Below, the four texts are in one
bucket of width 4. A shorter text repeats its last row; the causal mask hides the copies::

    texts  lengths  rows
      0       3     0 1 2 2
      1       2     3 4 4 4
      2       1     5 5 5 5
      3       4     6 7 8 9

`nn.ragged.batch` builds packed batches without padding; `nn.static.batch` builds static-shape batches,
padded to one of a few shapes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ids = NDArray[np.int64]  # the token ids of one text, (length,)

MAX_BUCKET_SCORES = 1 << 21
"""Maximum number of attention scores per head in a length bucket; further texts go into a new bucket."""


@dataclass(frozen=True, slots=True)
class LengthBucket:
    """Texts of similar length as a dense array."""

    texts: Tensor  # (texts,) int64, indices into the texts of the packed batch
    lengths: Tensor  # (texts,) int64
    width: int  # at least the largest length
    rows: Tensor  # (texts, width) int64, rows of the packed batch

    @property
    def real(self) -> Tensor:
        """(texts, width) bool: False where a text's last row is repeated."""
        return torch.arange(self.width, device=self.rows.device) < self.lengths[:, None]


@dataclass(frozen=True, slots=True)
class Distinct:
    """The distinct batches of a packed batch, each once.

    Adapters with the same seed see the same texts in the same order. Below the first layer with an
    adapter their activations are identical, so they are computed once and copied to all of them.
    """

    packed: PackedBatch
    adapters: tuple[int, ...]  # for each batch of `packed`, the first adapter with this batch
    rows: Tensor  # (tokens of the full batch,) int64, the row of `packed` with the same token
    texts: Tensor  # (texts of the full batch,) int64, the same text's index in `packed`


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A packed batch. The adapters' offsets are on the host; the backbone's indices are on the device."""

    ids: Tensor  # (tokens,) int64
    positions: Tensor  # (tokens,) int64, from 0 in each text
    last: Tensor  # (texts,) int64, row of each text's last token
    adapter_starts: NDArray[np.int64]  # (adapters + 1,), in texts
    token_starts: NDArray[np.int64]  # (adapters + 1,), in rows
    buckets: tuple[LengthBucket, ...]
    distinct: Distinct | None = None  # None: no two adapters have the same batch
    is_contiguous: bool = False  # whether each text has rows of its own, one after another
    layouts: dict[Any, Any] = field(default_factory=dict, compare=False)  # see `layout.layout_of`

    @property
    def adapters(self) -> int:
        """Number of adapters."""
        return len(self.adapter_starts) - 1

    def text_rows(self) -> list[slice]:
        """For each adapter, the slice of its texts."""
        return [slice(a, b) for a, b in pairwise(self.adapter_starts.tolist())]

    def token_rows(self) -> list[slice]:
        """For each adapter, the slice of its tokens."""
        return [slice(a, b) for a, b in pairwise(self.token_starts.tolist())]


def bucket_rows(starts: NDArray[np.int64], lengths: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Rows of a length bucket.

    Args:
        starts: (texts,) row of each text's first token.
        lengths: (texts,), at most `width`.
        width: width of the bucket.

    Returns:
        (texts, width) int64; a shorter text repeats its last row.

    >>> bucket_rows(np.array([0, 3]), np.array([3, 2]), 4)
    array([[0, 1, 2, 2],
           [3, 4, 4, 4]])
    """
    return starts[:, None] + np.minimum(np.arange(width), lengths[:, None] - 1)


def offsets(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n + 1,) int64: the start of each of n consecutive segments, and the end of the last.

    >>> offsets(np.array([3, 2, 4]))
    array([0, 3, 5, 9])
    """
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
