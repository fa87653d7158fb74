"""Adapters that differ in everything: each is the same in a bank, alone, resumed, beside one that fails."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import HEAD, AdapterSpec
from rankwise.recipe import Recipe
from rankwise.training import trainer as training
from rankwise.training.callbacks import Validation
from rankwise.training.optimizer import AdamW
from rankwise.training.state import AdapterState
from rankwise.training.trainer import Trainer, TrainingData
from tests.training import static_steps
from tests.unit.nn import models

TEXTS = models.texts([(7 * i) % 30 + 1 for i in range(22)], seed=4)  # the last batch of an epoch is smaller
TARGETS = np.arange(22) % models.CLASSES
DATA = TrainingData(TEXTS, TARGETS, ["a", "b", "c"], None, TEXTS[:9], TARGETS[:9])
SETTINGS = Recipe(batch_size=6, warmup_steps=2).train
PER_EPOCH = 4
families = pytest.mark.parametrize("family", models.FAMILIES)
paths = pytest.mark.parametrize("path", ["ragged", "static"])


def mixed(backbone: Backbone) -> list[AdapterSpec]:
    """Adapters that differ in every field; two share a seed, and their schedules end at different steps."""
    modules = list(backbone.modules())
    return [
        replace(models.spec(backbone, 2, seed=7, dropout=0.2, scale=0.8), learning_rate=5e-3, epochs=2.0),
        replace(
            models.spec(backbone, 5, seed=8, targets=["all-linear"]),
            learning_rate=1e-3,
            weight_decay=0.2,
            lora_plus_ratio=8.0,
            epochs=1.0,
        ),
        replace(
            models.spec(backbone, 1, seed=7, dropout=0.1, scale=2.0, targets=modules[-6:]),
            learning_rate=2e-2,
            weight_decay=0.0,
            epochs=1.5,
        ),
        replace(models.spec(backbone, 0, seed=9), learning_rate=3e-2, epochs=0.75),
    ]


@pytest.fixture
def on(path: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Trainers use this path."""

    if path == "static":
        monkeypatch.setattr(training, "step_of", static_steps())
    return path


def advance(trainer: Trainer, step: int) -> None:
    """Train up to a step of the slowest adapter."""
    while trainer.step_number < step:
        if trainer.validation_due:
            trainer.validate()
        else:
            trainer.step()


def finish(trainer: Trainer) -> dict[str, AdapterState]:
    while not trainer.done:
        if trainer.validation_due:
            trainer.validate()
        else:
            trainer.step()
    return trainer.state()


def trained(backbone: Backbone, specs: list[AdapterSpec]) -> dict[str, AdapterState]:
    return finish(Trainer(backbone, specs, DATA, SETTINGS))


def same(ours: AdapterState, theirs: AdapterState) -> bool:
    """Whether parameters and losses agree up to rounding, and the positions in the data exactly."""
    return (
        models.close(ours.parameters, theirs.parameters, 1e-4)
        and ours.losses == pytest.approx(theirs.losses, rel=1e-4)
        and (ours.steps, ours.validated) == (theirs.steps, theirs.validated)
    )


@families
@paths
@pytest.mark.usefixtures("on")
def test_in_a_bank_or_alone(family: str) -> None:
    backbone = models.backbone(family)
    specs = mixed(backbone)
    together = trained(backbone, specs)
    for spec in specs:
        assert same(together[spec.name], trained(backbone, [spec])[spec.name]), spec.name
    assert [state.steps for state in together.values()] == [8, 4, 6, 3]


@paths
@pytest.mark.usefixtures("on")
def test_each_setting_matters() -> None:
    """Changing one setting of one adapter changes that adapter, so the test above compares something."""
    backbone = models.backbone("gpt2")
    specs = mixed(backbone)
    before = trained(backbone, specs)
    changes: dict[str, Any] = {
        "learning_rate": 4e-3,
        "weight_decay": 0.5,
        "lora_plus_ratio": 3.0,
        "epochs": 1.75,
    }
    for name, value in changes.items():
        after = trained(backbone, [replace(specs[0], **{name: value}), *specs[1:]])
        assert not same(after["r2-s7"], before["r2-s7"]), name
        assert same(after["r5-s8"], before["r5-s8"]), name


@paths
@pytest.mark.usefixtures("on")
@pytest.mark.parametrize("step", range(1, 8))
def test_resumed_at_any_step_it_is_bit_identical(step: int) -> None:
    """Some adapters have finished when it stops, and others are within an epoch."""
    backbone = models.backbone("gpt2")
    whole, half = (Trainer(backbone, mixed(backbone), DATA, SETTINGS) for _ in range(2))
    advance(half, step)
    saved = half.state()
    again = Trainer(backbone, mixed(backbone), DATA, SETTINGS, saved=saved)
    assert again.step_number == step
    expected, found = finish(whole), finish(again)
    for name, state in expected.items():
        assert torch.equal(found[name].parameters, state.parameters), name
        assert found[name].losses == state.losses
        kept, theirs = found[name].kept, state.kept
        assert kept is not None and theirs is not None and (kept.logits == theirs.logits).all()


@paths
@pytest.mark.usefixtures("on")
def test_one_that_fails_leaves_the_others_alone() -> None:
    backbone = models.backbone("gpt2")
    specs = mixed(backbone)
    expected = trained(backbone, specs)
    trainer = Trainer(backbone, specs, DATA, SETTINGS)
    trainer.step()
    with torch.no_grad():
        trainer.bank.tensors[2][HEAD].fill_(torch.nan)
    (failure,) = trainer.step().failures
    assert (failure.spec.name, failure.step) == ("r1-s7", 2)
    found = finish(trainer)
    assert found.keys() == {"r2-s7", "r5-s8", "r0-s9"}
    assert all(same(found[name], expected[name]) for name in found)


@paths
@pytest.mark.usefixtures("on")
@pytest.mark.parametrize("step", [0, 3, 6])
def test_adapters_that_enter_later_are_the_same(step: int) -> None:
    """They start at their own first step, beside adapters that are further on."""
    backbone = models.backbone("gpt2")
    specs = mixed(backbone)
    expected = trained(backbone, specs)
    trainer = Trainer(backbone, specs[:2], DATA, SETTINGS)
    advance(trainer, step)
    trainer.add(specs[2:])
    found = finish(trainer)
    assert all(same(found[name], expected[name]) for name in expected)


@paths
@pytest.mark.usefixtures("on")
@pytest.mark.parametrize("step", [0, 2, 5])
def test_dropped_adapters_leave_the_others_alone(step: int) -> None:
    """One in training and, at the last of these steps, one that has finished."""
    backbone = models.backbone("gpt2")
    specs = mixed(backbone)
    expected = trained(backbone, specs)
    trainer = Trainer(backbone, specs, DATA, SETTINGS)
    advance(trainer, step)
    assert ("r0-s9" in trainer.finished) == (step == 5)
    trainer.drop({"r0-s9", "r2-s7"})
    found = finish(trainer)
    assert found.keys() == {"r5-s8", "r1-s7"} == set(trainer.finished)
    assert all(same(found[name], expected[name]) for name in found)


@pytest.mark.parametrize(("share", "rates"), [(1.0, [0.0, 0.5, 1.0]), (0.5, [0.0, 1.0])])
def test_the_warmup_is_as_long_in_proportion(share: float, rates: list[float]) -> None:
    """Two steps of a whole schedule, one of half a schedule."""
    backbone = models.backbone("gpt2")
    spec = replace(mixed(backbone)[0], learning_rate=1.0, share=share)
    trainer = Trainer(backbone, [spec], DATA, SETTINGS)
    assert [trainer.step().learning_rates[0] for _ in rates] == rates


def test_validations_come_at_the_ends_of_epochs_and_schedules() -> None:
    backbone = models.backbone("gpt2")
    seen = []
    trainer = Trainer(backbone, mixed(backbone), DATA, SETTINGS, record=lambda event: seen.append(event))
    finish(trainer)
    validations = [(sorted(event.adapters), event.epoch) for event in seen if isinstance(event, Validation)]
    assert validations == [
        (["r0-s9"], 0.75),
        (["r2-s7"], 1.0),
        (["r5-s8"], 1.0),
        (["r1-s7"], 1.0),
        (["r1-s7"], 1.5),
        (["r2-s7"], 2.0),
    ]
    logits = trainer.kept_logits(TEXTS[:9])
    for name, kept in trainer.kept().items():
        assert np.allclose(logits[name], kept.logits, atol=1e-5), name


def test_two_adapters_with_one_name() -> None:
    backbone = models.backbone("gpt2")
    with pytest.raises(ValueError, match="the same name"):
        Trainer(backbone, [models.spec(backbone, 1), models.spec(backbone, 1)], DATA, SETTINGS)


def test_lora_plus_equals_torch_with_two_groups() -> None:
    """As peft's `create_loraplus_optimizer` builds it: B has a learning rate of its own."""
    backbone = models.backbone("llama")
    spec = replace(models.spec(backbone, 3, seed=1), lora_plus_ratio=16.0, weight_decay=0.1)
    bank = models.trained_bank(backbone, [models.spec(backbone, 2, seed=2), spec])
    optimizer = AdamW(bank, max_grad_norm=0.0)
    peers = {name: tensor.detach().clone().requires_grad_() for name, tensor in bank.tensors[1].items()}
    groups = [
        [tensor for name, tensor in peers.items() if name.endswith("lora_B") == of_b]
        for of_b in (False, True)
    ]
    theirs = torch.optim.AdamW(
        [{"params": groups[0], "lr": 1e-3}, {"params": groups[1], "lr": 16e-3}], weight_decay=0.1
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        bank.grad.copy_(torch.randn(bank.grad.shape, generator=generator))
        for name, peer in peers.items():
            grad = bank.tensors[1][name].grad
            assert grad is not None
            peer.grad = grad.clone()
        optimizer.step([5e-2, 1e-3])
        theirs.step()
    for name, peer in peers.items():
        torch.testing.assert_close(bank.tensors[1][name], peer, rtol=1e-5, atol=1e-7)
