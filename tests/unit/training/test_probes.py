"""Linear probes alone compute the hidden state of each text once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rankwise.nn import features
from rankwise.nn.backbone import Backbone
from rankwise.nn.features import Features
from rankwise.recipe import Recipe
from rankwise.training.trainer import Trainer, TrainingData
from tests.unit.nn import models

TEXTS = models.texts([(7 * i) % 30 + 1 for i in range(22)], seed=4)  # the last batch of an epoch is smaller
TARGETS = np.arange(22) % models.CLASSES
EPOCHS = 3


def trainer(backbone: Backbone, *, base_dropout: bool = False, **given: Any) -> Trainer:
    """Two linear probes, with validation on texts that are also among the training texts."""
    data = TrainingData(TEXTS, TARGETS, ["a", "b", "c"], None, TEXTS[:9], TARGETS[:9])
    settings = Recipe(batch_size=6, learning_rate=0.03, epochs=EPOCHS, base_dropout=base_dropout).train
    probes = [models.spec(backbone, 0, seed=seed) for seed in (7, 8)]
    specs = [replace(probe, learning_rate=0.03, epochs=float(EPOCHS)) for probe in probes]
    return Trainer(backbone, specs, data, settings, **given)


def finish(trainer: Trainer, steps: int | None = None) -> Trainer:
    while not trainer.done and trainer.step_number != steps:
        trainer.validate() if trainer.validation_due else trainer.step()
    return trainer


def tokens_seen(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the number of tokens of each forward pass from now on."""
    seen: list[int] = []
    embed = backbone.embed

    def counted(packed: Any, hook: Any) -> Any:
        seen.append(len(packed.ids))
        return embed(packed, hook)

    monkeypatch.setattr(backbone, "embed", counted)
    return seen


@pytest.mark.parametrize("family", models.FAMILIES)
def test_results_are_bit_identical_to_those_without(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = models.backbone(family, torch.bfloat16)
    kept = finish(trainer(backbone))
    assert kept.is_frozen
    monkeypatch.setattr(features, "MOST_BYTES", 0)
    plain = finish(trainer(backbone))
    assert not plain.is_frozen
    for name, state in kept.state().items():
        other = plain.state()[name]
        assert torch.equal(state.parameters, other.parameters)
        assert state.losses == other.losses
        assert state.kept is not None and other.kept is not None
        assert np.array_equal(state.kept.logits, other.kept.logits)


def test_each_text_passes_through_the_backbone_once(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = models.backbone("llama", torch.bfloat16)
    monkeypatch.setattr(features, "most_tokens", lambda device: 64)
    seen = tokens_seen(backbone, monkeypatch)
    finish(trainer(backbone))
    once = sum(map(len, TEXTS)) + sum(map(len, TEXTS[:9]))
    assert len(seen) > 2 and 0 < sum(seen) <= once


@pytest.mark.parametrize("step", [1, 5, 9])
def test_resumed_it_is_bit_identical(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "most_tokens", lambda device: 64)
    backbone = models.backbone("llama", torch.bfloat16)
    whole = finish(trainer(backbone)).state()
    saved = finish(trainer(backbone), step).state()
    resumed = finish(trainer(backbone, saved=saved)).state()
    for name, state in whole.items():
        assert torch.equal(state.parameters, resumed[name].parameters)


def test_dropout_of_the_base_model_differs_between_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = models.backbone("gpt2", torch.bfloat16)
    dropped = trainer(backbone, base_dropout=True)
    assert backbone.has_dropout and not dropped.is_frozen
    seen = tokens_seen(backbone, monkeypatch)
    finish(dropped)
    assert sum(seen) > EPOCHS * sum(map(len, TEXTS))
    assert not models.backbone("llama", torch.bfloat16).has_dropout


def test_what_is_not_kept() -> None:
    backbone = models.backbone("llama", torch.bfloat16)
    assert Features.fit(backbone, TEXTS)
    assert not Features.fit(backbone, [])
    assert not Features.fit(
        backbone, TEXTS * (features.MOST_BYTES // (4 * backbone.d_model * len(TEXTS)) + 1)
    )
    assert not Features.fit(models.backbone("llama"), TEXTS)  # float32
