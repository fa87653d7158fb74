"""An adapter trained in a bank equals the adapter trained alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import HEAD, AdapterSpec, Bank
from rankwise.recipe import Recipe
from tests.training import train
from tests.unit.nn import models

STEPS = 20
RECIPE = Recipe(epochs=5, batch_size=6, learning_rate=5e-3, warmup_steps=3, weight_decay=0.1)
TEXTS = models.texts([(7 * i) % 30 + 1 for i in range(24)], seed=4)
TARGETS = torch.arange(24).numpy() % models.CLASSES


def of_all_layers(backbone: Backbone) -> list[AdapterSpec]:
    """Adapters that differ in everything that may differ within a bank."""
    return [
        models.spec(backbone, 0, seed=5),
        models.spec(backbone, 1, seed=110, dropout=0.1, scale=0.8),
        models.spec(backbone, 2, seed=1, dropout=0.3, scale=2.0, targets=["all-linear"]),
        models.spec(backbone, 4, seed=2**40, scale=0.5),
        models.spec(backbone, 16, seed=110, dropout=0.5, scale=0.05, targets=list(backbone.modules())[-4:]),
    ]


def of_the_last_layers(backbone: Backbone) -> list[AdapterSpec]:
    """The lower layers are computed once for all adapters with the same seed."""
    modules = list(backbone.modules())
    return [
        models.spec(backbone, 4, seed=110, dropout=0.1, targets=modules[-4:]),
        models.spec(backbone, 0, seed=110),
        models.spec(backbone, 2, seed=7, targets=modules[-6:]),
        models.spec(backbone, 1, seed=110, dropout=0.3, targets=modules[-1:]),
        models.spec(backbone, 16, seed=7, dropout=0.5, targets=modules[-7:]),
    ]


def linear_probes(backbone: Backbone) -> list[AdapterSpec]:
    """Linear probes share the whole backbone."""
    return [models.spec(backbone, 0, seed=110, scale=scale) for scale in (1.0, 2.0)] + [
        models.spec(backbone, 0, seed=7)
    ]


def trained(backbone: Backbone, specs: list[AdapterSpec]) -> Bank:
    bank = models.bank(backbone, specs)
    steps: list[int] = []
    steps += [step.number for step in train(backbone, bank, TEXTS, TARGETS, **RECIPE.flat())]
    assert steps == list(range(1, STEPS + 1))
    return bank


def movement(state: dict[str, Tensor], fresh: dict[str, Tensor]) -> float:
    return max(float((state[name] - fresh[name]).abs().max()) for name in state)


@pytest.mark.parametrize("adapters", [of_all_layers, of_the_last_layers, linear_probes])
@pytest.mark.parametrize("family", models.FAMILIES)
def test_in_a_bank_or_alone(family: str, adapters: Callable[[Backbone], list[AdapterSpec]]) -> None:
    backbone = models.backbone(family)
    specs = adapters(backbone)
    bank = trained(backbone, specs)
    for k, spec in enumerate(specs):
        together, alone = bank.state(k), trained(backbone, [spec]).state(0)
        assert together.keys() == alone.keys()
        for name in alone:
            assert models.close(together[name], alone[name], 1e-5), (spec.name, name)
        assert movement(alone, models.bank(backbone, [spec]).state(0)) > 0.01


def test_the_base_models_dropout_is_on_where_the_recipe_has_it() -> None:
    """Checks that the test above compares actual masks."""
    backbone = models.backbone("gpt2")
    specs = [models.spec(backbone, 0, seed=5)]
    with_dropout, without = trained(backbone, specs), models.bank(backbone, specs)
    train(backbone, without, TEXTS, TARGETS, **RECIPE.replace(base_dropout=False).flat())
    assert not models.close(with_dropout.state(0)[HEAD], without.state(0)[HEAD], 1e-2)
