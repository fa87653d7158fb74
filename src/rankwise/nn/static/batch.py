"""Batches of few fixed shapes, as a CUDA graph needs them.

A graph replays the very kernels that it recorded, so nothing may change but the numbers in its
tensors. In an static-shape batch every adapter has the same number of texts and takes the same number of
tokens, the last ones filled up with zeros that belong to no text; its texts stand in order of
length, and the same places of every adapter's order stand in the same length bucket.

All that changes from step to step lies in one flat array, so that it goes to the device in one copy.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise.nn.batch import Distinct, Ids, LengthBucket, PackedBatch, bucket_rows, offsets

GROUPS = 4
"""Blocks of a packed batch: with more, less of attention is padding, and there are more different shapes."""
LEAST_WIDTH = 16
"""Width of the narrowest length bucket; the others are its doubles, so that few shapes occur."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the kernels of a step depend on."""

    adapters: int
    texts: int  # of each adapter
    tokens: int  # of each adapter, with those that fill it up
    groups: tuple[tuple[int, int], ...]  # of each length bucket: texts of one adapter, width
    distinct: tuple[int, ...] | None  # as `packing.Distinct` has it; None: every batch is its own


def shape_of(batches: Sequence[Sequence[Ids]], same: Sequence[Hashable] | None = None) -> Shape:
    """The shape that these batches fit; batches of like lengths have equal ones.

    Args:
        batches: for each adapter as many texts, each (length,) int64 ids, length at least 1.
        same: as for `packing.pack`.

    >>> shape_of([[np.arange(5), np.arange(30)], [np.arange(9), np.arange(17)]])
    Shape(adapters=2, texts=2, tokens=40, groups=((1, 16), (1, 32)), distinct=None)
    """
    lengths = np.sort([[len(text) for text in batch] for batch in batches], axis=1)  # (adapters, texts)
    keys = list(same or range(len(batches)))
    first = tuple(keys.index(key) for key in dict.fromkeys(keys))
    return Shape(
        adapters=len(batches),
        texts=lengths.shape[1],
        tokens=_rounded(int(lengths.sum(1).max())),
        groups=tuple(
            (len(places), _width(int(lengths[:, places].max())))
            for places in np.array_split(np.arange(lengths.shape[1]), min(GROUPS, lengths.shape[1]))
        ),
        distinct=None if len(first) == len(keys) else first,
    )


def order(batch: Sequence[Ids]) -> list[int]:
    """The order in which an static-shape batch has an adapter's texts: by length, then as they came."""
    return sorted(range(len(batch)), key=lambda i: len(batch[i]))


def flatten(
    shape: Shape, batches: Sequence[Sequence[Ids]], same: Sequence[Hashable] | None = None
) -> NDArray[np.int64]:
    """Everything of the packed batch that its shape does not say, one after another."""
    batches = [[batch[i] for i in order(batch)] for batch in batches]
    arrays = list(_arrays(shape, batches))
    if shape.distinct is not None:
        keys = list(same or ())
        arrays += _arrays(_below(shape), [batches[k] for k in shape.distinct])
        place = np.array([shape.distinct.index(keys.index(key)) for key in keys])[:, None]
        arrays += [place * size + np.arange(size) for size in (shape.tokens, shape.texts)]
    return np.concatenate([array.ravel() for array in arrays])


def view(shape: Shape, flat: Tensor) -> PackedBatch:
    """The packed batch whose contents are in `flat`, which it shares."""
    fields = iter(torch.split(flat, [prod(field) for field in _fields(shape)]))
    packed = _stream(shape, fields)
    if shape.distinct is None:
        return packed
    below = _stream(_below(shape), fields)
    return replace(packed, distinct=Distinct(below, shape.distinct, next(fields), next(fields)))


def _below(shape: Shape) -> Shape:
    return replace(shape, adapters=len(shape.distinct or ()), distinct=None)


def _fields(shape: Shape) -> list[tuple[int, ...]]:
    """Shapes of the arrays that `flatten` joins."""
    every = shape.adapters
    fields: list[tuple[int, ...]] = [(every, shape.tokens), (every, shape.tokens), (every, shape.texts)]
    for texts, width in shape.groups:
        fields += [(every, texts), (every, texts), (every, texts, width)]
    if shape.distinct is not None:
        fields += [*_fields(_below(shape)), (every, shape.tokens), (every, shape.texts)]
    return fields


def _arrays(shape: Shape, batches: Sequence[Sequence[Ids]]) -> Iterator[NDArray[np.int64]]:
    """The fields of one packed batch, in the order of `_fields`."""
    ids = np.zeros((shape.adapters, shape.tokens), dtype=np.int64)
    positions = np.zeros_like(ids)
    lengths = np.array([[len(text) for text in batch] for batch in batches], dtype=np.int64)
    starts = np.stack([offsets(each)[:-1] for each in lengths])  # (adapters, texts), in an adapter's tokens
    for k, batch in enumerate(batches):
        filled = slice(0, int(lengths[k].sum()))
        ids[k, filled] = np.concatenate(batch)
        positions[k, filled] = np.arange(filled.stop) - np.repeat(starts[k], lengths[k])
    starts += np.arange(shape.adapters)[:, None] * shape.tokens
    numbers = np.arange(shape.adapters * shape.texts).reshape(shape.adapters, shape.texts)
    yield from (ids, positions, starts + lengths - 1)
    for places, (_, width) in zip(_places(shape), shape.groups, strict=True):
        yield numbers[:, places]
        yield lengths[:, places]
        yield bucket_rows(starts[:, places].ravel(), lengths[:, places].ravel(), width)


def _stream(shape: Shape, fields: Iterator[Tensor]) -> PackedBatch:
    steps = np.arange(shape.adapters + 1)
    ids, positions, last = next(fields), next(fields), next(fields)
    buckets = [
        LengthBucket(next(fields), next(fields), width, next(fields).view(-1, width))
        for _, width in shape.groups
    ]
    return PackedBatch(ids, positions, last, steps * shape.texts, steps * shape.tokens, tuple(buckets))


def _places(shape: Shape) -> Iterator[slice]:
    """Each length bucket's part of an adapter's texts, in order of length."""
    ends = offsets(np.array([texts for texts, _ in shape.groups], dtype=np.int64)).tolist()
    return (slice(a, b) for a, b in pairwise(ends))


def _width(length: int) -> int:
    """The least power of two that is no shorter, from `LEAST_WIDTH` on."""
    return max(LEAST_WIDTH, 1 << (length - 1).bit_length())


def _rounded(tokens: int) -> int:
    """Tokens, rounded up to one of four steps to each doubling."""
    step = 1 << max(3, (tokens - 1).bit_length() - 3)
    return -(-tokens // step) * step
