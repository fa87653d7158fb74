"""A packed batch contains every token once, and mapping to the length buckets and back is lossless."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.nn.batch import MAX_BUCKET_SCORES, Ids, PackedBatch
from rankwise.nn.ragged import batch as packing
from rankwise.nn.ragged.batch import bucket_width, pack

Lengths = list[list[int]]  # text lengths per adapter

lengths_of_batches: st.SearchStrategy[Lengths] = st.lists(
    st.lists(st.integers(1, 70), min_size=1, max_size=6), min_size=1, max_size=4
)
often = settings(max_examples=60, deadline=None, derandomize=True)


def batches_of(lengths: Lengths) -> list[list[Ids]]:
    """Texts with distinct ids over all adapters."""
    numbers = iter(range(1, 10**6))
    return [[np.array([next(numbers) for _ in range(n)], dtype=np.int64) for n in batch] for batch in lengths]


def packed_from(lengths: Lengths) -> tuple[PackedBatch, list[Ids]]:
    batches = batches_of(lengths)
    return pack(batches), [text for batch in batches for text in batch]


@often
@given(lengths_of_batches)
def test_ids_positions_and_starts(lengths: Lengths) -> None:
    packed, texts = packed_from(lengths)
    assert packed.ids.tolist() == [number for text in texts for number in text]
    assert packed.positions.tolist() == [i for text in texts for i in range(len(text))]
    assert packed.token_starts.tolist() == [0, *np.cumsum([sum(batch) for batch in lengths])]
    assert packed.adapter_starts.tolist() == [0, *np.cumsum([len(batch) for batch in lengths])]
    assert packed.ids[packed.last].tolist() == [text[-1] for text in texts]
    assert packed.adapters == len(lengths)


@often
@given(lengths_of_batches)
def test_each_adapter_finds_its_own_rows(lengths: Lengths) -> None:
    packed, _ = packed_from(lengths)
    batches = batches_of(lengths)
    for batch, tokens, rows in zip(batches, packed.token_rows(), packed.text_rows(), strict=True):
        assert packed.ids[tokens].tolist() == [number for text in batch for number in text]
        assert packed.ids[packed.last[rows]].tolist() == [text[-1] for text in batch]


@often
@given(lengths_of_batches)
def test_buckets_have_every_text_once_and_repeat_its_last_token(lengths: Lengths) -> None:
    packed, texts = packed_from(lengths)
    seen: list[int] = []
    for bucket in packed.buckets:
        dense = packed.ids[bucket.rows]
        for text, row, real in zip(bucket.texts.tolist(), dense.tolist(), bucket.real.tolist(), strict=True):
            own = texts[text].tolist()
            assert row == own + [own[-1]] * (bucket.width - len(own))
            assert real == [True] * len(own) + [False] * (bucket.width - len(own))
        seen += bucket.texts.tolist()
    assert sorted(seen) == list(range(len(texts)))


@often
@given(lengths_of_batches)
def test_a_text_has_the_same_width_among_any_neighbors(lengths: Lengths) -> None:
    packed, texts = packed_from(lengths)
    for bucket in packed.buckets:
        for text in bucket.texts.tolist():
            (alone,) = pack([[texts[text]]]).buckets
            assert bucket.width == alone.width == bucket_width(len(texts[text]))


@pytest.mark.parametrize("length", [1, 8, 9, 16, 17, 128, 129, 1000, 1024, 8192])
def test_a_bucket_wastes_little(length: int) -> None:
    width = bucket_width(length)
    assert 0 <= width - length < max(8, length / 8)
    assert bucket_width(length + 1) >= width
    assert bucket_width(width) == width


@often
@given(lengths_of_batches, st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_distinct_batches_are_packed_once(lengths: Lengths, keys: list[int]) -> None:
    """Every row and every text of the packed batch maps to its counterpart in the distinct batches."""
    batches = [batches_of(lengths)[key % len(lengths)] for key in keys]
    packed = pack(batches, same=[key % len(lengths) for key in keys])
    different = len({key % len(lengths) for key in keys})
    if different == len(keys):
        assert packed.distinct is None
        return
    assert packed.distinct is not None
    below, rows, texts = packed.distinct.packed, packed.distinct.rows, packed.distinct.texts
    assert below.adapters == len(packed.distinct.adapters) == different
    assert torch.equal(below.ids[rows], packed.ids)
    assert torch.equal(below.positions[rows], packed.positions)
    assert torch.equal(below.ids[below.last[texts]], packed.ids[packed.last])
    assert set(rows.tolist()) == set(range(len(below.ids)))


def test_without_keys_no_batch_is_taken_for_another() -> None:
    """Batches with equal texts are not the same without equal keys, because their masks may differ."""
    batch = batches_of([[3, 4]])[0]
    assert pack([batch, batch]).distinct is None


@often
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.sampled_from([64, 300, 1000, 1600]))
def test_a_bucket_has_few_scores(lengths: list[int], most: int) -> None:
    """Texts beyond the cap start another length bucket; a text that exceeds it gets its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "MAX_BUCKET_SCORES", most)
        packed, _ = packed_from([lengths])
    for bucket in packed.buckets:
        assert len(bucket.texts) == 1 or 1 < len(bucket.texts) * bucket.width**2 <= most
    assert sorted(text for bucket in packed.buckets for text in bucket.texts.tolist()) == list(
        range(len(lengths))
    )


def test_texts_beyond_the_cap_stand_alone() -> None:
    length = int(MAX_BUCKET_SCORES**0.5) + 1
    packed, _ = packed_from([[length, length]])
    assert [bucket.texts.tolist() for bucket in packed.buckets] == [[0], [1]]


@pytest.mark.parametrize("lengths", [[], [[]], [[3, 0]]])
def test_nothing_to_pack(lengths: Lengths) -> None:
    with pytest.raises(ValueError, match="at least one"):
        pack(batches_of(lengths))


prefix_sharing = st.lists(
    st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=12), min_size=1, max_size=8),
    min_size=1,
    max_size=3,
)


@often
@given(prefix_sharing)
def test_a_shared_prefix_is_there_once(batches: list[list[list[int]]]) -> None:
    """One row per distinct prefix; buckets and last tokens point to the right rows."""
    arrays = [[np.array(text, dtype=np.int64) for text in batch] for batch in batches]
    packed = pack(arrays, shared=True)
    texts = [text for batch in batches for text in batch]
    for rows, batch in zip(packed.token_rows(), batches, strict=True):
        prefixes = {tuple(text[:n]) for text in batch for n in range(1, len(text) + 1)}
        assert rows.stop - rows.start == len(prefixes)
    assert packed.ids[packed.last].tolist() == [text[-1] for text in texts]
    for bucket in packed.buckets:
        for text, length, row in zip(
            bucket.texts.tolist(), bucket.lengths.tolist(), bucket.rows, strict=True
        ):
            assert packed.ids[row][:length].tolist() == texts[text]
            assert packed.positions[row][:length].tolist() == list(range(length))
            assert set(row[length:].tolist()) <= {int(packed.last[text])}


def test_shared_prefixes_in_distinct_batches() -> None:
    one, other = batches_of([[3, 5], [4, 4]])
    one.append(np.append(one[0], 7))
    packed = pack([one, other, one], same=[0, 1, 0], shared=True)
    assert packed.distinct is not None
    below = packed.distinct.packed
    assert len(packed.ids) == 9 + 8 + 9
    assert torch.equal(below.ids[packed.distinct.rows], packed.ids)
    assert torch.equal(below.ids[below.last[packed.distinct.texts]], packed.ids[packed.last])
