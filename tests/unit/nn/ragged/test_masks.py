"""Seeded masks have the requested rate, and only depend on seed, step and name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rankwise.nn.batch import Ids, PackedBatch
from rankwise.nn.ragged.batch import pack
from rankwise.nn.ragged.masks import StepMasks
from tests.unit.nn.models import texts

WIDTH = 32
MINE = texts([5, 20, 1, 9], seed=1)
NEIGHBORS = [texts([40, 5, 6], seed=2), texts([9, 33], seed=3)]


def rows(masks: StepMasks, adapter: int, rate: float = 0.3, name: str = "h.0.attn.c_attn.lora") -> Tensor:
    """An adapter's rows of a mask over tokens."""
    every = masks.rows(name, WIDTH, [rate] * len(masks.seeds), pooled=False)
    return every[masks.packed.token_rows()[adapter]]


def attention(masks: StepMasks, adapter: int, pooled: bool, name: str = "h.0.attn") -> list[Tensor]:
    """The masks (heads, queries, width) of an adapter's texts, in order."""
    of_texts: dict[int, Tensor] = {}
    for bucket, mask in zip(masks.packed.buckets, masks.attention(name, 2, 0.3, pooled), strict=True):
        assert mask.shape == (len(bucket.texts), 2, 1 if pooled else bucket.width, bucket.width)
        of_texts |= dict(zip(bucket.texts.tolist(), mask, strict=True))
    mine = masks.packed.text_rows()[adapter]
    return [of_texts[text] for text in range(mine.start, mine.stop)]


def assert_rate(mask: Tensor, rate: float) -> None:
    """Five standard errors around the expected fraction."""
    error = (rate * (1 - rate) / mask.numel()) ** 0.5
    assert abs(float(mask.float().mean()) - (1 - rate)) < 5 * error


def long_batch(adapters: int = 1) -> PackedBatch:
    return pack([texts([50] * 20)] * adapters)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_rates(rate: float) -> None:
    masks = StepMasks([7], [0], long_batch())
    mask = rows(masks, 0, rate)
    assert mask.dtype == torch.uint8
    assert set(mask.flatten().tolist()) == {0, 1}
    assert_rate(mask, rate)
    assert_rate(mask.T[:, ::2], rate)
    (weights,) = masks.attention("h.0.attn", 3, rate, pooled=False)
    assert weights.dtype == torch.uint8
    assert_rate(weights, rate)


def test_places_are_independent() -> None:
    """Adjacent columns, adjacent rows and two names agree as often as by chance."""
    masks = StepMasks([7], [0], long_batch())
    mask = rows(masks, 0, 0.5)
    other = rows(masks, 0, 0.5, "elsewhere")
    for a, b in ((mask[:, 1:], mask[:, :-1]), (mask[1:], mask[:-1]), (mask, other)):
        assert_rate((a == b).float(), 0.5)


def test_adapters_of_different_rates() -> None:
    masks = StepMasks([7, 8, 9], [0, 0, 0], long_batch(3))
    mask = masks.rows("a name", WIDTH, [0.5, 0.0, 0.1], pooled=False)
    for part, rate in zip(masks.packed.token_rows(), (0.5, 0.0, 0.1), strict=True):
        assert_rate(mask[part], rate) if rate else torch.testing.assert_close(
            mask[part], torch.ones_like(mask[part])
        )


def test_a_row_is_a_text_where_pooled() -> None:
    packed = pack([MINE, *NEIGHBORS])
    mask = StepMasks([7, 8, 9], [0, 0, 0], packed).rows("a name", WIDTH, [0.5, 0.5, 0.5], pooled=True)
    assert mask.shape == (len(packed.last), WIDTH)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_neighbors_do_not_matter(place: int) -> None:
    """An adapter has the same masks alone and anywhere in a bank."""
    batches: list[list[Ids]] = list(NEIGHBORS)
    batches.insert(place, MINE)
    seeds = [100, 200]
    seeds.insert(place, 7)
    alone, among = StepMasks([7], [4], pack([MINE])), StepMasks(seeds, [4] * len(seeds), pack(batches))
    assert torch.equal(rows(alone, 0), rows(among, place))
    for pooled in (False, True):
        both = zip(attention(alone, 0, pooled), attention(among, place, pooled), strict=True)
        assert all(torch.equal(a, b) for a, b in both)


def test_a_text_has_its_own_mask_in_a_length_bucket() -> None:
    """Texts in the same bucket have different masks, and do not affect each other's."""
    masks = attention(StepMasks([7], [0], pack([texts([20, 20, 20])])), 0, pooled=False)
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[1], masks[2])
    among = StepMasks([7, 8], [0, 0], pack([texts([20, 20, 20]), texts([20] * 9, seed=5)]))
    assert all(torch.equal(a, b) for a, b in zip(masks, attention(among, 0, pooled=False), strict=True))


def test_seed_step_and_name_matter() -> None:
    packed = pack([MINE])
    base = StepMasks([7], [4], packed)
    assert torch.equal(rows(base, 0), rows(StepMasks([7], [4], packed), 0))
    others = [
        rows(StepMasks([8], [4], packed), 0),
        rows(StepMasks([7], [5], packed), 0),
        rows(base, 0, name="h.1.attn.c_attn.lora"),
        rows(StepMasks([4], [7], packed), 0),
    ]
    assert not any(torch.equal(rows(base, 0), other) for other in others)
    mine = attention(base, 0, pooled=False)[1]
    assert not torch.equal(mine, attention(base, 0, pooled=False, name="h.1.attn")[1])
    assert not torch.equal(mine, attention(StepMasks([7], [5], packed), 0, pooled=False)[1])


def test_equal_seeds_have_equal_masks() -> None:
    """Two ranks with the same seed train on the same texts in the same order, with the same masks."""
    masks = StepMasks([7, 7], [0, 0], pack([MINE, MINE]))
    assert torch.equal(rows(masks, 0), rows(masks, 1))


def test_distinct_batches_keep_their_masks() -> None:
    """The masks shared below the first adapted layer are those that each adapter would have alone."""
    packed = pack([MINE, NEIGHBORS[0], MINE], same=[7, 8, 7])
    masks = StepMasks([7, 8, 7], [4, 4, 4], packed)
    below = masks.distinct()
    assert packed.distinct is not None
    assert below.packed is packed.distinct.packed
    for adapter, place in ((0, 0), (1, 1), (2, 0)):
        assert torch.equal(rows(masks, adapter), rows(below, place))
    assert StepMasks([7], [0], pack([MINE])).distinct().seeds == [7]
