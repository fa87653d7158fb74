"""A packed stream holds every token once, and the way to the blocks and back loses nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.nn.batch import Ids, Stream
from rankwise.nn.ragged import batch as packing
from rankwise.nn.ragged.batch import block_width, pack

Lengths = list[list[int]]  # for each adapter, of its texts

lengths_of_batches: st.SearchStrategy[Lengths] = st.lists(
    st.lists(st.integers(1, 70), min_size=1, max_size=6), min_size=1, max_size=4
)
often = settings(max_examples=60, deadline=None, derandomize=True)


def batches_of(lengths: Lengths) -> list[list[Ids]]:
    """Texts whose ids are all different, over all adapters."""
    numbers = iter(range(1, 10**6))
    return [[np.array([next(numbers) for _ in range(n)], dtype=np.int64) for n in batch] for batch in lengths]


def stream_of(lengths: Lengths) -> tuple[Stream, list[Ids]]:
    batches = batches_of(lengths)
    return pack(batches), [text for batch in batches for text in batch]


@often
@given(lengths_of_batches)
def test_ids_positions_and_starts(lengths: Lengths) -> None:
    stream, texts = stream_of(lengths)
    assert stream.ids.tolist() == [number for text in texts for number in text]
    assert stream.positions.tolist() == [i for text in texts for i in range(len(text))]
    assert stream.token_starts.tolist() == [0, *np.cumsum([sum(batch) for batch in lengths])]
    assert stream.adapter_starts.tolist() == [0, *np.cumsum([len(batch) for batch in lengths])]
    assert stream.ids[stream.last].tolist() == [text[-1] for text in texts]
    assert stream.adapters == len(lengths)


@often
@given(lengths_of_batches)
def test_each_adapter_finds_its_own_rows(lengths: Lengths) -> None:
    stream, _ = stream_of(lengths)
    batches = batches_of(lengths)
    for batch, tokens, rows in zip(batches, stream.token_rows(), stream.text_rows(), strict=True):
        assert stream.ids[tokens].tolist() == [number for text in batch for number in text]
        assert stream.ids[stream.last[rows]].tolist() == [text[-1] for text in batch]


@often
@given(lengths_of_batches)
def test_blocks_hold_every_text_once_and_repeat_its_last_token(lengths: Lengths) -> None:
    stream, texts = stream_of(lengths)
    seen: list[int] = []
    for block in stream.blocks:
        dense = stream.ids[block.rows]
        for text, row, real in zip(block.texts.tolist(), dense.tolist(), block.real.tolist(), strict=True):
            own = texts[text].tolist()
            assert row == own + [own[-1]] * (block.width - len(own))
            assert real == [True] * len(own) + [False] * (block.width - len(own))
        seen += block.texts.tolist()
    assert sorted(seen) == list(range(len(texts)))


@often
@given(lengths_of_batches)
def test_a_text_stands_in_the_same_width_among_any_neighbours(lengths: Lengths) -> None:
    stream, texts = stream_of(lengths)
    for block in stream.blocks:
        for text in block.texts.tolist():
            (alone,) = pack([[texts[text]]]).blocks
            assert block.width == alone.width == block_width(len(texts[text]))


@pytest.mark.parametrize("length", [1, 8, 9, 16, 17, 128, 129, 1000, 1024, 8192])
def test_a_block_wastes_little(length: int) -> None:
    width = block_width(length)
    assert 0 <= width - length < max(8, length / 8)
    assert block_width(length + 1) >= width
    assert block_width(width) == width


@often
@given(lengths_of_batches, st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_distinct_batches_are_packed_once(lengths: Lengths, keys: list[int]) -> None:
    """Every row of the stream finds its token, and every text its text, among the distinct ones."""
    batches = [batches_of(lengths)[key % len(lengths)] for key in keys]
    stream = pack(batches, same=[key % len(lengths) for key in keys])
    different = len({key % len(lengths) for key in keys})
    if different == len(keys):
        assert stream.distinct is None
        return
    assert stream.distinct is not None
    below, rows, texts = stream.distinct.stream, stream.distinct.rows, stream.distinct.texts
    assert below.adapters == len(stream.distinct.adapters) == different
    assert torch.equal(below.ids[rows], stream.ids)
    assert torch.equal(below.positions[rows], stream.positions)
    assert torch.equal(below.ids[below.last[texts]], stream.ids[stream.last])
    assert set(rows.tolist()) == set(range(len(below.ids)))


def test_without_keys_no_batch_is_taken_for_another() -> None:
    """Equal texts alone do not make a batch the same: the adapters' masks may differ."""
    batch = batches_of([[3, 4]])[0]
    assert pack([batch, batch]).distinct is None


@often
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.sampled_from([64, 300, 1000, 1600]))
def test_a_block_has_few_scores(lengths: list[int], most: int) -> None:
    """More texts than fit the cap start another block; a text too long for it stands alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "MAX_BLOCK_SCORES", most)
        stream, _ = stream_of([lengths])
    for block in stream.blocks:
        assert len(block.texts) == 1 or 1 < len(block.texts) * block.width**2 <= most
    assert sorted(text for block in stream.blocks for text in block.texts.tolist()) == list(
        range(len(lengths))
    )


def test_texts_beyond_the_cap_stand_alone() -> None:
    length = int(packing.MAX_BLOCK_SCORES**0.5) + 1
    stream, _ = stream_of([[length, length]])
    assert [block.texts.tolist() for block in stream.blocks] == [[0], [1]]


@pytest.mark.parametrize("lengths", [[], [[]], [[3, 0]]])
def test_nothing_to_pack(lengths: Lengths) -> None:
    with pytest.raises(ValueError, match="at least one"):
        pack(batches_of(lengths))


alike = st.lists(
    st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=12), min_size=1, max_size=8),
    min_size=1,
    max_size=3,
)


@often
@given(alike)
def test_a_shared_beginning_is_there_once(batches: list[list[list[int]]]) -> None:
    """As many rows as there are different beginnings in a batch; blocks and last tokens find theirs."""
    arrays = [[np.array(text, dtype=np.int64) for text in batch] for batch in batches]
    stream = pack(arrays, shared=True)
    texts = [text for batch in batches for text in batch]
    for rows, batch in zip(stream.token_rows(), batches, strict=True):
        beginnings = {tuple(text[:n]) for text in batch for n in range(1, len(text) + 1)}
        assert rows.stop - rows.start == len(beginnings)
    assert stream.ids[stream.last].tolist() == [text[-1] for text in texts]
    for block in stream.blocks:
        for text, length, row in zip(block.texts.tolist(), block.lengths.tolist(), block.rows, strict=True):
            assert stream.ids[row][:length].tolist() == texts[text]
            assert stream.positions[row][:length].tolist() == list(range(length))
            assert set(row[length:].tolist()) <= {int(stream.last[text])}


def test_shared_beginnings_among_distinct_batches() -> None:
    one, other = batches_of([[3, 5], [4, 4]])
    one.append(np.append(one[0], 7))
    stream = pack([one, other, one], same=[0, 1, 0], shared=True)
    assert stream.distinct is not None
    below = stream.distinct.stream
    assert len(stream.ids) == 9 + 8 + 9
    assert torch.equal(below.ids[stream.distinct.rows], stream.ids)
    assert torch.equal(below.ids[below.last[stream.distinct.texts]], stream.ids[stream.last])
