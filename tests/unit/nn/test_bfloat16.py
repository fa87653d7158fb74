"""bfloat16 products change neither how training goes nor what a trained adapter says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rankwise.nn.lora import Bank
from rankwise.nn.packing import Ids
from rankwise.predict import bank_logits
from rankwise.recipe import Recipe
from rankwise.train import train
from tests.unit.nn import models

STEPS, BATCH = 80, 16
family = pytest.mark.parametrize("family", models.FAMILIES)


def examples(number: int, seed: int) -> tuple[list[Ids], NDArray[np.int64]]:
    """Random texts that end with one of ten tokens of their class."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, models.CLASSES, number)
    texts = models.texts(random.integers(1, 25, number).tolist(), seed)
    for text, target in zip(texts, targets, strict=True):
        text[-1] = 1 + 10 * target + random.integers(10)
    return texts, targets


def trained(family: str, dtype: torch.dtype) -> tuple[Bank, list[float]]:
    """Two adapters with dropout after so many steps, and the first one's losses."""
    trunk, losses = models.trunk(family, dtype), list[float]()
    specs = [models.spec(trunk, rank, seed=1, dropout=0.1, scale=2.0) for rank in (4, 8)]
    bank = models.bank(trunk, specs)
    recipe = Recipe(epochs=1, batch_size=BATCH, learning_rate=0.01)
    texts, targets = examples(STEPS * BATCH, seed=0)
    train(trunk, bank, texts, targets, recipe, on_step=lambda step: losses.append(step.losses[0]))
    return bank, losses


@family
def test_a_trained_adapter_says_the_same(family: str) -> None:
    """At least 99.9 % of 2,000 texts; of the few others, none was certain."""
    bank, _ = trained(family, torch.float32)
    texts, targets = examples(2000, seed=9)
    exact, rounded = (
        bank_logits(models.trunk(family, dtype), bank, texts)[0] for dtype in (torch.float32, torch.bfloat16)
    )
    assert (exact.argmax(-1) == targets).mean() > 0.9
    assert (exact.argmax(-1) == rounded.argmax(-1)).mean() >= 0.999
    assert not np.array_equal(exact, rounded)


@family
def test_the_loss_curves_lie_on_one_another(family: str) -> None:
    exact, rounded = (np.array(trained(family, dtype)[1]) for dtype in (torch.float32, torch.bfloat16))
    assert exact[-10:].mean() < 0.5 * exact[:10].mean()
    windows = np.abs(exact - rounded).reshape(-1, 10).mean(1)
    assert windows.max() < 0.05 * exact[:10].mean()


@family
def test_training_twice_gives_the_same_bits(family: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        first, second = trained(family, dtype), trained(family, dtype)
        assert torch.equal(first[0].flat, second[0].flat)
        assert first[1] == second[1]
