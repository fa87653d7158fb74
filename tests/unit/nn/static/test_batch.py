"""An static-shape batch holds the same texts as a packed one, and its step computes the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.nn.batch import Ids, PackedBatch
from rankwise.nn.static.batch import Shape, flatten, order, shape_of, view
from tests.unit.nn.models import texts

often = settings(max_examples=60, deadline=None, derandomize=True)
batches_of_one_size = st.integers(1, 7).flatmap(
    lambda number: st.lists(
        st.lists(st.integers(1, 70), min_size=number, max_size=number), min_size=1, max_size=4
    )
)


def batches_of(lengths: Sequence[Sequence[int]]) -> list[list[Ids]]:
    return [texts(each, seed=k) for k, each in enumerate(lengths)]


def stream_of(batches: list[list[Ids]], same: Sequence[int] | None = None) -> tuple[Shape, PackedBatch]:
    shape = shape_of(batches, same)
    return shape, view(shape, torch.from_numpy(flatten(shape, batches, same)))


@often
@given(batches_of_one_size)
def test_every_text_is_there_once(lengths: list[list[int]]) -> None:
    """In its adapter's rows, in order of length, with its positions; what is left over is zero."""
    batches = batches_of(lengths)
    shape, packed = stream_of(batches)
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
def test_blocks_hold_every_text_once(lengths: list[list[int]]) -> None:
    shape, packed = stream_of(batches_of(lengths))
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
    """Every row of the packed batch finds its token, and every text its text, among the distinct ones."""
    keys = [key % len(lengths) for key in keys]
    made = batches_of(lengths)
    _, packed = stream_of([made[key] for key in keys], keys)
    if len(set(keys)) == len(keys):
        assert packed.distinct is None
        return
    assert packed.distinct is not None
    below, rows, of_texts = packed.distinct.packed, packed.distinct.rows, packed.distinct.texts
    assert below.adapters == len(packed.distinct.adapters) == len(set(keys))
    assert torch.equal(below.ids[rows], packed.ids)
    assert torch.equal(below.positions[rows], packed.positions)
    assert torch.equal(below.ids[below.last[of_texts]], packed.ids[packed.last])


def test_batches_of_like_lengths_have_one_shape() -> None:
    """Short and long texts have places of their own, whatever order they come in."""
    a, b = texts([3, 9, 60, 31]), texts([62, 28, 10, 5])
    assert shape_of([a]) == shape_of([b])
    assert shape_of([a]).groups == ((1, 16), (1, 16), (1, 32), (1, 64))
    assert shape_of([a, a], [7, 7]) != shape_of([a, a], [7, 8])


def test_shapes_are_few() -> None:
    """A thousand batches of texts of emotion's lengths; each shape costs a recording."""
    random = np.random.default_rng(0)
    drawn = np.clip(random.gamma(3.5, 5.5, size=(1000, 32)).astype(int), 2, 87)
    shapes = [shape_of([texts(lengths)]) for lengths in drawn]
    common = sorted((shapes.count(shape) for shape in set(shapes)), reverse=True)
    assert len(common) <= 48
    assert sum(common[:16]) >= 850


@pytest.mark.parametrize("lengths", [[1], [64, 1], [17, 16, 15]])
def test_no_text_is_cut(lengths: list[int]) -> None:
    shape, _ = stream_of([texts(lengths)])
    assert shape.tokens >= sum(lengths)
    assert all(width >= 16 and width & (width - 1) == 0 for _, width in shape.groups)
