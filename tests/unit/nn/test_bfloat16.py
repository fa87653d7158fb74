"""bfloat16 products change neither the training curve nor a trained adapter's predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise.models import registry as families
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import Bank
from rankwise.nn.batch import Ids
from rankwise.nn.inference import bank_logits
from rankwise.recipe import Recipe
from tests.training import train
from tests.unit.nn import models

STEPS, BATCH = 80, 16
family = pytest.mark.parametrize("family", models.FAMILIES)


def calm_backbone(family: str, dtype: torch.dtype) -> Backbone:
    """Weights scaled so that activations stay bounded, as in a trained model."""
    return families.build(models.CONFIGS[family], CalmWeights(), dtype)


class CalmWeights:
    """The tests' random weights, halved; norm weights are one."""

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        drawn = models.RandomWeights().take(name, shape)
        return torch.ones(shape) if len(shape) == 1 and not name.endswith("bias") else drawn / 2


def examples(number: int, seed: int) -> tuple[list[Ids], NDArray[np.int64]]:
    """Random texts, each drawn from the ten tokens of its class."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, models.CLASSES, number)
    lengths = random.integers(3, 16, number)
    return [1 + 10 * t + random.integers(10, size=n) for t, n in zip(targets, lengths, strict=True)], targets


def trained(family: str, dtype: torch.dtype, steps: int = STEPS) -> tuple[Bank, list[float]]:
    """Train two adapters with dropout; return them, and the losses of the first one."""
    backbone, losses = calm_backbone(family, dtype), list[float]()
    specs = [models.spec(backbone, rank, seed=1, dropout=0.1, scale=2.0) for rank in (4, 8)]
    bank = models.bank(backbone, specs)
    recipe = Recipe(epochs=1, batch_size=BATCH, learning_rate=0.01)
    texts, targets = examples(steps * BATCH, seed=0)
    losses += [step.losses[0] for step in train(backbone, bank, texts, targets, **recipe.flat())]
    return bank, losses


@family
def test_a_trained_adapter_predicts_the_same(family: str) -> None:
    """On at least 99.9 % of 2,000 texts."""
    bank, _ = trained(family, torch.float32, 2 * STEPS)
    texts, targets = examples(2000, seed=9)
    exact, rounded = (
        bank_logits(calm_backbone(family, dtype), bank, texts)[0] for dtype in (torch.float32, torch.bfloat16)
    )
    assert (exact.argmax(-1) == targets).mean() > 0.9
    assert (exact.argmax(-1) == rounded.argmax(-1)).mean() >= 0.999
    assert not np.array_equal(exact, rounded)


@family
def test_the_loss_curves_coincide(family: str) -> None:
    exact, rounded = (np.array(trained(family, dtype)[1]) for dtype in (torch.float32, torch.bfloat16))
    assert exact[-10:].mean() < 0.5 * exact[:10].mean()
    windows = np.abs((exact - rounded).reshape(-1, 10).mean(1))  # means of ten steps
    assert windows.max() < 0.05 * exact[:10].mean()


@family
def test_training_twice_is_bit_identical(family: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        first, second = trained(family, dtype, 10), trained(family, dtype, 10)
        assert torch.equal(first[0].flat, second[0].flat)
        assert first[1] == second[1]
