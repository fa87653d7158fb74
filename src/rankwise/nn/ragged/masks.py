"""Dropout masks that depend on an adapter's seed, step and target module, and on nothing else.

Each mask is cut from a packed batch of random 16-bit numbers, keyed by (seed, step, target module name): an
adapter meets the same masks alone as among any neighbors, and again after a resume. Sixteen bits
put the drop rate within 1e-5 of what was asked. On the CPU the numbers are SFC64's raw words, which
come at memory speed; bernoulli draws would take a fifth of a training step.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rankwise.nn.batch import LengthBucket, PackedBatch
from rankwise.nn.masks import Masks
from rankwise.nn.ragged.batch import bucket_width


class MicroBatch(NamedTuple):
    """Which texts of its batch a packed batch holds, where a batch of one adapter is computed in parts."""

    lengths: tuple[int, ...]  # of every text of the batch
    first: int  # text of the batch that is the packed batch's first


class SeededMasks(Masks):
    """Masks from a random generator of each adapter's own.

    Args:
        seeds: each adapter's seed.
        step: the step, from 0.
        packed batch: the step's packed texts.
        part: where the packed batch is a part of one adapter's batch; its masks are those parts of the
            batch's masks.
    """

    def __init__(
        self, seeds: Sequence[int], step: int, packed: PackedBatch, micro_batch: MicroBatch | None = None
    ) -> None:
        self.seeds, self.step, self.packed, self.micro_batch = seeds, step, packed, micro_batch
        self.device = packed.ids.device

    def distinct(self) -> SeededMasks:
        """The masks of the packed batch's distinct batches."""
        distinct = self.packed.distinct
        if distinct is None:
            return self
        return SeededMasks([self.seeds[k] for k in distinct.adapters], self.step, distinct.packed)

    def rows(self, module: str, width: int, rates: Sequence[float], pooled: bool) -> Tensor:
        """See `Masks.rows`."""

        def each(length: int) -> int:
            return width if pooled else width * length

        slices = self.packed.text_rows() if pooled else self.packed.token_rows()
        draw = self._drawer(module, each)
        masks = [
            draw(seed, (rows.stop - rows.start) * width, rate)
            for seed, rows, rate in zip(self.seeds, slices, rates, strict=True)
        ]
        return (masks[0] if len(masks) == 1 else torch.cat(masks)).view(-1, width)

    def attention(self, module: str, heads: int, rate: float, pooled: bool) -> list[Tensor]:
        """See `Masks.attention`."""

        def each(length: int) -> int:
            width = bucket_width(length)
            return heads * width * (1 if pooled else width)

        shapes = np.empty((self.packed.last.shape[0], 2), dtype=np.int64)  # queries, width
        for bucket in self.packed.buckets:
            shapes[bucket.texts.tolist()] = (1 if pooled else bucket.width, bucket.width)
        sizes = heads * shapes.prod(axis=1)
        draw = self._drawer(module, each)
        parts: list[Tensor] = []
        for seed, texts in zip(self.seeds, self.packed.text_rows(), strict=True):
            parts += torch.split(draw(seed, int(sizes[texts].sum()), rate), sizes[texts].tolist())
        return [self._of_bucket(bucket, parts, heads) for bucket in self.packed.buckets]

    @staticmethod
    def _of_bucket(bucket: LengthBucket, parts: Sequence[Tensor], heads: int) -> Tensor:
        texts = bucket.texts.tolist()
        return torch.stack([parts[i] for i in texts]).view(len(texts), heads, -1, bucket.width)

    def _drawer(self, module: str, each: Callable[[int], int]) -> Callable[[int, int, float], Tensor]:
        """`draw` at a target module; what adapters of one seed share is drawn once.

        `each` says how many numbers a text of a length takes: of a part, the whole batch's are drawn.
        """
        whole = lru_cache(None)(partial(draw, self.step, module, self.device))
        if self.micro_batch is None:
            return whole
        sizes = [each(length) for length in self.micro_batch.lengths]
        start, total = sum(sizes[: self.micro_batch.first]), sum(sizes)
        return lambda seed, count, rate: whole(seed, total, rate)[start : start + count]


def draw(step: int, module: str, device: torch.device, seed: int, count: int, rate: float) -> Tensor:
    """(count,) uint8, 1 where a number is kept; a function of the arguments and nothing else.

    Bytes, since on a CPU torch converts and multiplies them several times faster than bools.
    """
    if not rate:
        return torch.ones(count, dtype=torch.uint8, device=device)
    key = np.random.SeedSequence([seed, step, zlib.crc32(module.encode())])
    least = round(rate * (1 << 16)) - (1 << 15)  # of 16 random bits, as a signed number
    if device.type == "cpu":
        words = np.random.SFC64(key).random_raw(-(-count // 4))
        return torch.from_numpy(words.view(np.int16)[:count] >= least).view(torch.uint8)
    generator = torch.Generator(device).manual_seed(int(key.generate_state(1, np.uint64)[0] >> 1))
    bits = torch.empty(count, dtype=torch.int16, device=device)
    bits.random_(-(1 << 15), 1 << 15, generator=generator)
    return (bits >= least).view(torch.uint8)
