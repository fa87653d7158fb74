"""The packed batch: texts of several adapters in one row of tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ids = NDArray[np.int64]


MAX_BUCKET_SCORES = 1 << 21


"""Most attention scores of one head in a length bucket; more texts start another length bucket."""


@dataclass(frozen=True, slots=True)
class LengthBucket:
    """Texts whose lengths round up to the same width, as a dense array."""

    texts: Tensor  # (texts,) int64, which texts of the packed batch
    lengths: Tensor  # (texts,) int64
    width: int
    rows: Tensor  # (texts, width) int64, the packed batch's row at each place

    @property
    def real(self) -> Tensor:
        """(texts, width) bool: False where a row only fills the length bucket up."""
        return torch.arange(self.width, device=self.rows.device) < self.lengths[:, None]


@dataclass(frozen=True, slots=True)
class Distinct:
    """Each different batch of a packed batch once."""

    packed: PackedBatch
    adapters: tuple[int, ...]  # whose batches these are: the first adapter that has each
    rows: Tensor  # (tokens,) int64: row of `packed batch` that equals each row of the whole
    texts: Tensor  # (texts,) int64: text of `packed batch` that equals each text of the whole


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A packed batch. Adapters' offsets live on the host, what the backbone indexes with on the device."""

    ids: Tensor  # (tokens,) int64
    positions: Tensor  # (tokens,) int64, from 0 in each text
    last: Tensor  # (texts,) int64, row of each text's last token
    adapter_starts: NDArray[np.int64]  # (adapters + 1,), in texts
    token_starts: NDArray[np.int64]  # (adapters + 1,), in tokens
    buckets: tuple[LengthBucket, ...]
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


def bucket_rows(starts: NDArray[np.int64], lengths: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """(texts, width) rows of texts that start at these rows, each text's last token repeated."""
    return starts[:, None] + np.minimum(np.arange(width), lengths[:, None] - 1)


def offsets(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n + 1,) where each of n things begins that stand in a row, and where the last ends."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
