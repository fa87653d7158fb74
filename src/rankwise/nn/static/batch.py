"""Builds static-shape batches, whose few shapes suit CUDA graphs. The counterpart of `ragged.batch`.

A graph replays exactly the kernels that were recorded, so two batches of the same `Shape` may only differ
in the contents of their tensors. Every adapter therefore has the same number of texts and of rows. Its
texts are sorted by length, and texts at the same positions of every adapter's order share a length
bucket. Two adapters with texts of 5, 30 and of 9, 17 tokens::

    Shape(adapters=2, texts=2, tokens=40, groups=((1, 16), (1, 32)))

    rows        0 .. 4    5 .. 34    35 .. 39  | 40 .. 48   49 .. 65   66 .. 79
                5 tokens  30 tokens  padding   | 9 tokens   17 tokens  padding
    bucket 0    5 -> 16                          9 -> 16                             width 16
    bucket 1              30 -> 32                          17 -> 32                 width 32

Padding belongs to no text: it has id 0 and takes part in the matrix products, but its results are never
read. Row counts and bucket widths are rounded up, so that few shapes occur in training.

Everything that changes from step to step is stored in one flat array of integers, which is copied to the
device at once. `fields` lists the names and shapes of its parts, in order; `flatten` (writing) and
`split` (reading) both follow it::

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
from rankwise.nn.fused import MOST_TOKENS

GROUPS = 4
"""Length buckets per batch: more buckets mean less padding in attention, but more distinct shapes."""

MIN_WIDTH = 16
"""Width of the narrowest length bucket; wider ones are power-of-two multiples, so that few shapes occur."""

Fields = dict[str, tuple[int, ...]]  # name -> shape of an array, in storage order
Arrays = dict[str, NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Shape:
    """Everything that determines the kernels of a step."""

    adapters: int
    texts: int  # per adapter
    tokens: int  # per adapter, including padding
    groups: tuple[tuple[int, int], ...]  # for each length bucket: texts per adapter, width
    distinct: tuple[int, ...] | None  # as `Distinct.adapters`; None: no two adapters have the same batch


def shape_of(
    batches: Sequence[Sequence[Ids]], same: Sequence[Hashable] | None = None, fused: bool = False
) -> Shape:
    """The shape of these batches; batches of similar lengths have equal shapes.

    Args:
        batches: for each adapter its texts, the same number for all, each (length,) int64 ids, not empty.
        same: as for `pack`.
        fused: as for `pack`.

    >>> shape_of([[np.arange(5), np.arange(30)], [np.arange(9), np.arange(17)]])
    Shape(adapters=2, texts=2, tokens=40, groups=((1, 16), (1, 32)), distinct=None)
    """
    lengths = np.sort([[len(text) for text in batch] for batch in batches], axis=1)  # (adapters, texts)
    keys = list(same or range(len(batches)))
    first = tuple(keys.index(key) for key in dict.fromkeys(keys))
    groups = 1 if fused and lengths.max() <= MOST_TOKENS else GROUPS
    places = np.array_split(np.arange(lengths.shape[1]), min(groups, lengths.shape[1]))
    return Shape(
        adapters=len(batches),
        texts=lengths.shape[1],
        tokens=rounded(int(lengths.sum(1).max())),
        groups=tuple((len(group), _width(int(lengths[:, group].max()))) for group in places),
        distinct=None if len(first) == len(keys) else first,
    )


def order(batch: Sequence[Ids]) -> list[int]:
    """Indices of one adapter's texts sorted by length; the sort is stable.

    >>> order([np.arange(9), np.arange(2), np.arange(9)])
    [1, 0, 2]
    """
    return sorted(range(len(batch)), key=lambda i: len(batch[i]))


def pack(
    batches: Sequence[Sequence[Ids]], same: Sequence[Hashable] | None = None, fused: bool = False
) -> tuple[Shape, Arrays]:
    """The shape of a packed batch of these texts, and its arrays on the host.

    Args:
        batches: for each adapter its texts, the same number for all, each (length,) int64 ids, not empty.
        same: a key for each adapter; adapters with equal keys have the same texts and dropout masks.
        fused: whether the fused kernels attend within short texts. They need no length buckets, so one
            bucket is made, and there are fewer shapes.

    Returns:
        The shape, and an array for each name of `fields(shape)`.

    >>> shape, arrays = pack([[np.array([7, 8, 9]), np.array([5])]])
    >>> arrays["ids"], arrays["last"]
    (array([[5, 7, 8, 9, 0, 0, 0, 0]]), array([[0, 3]]))
    """
    shape = shape_of(batches, same, fused)
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
    """The name and shape of each array of a static-shape batch, in order.

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
    """The arrays of a table concatenated to one, (numbers,) int64.

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
    """The inverse of `flatten`; the arrays are views of `flat`."""
    tensors = torch.split(flat, [prod(shape) for shape in table.values()])
    return {name: part.view(shape) for (name, shape), part in zip(table.items(), tensors, strict=True)}


def unpack(shape: Shape, arrays: Mapping[str, Tensor]) -> PackedBatch:
    """The packed batch of a shape, from its arrays; it shares their memory."""
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
    """The arrays of `fields(shape)`, except for the distinct batches, from batches sorted by length."""
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
        is_contiguous=True,
    )


def text_places(shape: Shape) -> Iterator[slice]:
    """For each length bucket, its slice of one adapter's texts, which are sorted by length."""
    ends = offsets(np.array([texts for texts, _ in shape.groups], dtype=np.int64)).tolist()
    return (slice(a, b) for a, b in pairwise(ends))


def _width(length: int) -> int:
    """The smallest power of two of at least `length` and `MIN_WIDTH`."""
    return max(MIN_WIDTH, 1 << (length - 1).bit_length())


def rounded(tokens: int) -> int:
    """A number rounded up to a multiple of 8, and to one of four steps per power of two."""
    step = 1 << max(3, (tokens - 1).bit_length() - 3)
    return -(-tokens // step) * step
