"""Dropout masks of a static-shape batch: each mask bit is a hash of its position.

The counterpart of `ragged.masks`.

A counter-based generator (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3") has no
mutable state. Each mask bit is a function of (seed, step, mask name, position), so a CUDA graph can
generate the masks itself; its only input is one key per adapter and step. From the key to the mask, where
h is the hash `_hashed`::

    adapter_key = h32(seed, step)                          `keys`, on the host
    mask_key    = h(adapter_key ^ crc32(mask name))
    word        = h(mask_key ^ h(number))                  32 bits, for two adjacent mask bits
    mask bit    = 16 bits of the word >= threshold         as in `ragged.masks`

The number is the position of the word within the adapter's batch, whose texts are sorted by length. A row
of width 6 takes 3 words::

    column      0 1   2 3   4 5
    row 0        0     1     2
    row 1        3     4     5          number = row * 3 + column // 2

For attention weights, each head of each text has its own key, h(mask_key ^ h(text * heads + head)), and
the number is query * MOST_QUERIES + key // 2. It depends neither on padding nor on the bucket's width, so
a text's masks are the same in any bank.

In a micro-batch, rows and texts keep their numbers from the whole batch (`MicroBatch`).

The hash is "lowbias32", an integer finalizer with two multiplications that Wellons found by search. It
takes a dozen small kernels of torch's, or one of `kernels`, and the masks of many names are drawn at once.
Where the fused kernels compute attention, they draw its masks as well.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise.nn import fused
from rankwise.nn.batch import PackedBatch
from rankwise.nn.fused import MOST_QUERIES, HeadMask
from rankwise.nn.masks import Masks
from rankwise.nn.static.batch import Shape, text_places

AT_ONCE = 1 << 24
"""Mask bits drawn at once, unless a single mask has more: what fits a GPU's cache."""

Names = dict[Hashable, list[str]]
"""Mask kind -> the names of its masks, in order of use; complete after the first step."""


class MicroBatch(NamedTuple):
    """The indices of a packed batch's rows and texts in the whole batches of its adapters."""

    tokens: Tensor  # (adapters, tokens) integers; arbitrary for padding
    texts: Tensor  # (adapters, texts) integers, positions in the batch sorted by length

    def of(self, adapters: Sequence[int]) -> MicroBatch:
        """The same for a subset of the adapters."""
        return MicroBatch(*(torch.stack([numbers[k] for k in adapters]) for numbers in self))


def keys(seeds: Sequence[int], steps: Sequence[int]) -> NDArray[np.int64]:
    """(adapters,) 31-bit keys for the masks of a step, from each adapter's seed and step number."""
    pairs = zip(seeds, steps, strict=True)
    return np.array(
        [np.random.SeedSequence(pair).generate_state(1)[0] >> 1 for pair in pairs], dtype=np.int64
    )


class StepMasks(Masks):
    """The masks of one step of several adapters, for a static-shape batch.

    Args:
        keys: (adapters,) integers on the packed batch's device, from `keys`.
        packed: the step's packed batch.
        shape: shape of the packed batch.
        names: mask names of earlier steps; this step adds new ones.
        micro_batch: set if the packed batch holds micro-batches.
    """

    def __init__(
        self,
        keys: Tensor,
        packed: PackedBatch,
        shape: Shape,
        names: Names,
        micro_batch: MicroBatch | None = None,
    ) -> None:
        self.keys, self.packed, self.shape, self.names = keys.to(torch.int32), packed, shape, names
        self.micro_batch, self.device = micro_batch, packed.ids.device
        self._drawn: dict[tuple[Hashable, str], Tensor] = {}

    def distinct(self) -> StepMasks:
        """The masks for the packed batch's distinct batches."""
        distinct = self.packed.distinct
        if distinct is None:
            return self
        keys = torch.stack([self.keys[k] for k in distinct.adapters])
        micro_batch = self.micro_batch and self.micro_batch.of(distinct.adapters)
        return StepMasks(keys, distinct.packed, self.shape, self.names, micro_batch)

    def rows(self, name: str, width: int, rates: Sequence[float], pooled: bool) -> Tensor:
        """See `Masks.rows`."""
        rows = self.shape.texts if pooled else self.shape.tokens
        draw = partial(self._draw_rows, rows, width, rates, pooled)
        kind = "rows", len(self.keys), width, tuple(rates), pooled
        mask = self._mask(kind, name, draw, rows * width)  # (adapters, rows, width)
        return mask.reshape(-1, width)

    def attention(self, name: str, heads: int, rate: float, pooled: bool) -> list[Tensor]:
        """See `Masks.attention`."""
        masks = []
        for i, (places, (texts, width)) in enumerate(
            zip(text_places(self.shape), self.shape.groups, strict=True)
        ):
            queries = 1 if pooled else width
            draw = partial(self._draw_heads, places, heads, queries, width, rate)
            kind = "attention", len(self.keys), heads, rate, pooled, i
            mask = self._mask(kind, name, draw, texts * heads * queries * width)
            masks.append(mask.view(-1, heads, queries, width))  # (adapters * texts, ...)
        return masks

    def undrawn(self, name: str) -> HeadMask | None:
        """See `Masks.undrawn`."""
        return HeadMask(self.keys, self._texts, _crc(name)) if fused.fits(self.packed) else None

    @cached_property
    def _texts(self) -> Tensor:
        """(texts,) int32: the number of each text in its adapter's batch."""
        if self.micro_batch is None:
            return self._range(self.shape.texts).repeat(len(self.keys))
        return self.micro_batch.texts.flatten().to(torch.int32)

    def _draw_rows(self, rows: int, width: int, rates: Sequence[float], pooled: bool, keys: Tensor) -> Tensor:
        """(names, adapters) mask keys -> (names, adapters, rows, width) uint8."""
        words = -(-width // 2)  # per row; for an odd width, half of the last word is unused
        if self.micro_batch is None:
            numbers = self._range(rows * words)
        else:
            of_rows = self.micro_batch.texts if pooled else self.micro_batch.tokens  # (adapters, rows)
            numbers = _numbered(of_rows, words)
        decided = fused.decided if fused.used_on(keys) else _decided
        mask = decided(keys, numbers, rates)
        return mask.view(*keys.shape, rows, 2 * words)[..., :width]

    def _draw_heads(
        self, places: slice, heads: int, queries: int, width: int, rate: float, keys: Tensor
    ) -> Tensor:
        """(names, adapters) mask keys -> (names, adapters, heads of all texts, queries * width) uint8."""
        if self.micro_batch is None:
            of_heads = self._range((places.stop - places.start) * heads) + places.start * heads
        else:
            of_heads = _numbered(self.micro_batch.texts[:, places], heads)
        head_keys = _hashed(keys.unsqueeze(-1) ^ _hashed(of_heads))  # (names, adapters, heads of all texts)
        numbers = self._range(queries)[:, None] * MOST_QUERIES + self._range(width // 2)
        return _decided(head_keys, numbers.flatten(), [rate] * len(self.keys))

    def _range(self, stop: int) -> Tensor:
        return torch.arange(stop, dtype=torch.int32, device=self.device)

    def _mask(self, kind: Hashable, name: str, draw: Callable[[Tensor], Tensor], numbers: int) -> Tensor:
        """The mask of one name, with `numbers` elements per adapter.

        It is drawn together with the next names in the list of its kind, which the model will request
        next. In the first step the list is not known yet, and each mask is drawn alone.
        """
        if (kind, name) not in self._drawn:
            known = self.names.setdefault(kind, [])
            if name in known:
                most = max(1, AT_ONCE // (len(self.keys) * numbers))
                start = known.index(name) // most * most
                names = known[start : start + most]
            else:
                known.append(name)
                names = [name]
            keys = torch.stack([self.keys ^ _crc(other) for other in names])
            masks = draw(_hashed(keys)).unbind()
            self._drawn |= zip([(kind, other) for other in names], masks, strict=True)
        return self._drawn[kind, name]


def _numbered(places: Tensor, count: int) -> Tensor:
    """The numbers of `count` items at each place: (adapters, n) -> (adapters, n * count) int32.

    >>> _numbered(torch.tensor([[0, 5]]), 3).tolist()
    [[0, 1, 2, 15, 16, 17]]
    """
    items = torch.arange(count, dtype=torch.int32, device=places.device)
    return (places.to(torch.int32)[..., None] * count + items).flatten(1)


def _decided(keys: Tensor, numbers: Tensor, rates: Sequence[float]) -> Tensor:
    """The mask bits at numbered positions.

    Args:
        keys: (names, adapters, ...) int32.
        numbers: (n,) int32, or (adapters, n) for keys (names, adapters); one word per number.
        rates: each adapter's dropout rate.

    Returns:
        (names, adapters, ..., 2 n) uint8, 1 for kept elements.

    >>> key = torch.tensor([[7]], dtype=torch.int32)
    >>> few, more = (_decided(key, torch.arange(n, dtype=torch.int32), [0.5]) for n in (3, 9))
    >>> few.shape, torch.equal(few, more[..., :6])  # a prefix does not depend on the length
    (torch.Size([1, 1, 6]), True)
    """
    words = _hashed(keys.unsqueeze(-1) ^ _hashed(numbers))
    bits = words.view(torch.int16)  # two for each word
    thresholds = [round(rate * (1 << 16)) - (1 << 15) for rate in rates]
    if len(set(thresholds)) == 1:
        return (bits >= thresholds[0]).view(torch.uint8)
    # int32, because the threshold of a rate near 1 overflows int16. `new_full`, because a graph cannot copy
    # from the host.
    of_adapters = torch.cat([bits.new_full((1,), threshold, dtype=torch.int32) for threshold in thresholds])
    return (bits >= of_adapters.view(-1, *[1] * (bits.dim() - 2))).view(torch.uint8)


def _hashed(x: Tensor) -> Tensor:
    """A bijection of 32-bit words in which every bit of the result depends on every bit of x.

    `>>` on signed integers shifts in copies of the sign bit, so these are masked off.

    >>> len(set(_hashed(torch.arange(100_000, dtype=torch.int32)).tolist()))
    100000
    """
    x = x + _signed(0x9E3779B9)  # a new tensor; without the offset, 0 would map to 0
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))
    x.mul_(_signed(0x7FEB352D)).bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF))
    x.mul_(_signed(0x846CA68B)).bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))
    return x


def _crc(name: str) -> int:
    return _signed(zlib.crc32(name.encode()))


def _signed(word: int) -> int:
    """The same 32 bits as a signed integer.

    >>> _signed(0xFFFFFFFF)
    -1
    """
    return word - (1 << 32) if word >> 31 else word
