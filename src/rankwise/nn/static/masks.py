"""Dropout masks of an static-shape batch, each number a hash of where it stands.

A counter-based generator (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3"): there is
no state, so a CUDA graph can draw the masks, with nothing but a key for each adapter from outside.
The hash is the integer finalizer of two multiplications that Wellons found by search ("lowbias32").

A hash is a dozen small kernels, so the masks of many target modules are drawn at once.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise.nn.batch import PackedBatch
from rankwise.nn.masks import Masks
from rankwise.nn.static.batch import Shape

AT_ONCE = 1 << 24
"""Numbers that are drawn together, where a single target module does not take more: what a GPU's cache holds."""
MOST_QUERIES = 1 << 16
"""More than a text's tokens can be: an attention weight is numbered query * MOST_QUERIES + key / 2."""

Modules = dict[Hashable, list[str]]
"""The target modules that want masks of a kind, in order; known once a step has been made."""


def keys(seeds: Sequence[int], step: int) -> NDArray[np.int64]:
    """(adapters,) a key of 31 bits for each adapter's masks of a step."""
    return np.array(
        [np.random.SeedSequence([seed, step]).generate_state(1)[0] >> 1 for seed in seeds], dtype=np.int64
    )


class HashedMasks(Masks):
    """The masks of one step of several adapters, of an static-shape batch.

    They depend on an adapter's key and batch, and on nothing else: not on how far the packed batch is
    filled up, nor on the width of its length buckets, nor on which target modules are drawn together.

    Args:
        keys: (adapters,) integers on the packed batch's device, from `keys`.
        packed batch: the step's texts.
        shape: the packed batch's.
        target modules: of the steps before, and to be added to.
    """

    def __init__(self, keys: Tensor, packed: PackedBatch, shape: Shape, modules: Modules) -> None:
        self.keys, self.packed, self.shape, self.modules = keys.to(torch.int32), packed, shape, modules
        self.device = packed.ids.device
        self._drawn: dict[tuple[Hashable, str], Tensor] = {}

    def distinct(self) -> HashedMasks:
        """The masks of the packed batch's distinct batches."""
        distinct = self.packed.distinct
        if distinct is None:
            return self
        keys = torch.stack([self.keys[k] for k in distinct.adapters])
        return HashedMasks(keys, distinct.packed, self.shape, self.modules)

    def rows(self, module: str, width: int, rates: Sequence[float], pooled: bool) -> Tensor:
        """See `Masks.rows`."""
        rows = self.shape.texts if pooled else self.shape.tokens

        def draw(
            keys: Tensor,
        ) -> Tensor:  # (target modules, adapters) -> (target modules, adapters, rows * width)
            return _kept(keys, self._range(-(-rows * width // 2)), rates)[..., : rows * width]

        kind = "rows", len(self.keys), width, tuple(rates), pooled
        return self._of(kind, module, draw, rows * width).reshape(-1, width)

    def attention(self, module: str, heads: int, rate: float, pooled: bool) -> list[Tensor]:
        """See `Masks.attention`."""
        masks, first = [], 0
        for bucket, (texts, width) in enumerate(self.shape.groups):
            queries, heads_before = 1 if pooled else width, first * heads
            of_bucket = partial(self._heads_kept, texts * heads, heads_before, queries, width, rate)
            kind = "attention", len(self.keys), heads, rate, pooled, bucket
            found = self._of(kind, module, of_bucket, texts * heads * queries * width)
            masks.append(found.view(-1, heads, queries, width))
            first += texts
        return masks

    def _heads_kept(
        self, heads: int, before: int, queries: int, width: int, rate: float, keys: Tensor
    ) -> Tensor:
        """(target modules, adapters) keys -> (target modules, adapters, heads of all texts, queries * width) uint8."""
        numbers = self._range(queries)[:, None] * MOST_QUERIES + self._range(width // 2)
        of_heads = _mixed(keys.unsqueeze(-1) ^ _mixed(self._range(heads) + before))
        return _kept(of_heads, numbers.flatten(), [rate] * len(self.keys))

    def _range(self, stop: int) -> Tensor:
        return torch.arange(stop, dtype=torch.int32, device=self.device)

    def _of(self, kind: Hashable, module: str, draw: Callable[[Tensor], Tensor], numbers: int) -> Tensor:
        """A target module's mask, of so many numbers an adapter; drawn with its neighbors' where they are known."""
        if (kind, module) not in self._drawn:
            known = self.modules.setdefault(kind, [])
            if module in known:
                most = max(1, AT_ONCE // (len(self.keys) * numbers))
                start = known.index(module) // most * most
                modules = known[start : start + most]
            else:
                known.append(module)
                modules = [module]
            keys = torch.stack([self.keys ^ _signed(zlib.crc32(each.encode())) for each in modules])
            self._drawn |= zip([(kind, each) for each in modules], draw(_mixed(keys)).unbind(), strict=True)
        return self._drawn[kind, module]


def _kept(keys: Tensor, numbers: Tensor, rates: Sequence[float]) -> Tensor:
    """What is kept, by hashes of key and number.

    Args:
        keys: (target modules, adapters, ...) int32.
        numbers: (n,) int32, each of which gives a word, and so two neighboring decisions.
        rates: each adapter's drop rate.

    Returns:
        (target modules, adapters, ..., 2 n) uint8.
    """
    words = _mixed(keys.unsqueeze(-1) ^ _mixed(numbers))
    bits = words.view(torch.int16)
    least = [round(rate * (1 << 16)) - (1 << 15) for rate in rates]
    if len(set(least)) == 1:
        return (bits >= least[0]).view(torch.uint8)
    levels = torch.cat([bits.new_full((1,), each, dtype=torch.int32) for each in least])
    return (bits >= levels.view(-1, *[1] * (bits.dim() - 2))).view(torch.uint8)


def _mixed(x: Tensor) -> Tensor:
    """A bijection of 32-bit words in which every bit depends on all; x is left as it is."""
    x = x + _signed(0x9E3779B9)  # so that 0 does not stay 0
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))
    x.mul_(_signed(0x7FEB352D)).bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF))
    x.mul_(_signed(0x846CA68B)).bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))
    return x


def _signed(word: int) -> int:
    """The same 32 bits as a signed number."""
    return word - (1 << 32) if word >> 31 else word
