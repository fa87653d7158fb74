"""Dropout masks that depend on an adapter's seed, step and site, and on nothing else.

Each mask is cut from a stream of random 16-bit numbers, keyed by (seed, step, site name): an
adapter meets the same masks alone as among any neighbours, and again after a resume. Sixteen bits
put the drop rate within 1e-5 of what was asked. On the CPU the numbers are SFC64's raw words, which
come at memory speed; bernoulli draws would take a fifth of a training step.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rankwise.nn.packing import Stream, block_width


class Part(NamedTuple):
    """Which texts of its batch a stream holds, where a batch of one adapter is computed in parts."""

    lengths: tuple[int, ...]  # of every text of the batch
    first: int  # text of the batch that is the stream's first


class Masks:
    """The masks of one step of several adapters.

    Args:
        seeds: each adapter's seed.
        step: the step, from 0.
        stream: the step's packed texts.
        part: where the stream is a part of one adapter's batch; its masks are those parts of the
            batch's masks.
    """

    def __init__(self, seeds: Sequence[int], step: int, stream: Stream, part: Part | None = None) -> None:
        self.seeds, self.step, self.stream, self.part = seeds, step, stream, part
        self.device = stream.ids.device

    def distinct(self) -> Masks:
        """The masks of the stream's distinct batches."""
        distinct = self.stream.distinct
        if distinct is None:
            return self
        return Masks([self.seeds[k] for k in distinct.adapters], self.step, distinct.stream)

    def rows(self, site: str, width: int, rates: Sequence[float], dtype: torch.dtype, pooled: bool) -> Tensor:
        """A mask of ones and zeros for the stream's rows.

        Args:
            site: name that keys the mask.
            width: columns.
            rates: each adapter's drop rate.
            dtype: of the mask.
            pooled: a row is a text, not a token.

        Returns:
            (tokens or texts, width). What it keeps still wants the factor `1 / (1 - rate)`.
        """

        def each(length: int) -> int:
            return width if pooled else width * length

        slices = self.stream.text_rows() if pooled else self.stream.token_rows()
        mask = torch.empty((slices[-1].stop, width), dtype=dtype, device=self.device)
        for adapter, (rows, rate) in enumerate(zip(slices, rates, strict=True)):
            part = mask[rows]
            if rate:
                part.copy_(self._keep(adapter, site, part.numel(), rate, each).view_as(part))
            else:
                part.fill_(1)
        return mask

    def attention(self, site: str, heads: int, rate: float, pooled: bool) -> list[Tensor]:
        """A mask of ones and zeros for each block's attention weights.

        Returns:
            For each block (texts, heads, queries, width) bool, with one query a text if `pooled`,
            else `width` of them. A text's part depends on its own length and its place in its
            adapter's batch, not on who shares its block.
        """

        def each(length: int) -> int:
            width = block_width(length)
            return heads * width * (1 if pooled else width)

        shapes = np.empty((self.stream.last.shape[0], 2), dtype=np.int64)  # queries, width
        for block in self.stream.blocks:
            shapes[block.texts] = (1 if pooled else block.width, block.width)
        sizes = heads * shapes.prod(axis=1)
        parts: list[Tensor] = []
        for adapter, texts in enumerate(self.stream.text_rows()):
            keep = self._keep(adapter, site, int(sizes[texts].sum()), rate, each)
            parts += torch.split(keep, sizes[texts].tolist())
        return [
            torch.stack([parts[i] for i in block.texts]).view(len(block.texts), heads, -1, block.width)
            for block in self.stream.blocks
        ]

    def _keep(self, adapter: int, site: str, count: int, rate: float, each: Callable[[int], int]) -> Tensor:
        """(count,) bool, True where a number is kept; `each` says how many a text of a length takes."""
        if self.part is None:
            return self._draw(adapter, site, count, rate)
        sizes = [each(length) for length in self.part.lengths]
        start = sum(sizes[: self.part.first])
        return self._draw(adapter, site, sum(sizes), rate)[start : start + count]

    def _draw(self, adapter: int, site: str, count: int, rate: float) -> Tensor:
        seed = np.random.SeedSequence([self.seeds[adapter], self.step, zlib.crc32(site.encode())])
        if self.device.type == "cpu":
            words = np.random.SFC64(seed).random_raw(-(-count // 4))
            bits = torch.from_numpy(words.view(np.int16)[:count])
        else:
            generator = torch.Generator(self.device).manual_seed(
                int(seed.generate_state(1, np.uint64)[0] >> 1)
            )
            bits = torch.empty(count, dtype=torch.int16, device=self.device)
            bits.random_(-(1 << 15), 1 << 15, generator=generator)
        return bits >= round(rate * (1 << 16)) - (1 << 15)
