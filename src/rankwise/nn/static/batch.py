"""Texts -> a packed batch of one of a few shapes, as a CUDA graph needs it. The pair of `ragged.batch`.

A graph replays exactly the kernels that were recorded, so between two batches of one `Shape` nothing may
differ but the numbers in the tensors. Every adapter therefore has the same number of texts and takes the
same number of rows; its texts are in order of length, and the same places of every adapter's order share
a length bucket. Two adapters with texts of 5, 30 and of 9, 17 tokens::

    Shape(adapters=2, texts=2, tokens=40, groups=((1, 16), (1, 32)))

    rows        0 .. 4    5 .. 34    35 .. 39  | 40 .. 48   49 .. 65   66 .. 79
                5 tokens  30 tokens  padding   | 9 tokens   17 tokens  padding
    bucket 0    5 -> 16                          9 -> 16                             width 16
    bucket 1              30 -> 32                          17 -> 32                 width 32

Padding belongs to no text: it has id 0, takes part in the matrix products, and nothing reads its results.
Numbers of rows and widths of buckets are rounded up, so that few shapes occur in training.

All that changes from step to step lies in one flat array of integers, which goes to the device in one
copy. `fields` is the table of what lies in it, by name, in order, with shapes; writing (`flatten`) and
reading (`split`) both follow it::

    ids (2, 40) | positions (2, 40) | last (2, 2) | bucket0.texts (2, 1) | bucket0.lengths (2, 1) | ...
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise.nn.batch import Distinct, Ids, LengthBucket, PackedBatch, bucket_rows, offsets

GROUPS = 4
"""Length buckets of a batch: more leave less padding in attention, and make more different shapes."""

MIN_WIDTH = 16
"""Width of the narrowest length bucket; the others are its doubles, so that few shapes occur."""

Fields = dict[str, tuple[int, ...]]  # name -> shape of an array, in the order in which the arrays lie
Arrays = dict[str, NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Shape:
    """All that the kernels of a step depend on."""

    adapters: int
    texts: int  # of each adapter
    tokens: int  # of each adapter, with padding
    groups: tuple[tuple[int, int], ...]  # of each length bucket: texts of one adapter, width
    distinct: tuple[int, ...] | None  # as `Distinct.adapters`; None: no two adapters have the same batch


def shape_of(batches: Sequence[Sequence[Ids]], same: Sequence[Hashable] | None = None) -> Shape:
    """The shape that these batches fit; batches of similar lengths have equal shapes.

    Args:
        batches: for each adapter equally many texts, each (length,) int64 ids, length at least 1.
        same: as for `pack`.

    >>> shape_of([[np.arange(5), np.arange(30)], [np.arange(9), np.arange(17)]])
    Shape(adapters=2, texts=2, tokens=40, groups=((1, 16), (1, 32)), distinct=None)
    """
    lengths = np.sort([[len(text) for text in batch] for batch in batches], axis=1)  # (adapters, texts)
    keys = list(same or range(len(batches)))
    first = tuple(keys.index(key) for key in dict.fromkeys(keys))
    places = np.array_split(np.arange(lengths.shape[1]), min(GROUPS, lengths.shape[1]))
    return Shape(
        adapters=len(batches),
        texts=lengths.shape[1],
        tokens=_rounded(int(lengths.sum(1).max())),
        groups=tuple((len(group), _width(int(lengths[:, group].max()))) for group in places),
        distinct=None if len(first) == len(keys) else first,
    )


def order(batch: Sequence[Ids]) -> list[int]:
    """Indices of one adapter's texts in the order of a static batch: by length, ties as they came.

    >>> order([np.arange(9), np.arange(2), np.arange(9)])
    [1, 0, 2]
    """
    return sorted(range(len(batch)), key=lambda i: len(batch[i]))


def pack(batches: Sequence[Sequence[Ids]], same: Sequence[Hashable] | None = None) -> tuple[Shape, Arrays]:
    """The shape of a packed batch of these texts, and its arrays, on the host.

    Args:
        batches: for each adapter equally many texts, each (length,) int64 ids, length at least 1.
        same: a key for each adapter; those with equal keys have equal batches, dropout masks included.

    Returns:
        The shape, and an array for each name of `fields(shape)`.

    >>> shape, arrays = pack([[np.array([7, 8, 9]), np.array([5])]])
    >>> arrays["ids"], arrays["last"]
    (array([[5, 7, 8, 9, 0, 0, 0, 0]]), array([[0, 3]]))
    """
    shape = shape_of(batches, same)
    batches = [[batch[i] for i in order(batch)] for batch in batches]
    arrays = _arrays(shape, batches)
    if shape.distinct is not None:
        keys = list(same or ())
        distinct = _arrays(_below(shape), [batches[k] for k in shape.distinct])
        arrays |= {f"distinct.{name}": array for name, array in distinct.items()}
        place = np.array([shape.distinct.index(keys.index(key)) for key in keys])[:, None]  # (adapters, 1)
        arrays["distinct.row_of_token"] = place * shape.tokens + np.arange(shape.tokens)
        arrays["distinct.text_of_text"] = place * shape.texts + np.arange(shape.texts)
    return shape, arrays


def fields(shape: Shape) -> Fields:
    """The table of a static batch: the name and shape of each array in it, in order.

    >>> fields(shape_of([[np.arange(5), np.arange(30)]]))["bucket1.rows"]
    (1, 1, 32)
    """
    n = shape.adapters
    table: Fields = {"ids": (n, shape.tokens), "positions": (n, shape.tokens), "last": (n, shape.texts)}
    for i, (texts, width) in enumerate(shape.groups):
        table |= {
            f"bucket{i}.texts": (n, texts),
            f"bucket{i}.lengths": (n, texts),
            f"bucket{i}.rows": (n, texts, width),
        }
    if shape.distinct is not None:
        table |= {f"distinct.{name}": size for name, size in fields(_below(shape)).items()}
        table |= {"distinct.row_of_token": (n, shape.tokens), "distinct.text_of_text": (n, shape.texts)}
    return table


def flatten(table: Fields, arrays: Mapping[str, NDArray[np.int64]]) -> NDArray[np.int64]:
    """The arrays of a table joined to one, (numbers,) int64.

    Raises:
        ValueError: an array is missing, is not in the table, or has another shape.

    >>> flatten({"a": (2,), "b": (1, 2)}, {"b": np.array([[3, 4]]), "a": np.array([1, 2])})
    array([1, 2, 3, 4])
    """
    shapes = {name: array.shape for name, array in arrays.items()}
    if shapes != table:
        raise ValueError(f"the arrays {shapes} do not fit the table {table}")
    return np.concatenate([arrays[name].ravel() for name in table])


def split(table: Fields, flat: Tensor) -> dict[str, Tensor]:
    """The arrays of a table from what `flatten` joined; views of `flat`."""
    tensors = torch.split(flat, [prod(shape) for shape in table.values()])
    return {name: part.view(shape) for (name, shape), part in zip(table.items(), tensors, strict=True)}


def unpack(shape: Shape, arrays: Mapping[str, Tensor]) -> PackedBatch:
    """The packed batch of a shape whose arrays these are; it shares them."""
    packed = _packed(shape, arrays, "")
    if shape.distinct is None:
        return packed
    below = _packed(_below(shape), arrays, "distinct.")
    rows, texts = (arrays[f"distinct.{name}"].flatten() for name in ("row_of_token", "text_of_text"))
    return replace(packed, distinct=Distinct(below, shape.distinct, rows, texts))


def _below(shape: Shape) -> Shape:
    """The shape of the distinct batches."""
    return replace(shape, adapters=len(shape.distinct or ()), distinct=None)


def _arrays(shape: Shape, batches: Sequence[Sequence[Ids]]) -> Arrays:
    """The arrays of `fields(shape)` without the distinct batches', from batches in order of length."""
    n, tokens = shape.adapters, shape.tokens
    ids, positions = np.zeros((n, tokens), dtype=np.int64), np.zeros((n, tokens), dtype=np.int64)
    lengths = np.array([[len(text) for text in batch] for batch in batches], dtype=np.int64)
    starts = np.stack([offsets(of_adapter)[:-1] for of_adapter in lengths])  # (adapters, texts)
    for k, batch in enumerate(batches):
        filled = slice(0, int(lengths[k].sum()))
        ids[k, filled] = np.concatenate(batch)
        positions[k, filled] = np.arange(filled.stop) - np.repeat(starts[k], lengths[k])
    starts += np.arange(n)[:, None] * tokens  # rows of the whole packed batch from here on
    texts = np.arange(n * shape.texts).reshape(n, shape.texts)
    arrays = {"ids": ids, "positions": positions, "last": starts + lengths - 1}
    for i, (places, (count, width)) in enumerate(zip(text_places(shape), shape.groups, strict=True)):
        rows = bucket_rows(starts[:, places].ravel(), lengths[:, places].ravel(), width)
        arrays[f"bucket{i}.texts"], arrays[f"bucket{i}.lengths"] = texts[:, places], lengths[:, places]
        arrays[f"bucket{i}.rows"] = rows.reshape(n, count, width)
    return arrays


def _packed(shape: Shape, arrays: Mapping[str, Tensor], prefix: str) -> PackedBatch:
    """The packed batch in the arrays whose names start with `prefix`."""

    def flat(name: str) -> Tensor:
        return arrays[prefix + name].flatten()

    adapters = np.arange(shape.adapters + 1)
    return PackedBatch(
        ids=flat("ids"),
        positions=flat("positions"),
        last=flat("last"),
        adapter_starts=adapters * shape.texts,
        token_starts=adapters * shape.tokens,
        buckets=tuple(
            LengthBucket(
                flat(f"bucket{i}.texts"),
                flat(f"bucket{i}.lengths"),
                width,
                flat(f"bucket{i}.rows").view(-1, width),
            )
            for i, (_, width) in enumerate(shape.groups)
        ),
    )


def text_places(shape: Shape) -> Iterator[slice]:
    """For each length bucket, its texts among those of one adapter, in order of length."""
    ends = offsets(np.array([texts for texts, _ in shape.groups], dtype=np.int64)).tolist()
    return (slice(a, b) for a, b in pairwise(ends))


def _width(length: int) -> int:
    """The smallest power of two that is no shorter, from `MIN_WIDTH` on."""
    return max(MIN_WIDTH, 1 << (length - 1).bit_length())


def _rounded(tokens: int) -> int:
    """Tokens, rounded up to one of four steps to each doubling, and to a multiple of 8."""
    step = 1 << max(3, (tokens - 1).bit_length() - 3)
    return -(-tokens // step) * step
