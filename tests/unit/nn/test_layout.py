"""A layout maps every head of every row to its place in the length buckets, and back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rankwise.nn.batch import PackedBatch
from rankwise.nn.layout import Layout, layout_of
from rankwise.nn.ragged.batch import pack
from tests.unit.nn.models import texts

LENGTHS = [[7, 1, 20, 8], [6, 33, 7]]
SHAPES = [(4, 4), (6, 2), (3, 1)]
shapes = pytest.mark.parametrize(("heads", "kv_heads"), SHAPES)
pooling = pytest.mark.parametrize("pooled", [False, True])


def named_heads(packed: PackedBatch, heads: int) -> Tensor:
    """(rows of the packed batch, heads, 2): each head holds its row and head index."""
    rows, every = torch.meshgrid(torch.arange(len(packed.ids)), torch.arange(heads), indexing="ij")
    return torch.stack([rows, every], -1)


def gathered(packed: PackedBatch, heads: int, kv_heads: int, pooled: bool) -> tuple[Layout, Tensor]:
    layout = layout_of(packed, heads, kv_heads, pooled)
    return layout, named_heads(packed, heads + 2 * kv_heads).view(-1, 2)[layout.gather]


@shapes
@pooling
def test_every_head_finds_its_place(heads: int, kv_heads: int, pooled: bool) -> None:
    """Buckets are (texts, heads, rows of a text); the padding repeats the last token."""
    packed = pack([texts(n) for n in LENGTHS])
    layout, found = gathered(packed, heads, kv_heads, pooled)
    for bucket, part in zip(packed.buckets, layout.slices, strict=True):
        rows = bucket.rows
        for at, first, count in (
            (part.q, 0, heads),
            (part.k, heads, kv_heads),
            (part.v, heads + kv_heads, kv_heads),
        ):
            expected = rows[:, -1:] if pooled and first == 0 else rows
            dense = found[at].view(len(bucket.texts), count, -1, 2)
            assert torch.equal(dense[..., 0], expected[:, None].expand(-1, count, -1))
            assert sorted(set(dense[..., 1].flatten().tolist())) == list(range(first, first + count))


@shapes
@pooling
def test_scatter_undoes_gather(heads: int, kv_heads: int, pooled: bool) -> None:
    packed = pack([texts(n) for n in LENGTHS])
    layout, found = gathered(packed, heads, kv_heads, pooled)
    every = named_heads(packed, heads + 2 * kv_heads).view(-1, 2)
    there = layout.scatter < len(found)
    assert torch.equal(found[layout.scatter[there]], every[there])
    unread = every[~there]  # with one query per text, the other tokens' query heads are not read
    assert len(unread) == ((len(packed.ids) - len(packed.last)) * heads if pooled else 0)
    assert not set(unread[:, 0].tolist()) & set(packed.last.tolist())
    assert bool((unread[:, 1] < heads).all())


@shapes
@pooling
def test_results_come_back_in_the_order_of_the_rows(heads: int, kv_heads: int, pooled: bool) -> None:
    packed = pack([texts(n) for n in LENGTHS])
    layout = layout_of(packed, heads, kv_heads, pooled)
    rows = torch.arange(len(packed.last if pooled else packed.ids) * heads)
    assert torch.equal(layout.out_gather[layout.out_scatter], rows)
    filled = set(layout.filling.flatten().nonzero().flatten().tolist())
    assert filled == set(range(len(layout.out_gather))) - set(layout.out_scatter.tolist())
    assert not (pooled and filled)


def test_a_layout_is_made_once_for_each_number_of_heads() -> None:
    packed = pack([texts(n) for n in LENGTHS])
    assert layout_of(packed, 4, 2, False) is layout_of(packed, 4, 2, False)
    assert layout_of(packed, 4, 4, False) is not layout_of(packed, 4, 2, False)
    assert layout_of(packed, 4, 2, True) is not layout_of(packed, 4, 2, False)
