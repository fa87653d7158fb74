"""Dropout masks from seeded generators, one per adapter and mask. The counterpart of `static.masks`.

Each mask is taken from a sequence of random 16-bit integers keyed by (seed, step, mask name). An adapter
therefore gets the same masks alone, in any bank, and after a resume. An element is kept if its integer
reaches a threshold; for rate 0.25, as signed 16-bit integers::

    random words (64 bits)   | w0                        | w1 ...
as 16-bit integers       | -3001 | 17 | -32000 | 9210 | ...
    threshold                  0.25 * 65536 - 32768 = -16384
    mask                         1      1       0       1    ...

With 16 bits, the dropout rate is accurate to 1e-5. On the CPU, SFC64 generates the words at memory speed;
Bernoulli draws would take a fifth of a training step.

For a micro-batch, the masks of the whole batch are drawn and the micro-batch's section is sliced out::

    whole batch    | text 0 | text 1     | text 2 | text 3 |     one sequence of integers
    micro-batch    |                     | text 2 | text 3 |     first = 2
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
    """The position of a micro-batch in one adapter's batch: its texts are those from `first` on."""

    lengths: tuple[int, ...]  # of every text of the whole batch
    first: int  # index in the whole batch of the micro-batch's first text


class StepMasks(Masks):
    """The masks of one step of several adapters, with one generator per adapter and mask.

    Args:
        seeds: each adapter's seed.
        steps: each adapter's step number, from 0.
        packed: the step's packed batch.
        micro_batches: for each adapter, the place of its micro-batch; None if the batches are whole.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        steps: Sequence[int],
        packed: PackedBatch,
        micro_batches: Sequence[MicroBatch] | None = None,
    ) -> None:
        self.seeds, self.steps, self.packed, self.micro_batches = seeds, steps, packed, micro_batches
        self.device = packed.ids.device

    def distinct(self) -> StepMasks:
        """The masks for the packed batch's distinct batches."""
        distinct, micro_batches = self.packed.distinct, self.micro_batches
        if distinct is None:
            return self
        seeds, steps = ([of_all[k] for k in distinct.adapters] for of_all in (self.seeds, self.steps))
        places = micro_batches and [micro_batches[k] for k in distinct.adapters]
        return StepMasks(seeds, steps, distinct.packed, places)

    def rows(self, name: str, width: int, rates: Sequence[float], pooled: bool) -> Tensor:
        """See `Masks.rows`."""

        def size_of_text(length: int) -> int:
            return width if pooled else width * length

        slices = self.packed.text_rows() if pooled else self.packed.token_rows()
        draw = self._drawer(name, size_of_text)
        masks = [
            draw(k, (rows.stop - rows.start) * width, rate)
            for k, (rows, rate) in enumerate(zip(slices, rates, strict=True))
        ]
        return (masks[0] if len(masks) == 1 else torch.cat(masks)).view(-1, width)

    def attention(self, name: str, heads: int, rate: float, pooled: bool) -> list[Tensor]:
        """See `Masks.attention`."""

        def size_of_text(length: int) -> int:
            width = bucket_width(length)
            return heads * width * (1 if pooled else width)

        widths = np.empty(len(self.packed.last), dtype=np.int64)  # of each text's bucket
        for bucket in self.packed.buckets:
            widths[bucket.texts.tolist()] = bucket.width
        sizes = heads * widths * (1 if pooled else widths)
        draw = self._drawer(name, size_of_text)
        of_texts: list[Tensor] = []
        for k, texts in enumerate(self.packed.text_rows()):
            mask = draw(k, int(sizes[texts].sum()), rate)
            of_texts += torch.split(mask, sizes[texts].tolist()) if len(mask) else ()
        return [_stacked(bucket, of_texts, heads) for bucket in self.packed.buckets]

    def _drawer(self, name: str, size_of_text: Callable[[int], int]) -> Callable[[int, int, float], Tensor]:
        """`draw` for a mask name: (adapter, count, rate) -> (count,) uint8.

        Masks shared by adapters with equal seed and step are drawn once. `size_of_text` gives the number of
        elements for a text of a given length, which locates a micro-batch in its whole batch.
        """
        whole = lru_cache(None)(partial(draw, name, self.device))

        def of_adapter(adapter: int, count: int, rate: float) -> Tensor:
            seed, step = self.seeds[adapter], self.steps[adapter]
            if self.micro_batches is None:
                return whole(seed, step, count, rate)
            lengths, first = self.micro_batches[adapter]
            sizes = [size_of_text(length) for length in lengths]
            start = sum(sizes[:first])
            return whole(seed, step, sum(sizes), rate)[start : start + count]

        return of_adapter


def draw(name: str, device: torch.device, seed: int, step: int, count: int, rate: float) -> Tensor:
    """(count,) uint8, 1 for kept elements; depends on nothing but the arguments.

    uint8, because on a CPU torch converts and multiplies it several times faster than bool.

    >>> draw("h.0.attn.resid", torch.device("cpu"), 7, 0, 100_000, 0.25).float().mean().round(decimals=2)
    tensor(0.7500)
    """
    if not rate:
        return torch.ones(count, dtype=torch.uint8, device=device)
    key = np.random.SeedSequence([seed, step, zlib.crc32(name.encode())])
    threshold = round(rate * (1 << 16)) - (1 << 15)
    if device.type == "cpu":
        words = np.random.SFC64(key).random_raw(-(-count // 4))  # four integers per word
        return torch.from_numpy(words.view(np.int16)[:count] >= threshold).view(torch.uint8)
    generator = torch.Generator(device).manual_seed(int(key.generate_state(1, np.uint64)[0] >> 1))
    bits = torch.empty(count, dtype=torch.int16, device=device)
    bits.random_(-(1 << 15), 1 << 15, generator=generator)
    return (bits >= threshold).view(torch.uint8)


def _stacked(bucket: LengthBucket, of_texts: Sequence[Tensor], heads: int) -> Tensor:
    """(texts, heads, queries, width): the masks of a length bucket's texts."""
    texts = bucket.texts.tolist()
    return torch.stack([of_texts[i] for i in texts]).view(len(texts), heads, -1, bucket.width)
