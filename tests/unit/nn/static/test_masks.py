"""Hashed masks have the requested rate, and only depend on key, name and position."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from rankwise.nn.batch import Ids
from rankwise.nn.static import masks as masks_module
from rankwise.nn.static.batch import pack, unpack
from rankwise.nn.static.masks import MicroBatch, Names, StepMasks, keys
from tests.unit.nn.models import texts

WIDTH = 32
MINE = texts([5, 20, 1, 9], seed=1)
LONGER = texts([40, 64, 6, 30], seed=2)


def masks_of(
    batches: list[list[Ids]],
    seeds: list[int],
    step: int = 4,
    names: Names | None = None,
    micro_batch: MicroBatch | None = None,
) -> StepMasks:
    shape, arrays = pack(batches)
    packed = unpack(shape, {name: torch.from_numpy(array) for name, array in arrays.items()})
    known = {} if names is None else names
    return StepMasks(torch.from_numpy(keys(seeds, [step] * len(seeds))), packed, shape, known, micro_batch)


def rows(masks: StepMasks, adapter: int = 0, rate: float = 0.3, name: str = "h.0.attn") -> Tensor:
    every = masks.rows(name, WIDTH, [rate] * masks.packed.adapters, pooled=False)
    return every[masks.packed.token_rows()[adapter]]


def assert_rate(mask: Tensor, rate: float) -> None:
    """Five standard errors around the expected fraction."""
    error = (rate * (1 - rate) / mask.numel()) ** 0.5
    assert abs(float(mask.float().mean()) - (1 - rate)) < 5 * error


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_rates(rate: float) -> None:
    masks = masks_of([texts([50] * 40)], [7])
    mask = rows(masks, rate=rate)
    assert mask.dtype == torch.uint8
    assert set(mask.flatten().tolist()) == {0, 1}
    for part in (mask, mask[:, ::2], mask[::2], masks.rows("a name", 4000, [rate], pooled=True)):
        assert_rate(part, rate)
    assert_rate(torch.cat([each.flatten() for each in masks.attention("h.0.attn", 3, rate, False)]), rate)


def test_a_rate_for_each_adapter() -> None:
    masks = masks_of([texts([50] * 8)] * 3, [7, 8, 9])
    mask = masks.rows("a name", WIDTH, [0.5, 0.0, 0.1], pooled=False)
    for part, rate in zip(masks.packed.token_rows(), (0.5, 0.0, 0.1), strict=True):
        assert_rate(mask[part], rate) if rate else torch.testing.assert_close(
            mask[part], torch.ones_like(mask[part])
        )


def test_places_are_independent() -> None:
    """Adjacent elements agree as often as by chance, across columns, rows, names, heads and texts."""
    masks = masks_of([texts([50] * 40)], [7])
    mask, other = rows(masks, rate=0.5), rows(masks, rate=0.5, name="elsewhere")
    dense = masks.attention("h.0.attn", 4, 0.5, pooled=False)[0]  # (texts, heads, queries, keys)
    for a, b in (
        (mask[:, 1:], mask[:, :-1]),
        (mask[:, 2:], mask[:, :-2]),
        (mask[1:], mask[:-1]),
        (mask, other),
        (dense[1:], dense[:-1]),
        (dense[:, 1:], dense[:, :-1]),
        (dense[:, :, 1:], dense[:, :, :-1]),
        (dense[..., 1:], dense[..., :-1]),
    ):
        assert_rate((a == b).float(), 0.5)


def test_masks_of_a_thousand_steps_are_independent() -> None:
    """The fraction of ones in a mask varies over steps like a binomial fraction."""
    shares = np.array([float(rows(masks_of([MINE], [7], step)).float().mean()) for step in range(1000)])
    numbers = rows(masks_of([MINE], [7])).numel()
    expected = (0.3 * 0.7 / numbers) ** 0.5
    assert 0.9 < shares.std() / expected < 1.1
    assert abs(np.corrcoef(shares[1:], shares[:-1])[0, 1]) < 0.15


def test_what_they_depend_on() -> None:
    """Masks depend on seed, step and name, but not on other adapters, padding or bucket widths."""
    alone, among = masks_of([MINE], [7]), masks_of([LONGER, MINE], [8, 7])
    real = sum(len(text) for text in MINE)
    assert torch.equal(rows(alone)[:real], rows(among, 1)[:real])
    assert len(rows(alone)) < len(rows(among, 1))
    for mine, theirs in zip(
        alone.attention("a", 2, 0.3, False), among.attention("a", 2, 0.3, False), strict=True
    ):
        width = mine.shape[-1]
        assert torch.equal(mine, theirs[len(mine) :, :, :width, :width])
    others = [masks_of([MINE], [8]), masks_of([MINE], [7], step=5), masks_of([MINE], [4], step=7)]
    assert not any(torch.equal(rows(alone), rows(each)) for each in others)
    assert not torch.equal(rows(alone), rows(alone, name="elsewhere"))


@pytest.mark.parametrize("at_once", [1, 4000, 1 << 24])
def test_masks_drawn_together_are_those_drawn_alone(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(masks_module, "AT_ONCE", at_once)
    known: Names = {}
    names = [f"h.{i}" for i in range(5)]
    first = masks_of([MINE, LONGER], [7, 8], names=known)
    alone = [(rows(first, name=name), first.attention(name, 2, 0.3, False)) for name in names]
    again = masks_of([MINE, LONGER], [7, 8], names=known)
    for name, (mask, dense) in zip(names, alone, strict=True):
        assert torch.equal(rows(again, name=name), mask)
        both = zip(again.attention(name, 2, 0.3, False), dense, strict=True)
        assert all(torch.equal(a, b) for a, b in both)


def test_every_text_has_masks_of_its_own() -> None:
    """Two texts agree as often as by chance, in the same length bucket or in different ones."""
    buckets = masks_of([texts([50] * 40)], [7]).attention("h.0.attn", 2, 0.5, pooled=False)
    firsts = [bucket[0] for bucket in buckets]  # (heads, queries, width)
    for a, b in combinations(firsts, 2):
        assert_rate((a == b).float(), 0.5)


@pytest.mark.parametrize("width", [WIDTH, 33])
def test_a_micro_batch_has_the_masks_of_its_whole_batch(width: int) -> None:
    """By row and by text, for texts from anywhere in the batch, and for odd widths."""
    batch = sorted(texts([5, 20, 1, 9, 33], seed=3), key=len)
    starts = np.cumsum([0, *map(len, batch)])
    chosen = [1, 2, 4]
    numbers = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in chosen])
    whole = masks_of([batch], [7])
    shape, _ = pack([[batch[i] for i in chosen]])
    row_numbers = np.zeros((1, shape.tokens), dtype=np.int64)
    row_numbers[0, : len(numbers)] = numbers
    micro = masks_of(
        [[batch[i] for i in chosen]],
        [7],
        micro_batch=MicroBatch(torch.from_numpy(row_numbers), torch.tensor([chosen])),
    )
    for pooled, rows_of_whole in ((False, numbers), (True, np.array(chosen))):
        ours = micro.rows("a name", width, [0.5], pooled)[: len(rows_of_whole)]
        theirs = whole.rows("a name", width, [0.5], pooled)[rows_of_whole]
        assert torch.equal(ours, theirs)
        assert 0 < int(ours.sum()) < ours.numel()
    for i, ours in enumerate(by_text(micro)):
        theirs = by_text(whole)[chosen[i]]
        length = len(batch[chosen[i]])
        assert torch.equal(ours[:, :length, :length], theirs[:, :length, :length])


def by_text(masks: StepMasks) -> list[Tensor]:
    """The attention masks (heads, queries, width) of one adapter's texts, sorted by length."""
    return [mask for bucket in masks.attention("h.0.attn", 2, 0.5, pooled=False) for mask in bucket]
