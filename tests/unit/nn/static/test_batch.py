"""A static-shape batch contains every text once, has few shapes, and round-trips through one table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.nn.batch import Ids, PackedBatch
from rankwise.nn.static.batch import Shape, fields, flatten, order, pack, shape_of, split, unpack
from tests.unit.nn.models import texts

often = settings(max_examples=60, deadline=None, derandomize=True)
batches_of_one_size = st.integers(1, 7).flatmap(
    lambda number: st.lists(
        st.lists(st.integers(1, 70), min_size=number, max_size=number), min_size=1, max_size=4
    )
)


def batches_of(lengths: Sequence[Sequence[int]]) -> list[list[Ids]]:
    return [texts(of_adapter, seed=k) for k, of_adapter in enumerate(lengths)]


def packed_from(batches: list[list[Ids]], same: Sequence[int] | None = None) -> tuple[Shape, PackedBatch]:
    """Pack as a step does, through one flat array."""
    shape, arrays = pack(batches, same)
    table = fields(shape)
    return shape, unpack(shape, split(table, torch.from_numpy(flatten(table, arrays))))


@often
@given(batches_of_one_size)
def test_every_text_is_there_once(lengths: list[list[int]]) -> None:
    """Each text is in its adapter's rows, sorted by length, with its positions; padding is zero."""
    batches = batches_of(lengths)
    shape, packed = packed_from(batches)
    for k, (rows, batch) in enumerate(zip(packed.token_rows(), batches, strict=True)):
        expected = np.concatenate([batch[i] for i in order(batch)])
        assert packed.ids[rows][: len(expected)].tolist() == expected.tolist()
        assert not packed.ids[rows][len(expected) :].any()
        lasts = packed.last[packed.text_rows()[k]]
        assert packed.ids[lasts].tolist() == [batch[i][-1] for i in order(batch)]
        assert packed.positions[lasts].tolist() == sorted(len(text) - 1 for text in batch)
    assert len(packed.ids) == shape.adapters * shape.tokens


@often
@given(batches_of_one_size)
def test_buckets_have_every_text_once(lengths: list[list[int]]) -> None:
    shape, packed = packed_from(batches_of(lengths))
    seen: list[int] = []
    for bucket in packed.buckets:
        for text, length, row in zip(bucket.texts, bucket.lengths.tolist(), bucket.rows, strict=True):
            assert packed.positions[row].tolist() == [*range(length), *[length - 1] * (bucket.width - length)]
            assert row[-1] == packed.last[text]
        seen += bucket.texts.tolist()
    assert sorted(seen) == list(range(shape.adapters * shape.texts))


@often
@given(batches_of_one_size, st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_distinct_batches(lengths: list[list[int]], keys: list[int]) -> None:
    """Every row and every text of the packed batch maps to its counterpart in the distinct batches."""
    keys = [key % len(lengths) for key in keys]
    chosen = batches_of(lengths)
    _, packed = packed_from([chosen[key] for key in keys], keys)
    if len(set(keys)) == len(keys):
        assert packed.distinct is None
        return
    assert packed.distinct is not None
    below, rows, of_texts = packed.distinct.packed, packed.distinct.rows, packed.distinct.texts
    assert below.adapters == len(packed.distinct.adapters) == len(set(keys))
    assert torch.equal(below.ids[rows], packed.ids)
    assert torch.equal(below.positions[rows], packed.positions)
    assert torch.equal(below.ids[below.last[of_texts]], packed.ids[packed.last])


def test_batches_of_similar_lengths_have_one_shape() -> None:
    """The order of the texts does not matter, because they are sorted by length."""
    a, b = texts([3, 9, 60, 31]), texts([62, 28, 10, 5])
    assert shape_of([a]) == shape_of([b])
    assert shape_of([a]).groups == ((1, 16), (1, 16), (1, 32), (1, 64))
    assert shape_of([a, a], [7, 7]) != shape_of([a, a], [7, 8])


def test_shapes_are_few() -> None:
    """A thousand batches with emotion's text lengths; each shape costs a recording."""
    random = np.random.default_rng(0)
    drawn = np.clip(random.gamma(3.5, 5.5, size=(1000, 32)).astype(int), 2, 87)
    shapes = [shape_of([texts(lengths)]) for lengths in drawn]
    common = sorted((shapes.count(shape) for shape in set(shapes)), reverse=True)
    assert len(common) <= 48
    assert sum(common[:16]) >= 850


@pytest.mark.parametrize("lengths", [[1], [64, 1], [17, 16, 15]])
def test_no_text_is_cut(lengths: list[int]) -> None:
    shape, _ = packed_from([texts(lengths)])
    assert shape.tokens >= sum(lengths)
    assert all(width >= 16 and width & (width - 1) == 0 for _, width in shape.groups)


def test_an_array_that_does_not_fit_the_table_is_refused() -> None:
    """Missing, extra and misshapen arrays are rejected, because they would shift everything after them."""
    shape, arrays = pack([texts([3, 9])])
    table = fields(shape)
    for wrong in (
        {name: array for name, array in arrays.items() if name != "positions"},
        arrays | {"lengths": arrays["last"]},
        arrays | {"ids": arrays["ids"][:, :-1]},
    ):
        with pytest.raises(ValueError, match="do not fit the table"):
            flatten(table, wrong)


def test_the_arrays_share_the_flat_tensor() -> None:
    """A graph reads the buffer that it was recorded with, so the arrays must not be copies."""
    shape, arrays = pack([texts([3, 9])] * 2, [7, 7])
    table = fields(shape)
    flat = torch.from_numpy(flatten(table, arrays))
    packed = unpack(shape, split(table, flat))
    assert packed.distinct is not None
    flat.fill_(-5)
    inside = [packed.ids, packed.positions, packed.last, packed.distinct.rows, packed.distinct.texts]
    for bucket in (*packed.buckets, *packed.distinct.packed.buckets):
        inside += [bucket.texts, bucket.lengths, bucket.rows]
    assert all(bool((tensor == -5).all()) for tensor in inside)
