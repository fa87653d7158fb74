"""The training loop: every text once per epoch, learns, bit-identical when repeated, reports NaNs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import HEAD, Bank
from rankwise.nn.inference import bank_logits
from rankwise.tasks.single import SINGLE
from rankwise.training.trainer import StepResult, Trainer, order
from tests.training import train, trainer
from tests.unit.nn import models

TEXTS = models.texts([(5 * i) % 17 + 1 for i in range(32)], seed=8)
TARGETS = np.random.default_rng(8).integers(0, models.CLASSES, len(TEXTS))


@pytest.fixture
def backbone() -> Backbone:
    return models.backbone("gpt2")


def a_bank(backbone: Backbone) -> Bank:
    return models.bank(backbone, [models.spec(backbone, rank, seed=7, dropout=0.1) for rank in (0, 2, 8)])


def run(backbone: Backbone, bank: Bank, **settings: Any) -> list[StepResult]:
    return train(backbone, bank, TEXTS, TARGETS, **settings)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first = order(7, 0, 100)
    assert sorted(first) == list(range(100))
    np.random.default_rng(1).permutation(50)
    torch.manual_seed(5)
    assert (order(7, 0, 100) == first).all()
    others = [order(7, 1, 100), order(8, 0, 100), order(0, 7, 100)]
    assert not any((other == first).all() for other in others)


@pytest.mark.parametrize("batch_size", [8, 5, 32, 100])
def test_every_text_once_an_epoch(backbone: Backbone, batch_size: int) -> None:
    """At learning rate 0, batch losses average to the loss over all texts; the short batch is last."""
    bank = models.bank(backbone, [models.spec(backbone, 2, seed=7), models.spec(backbone, 4, seed=8)])
    steps = run(backbone, bank, batch_size=batch_size, epochs=2, learning_rate=1e-30, base_dropout=False)
    sizes = [min(batch_size, 32 - start) for start in range(0, 32, batch_size)]
    assert len(steps) == 2 * len(sizes)
    whole = bank_logits(backbone, bank, TEXTS)
    for k in range(2):
        expected = float(F.cross_entropy(torch.from_numpy(whole[k]), torch.from_numpy(TARGETS)))
        for epoch in (steps[: len(sizes)], steps[len(sizes) :]):
            found = np.average([step.losses[k] for step in epoch], weights=sizes)
            assert found == pytest.approx(expected, rel=1e-5)
    tokens = sum(map(len, TEXTS))
    assert sum(step.tokens for step in steps) == 2 * 2 * tokens
    if len(sizes) > 1:  # the order depends on the epoch and the seed
        assert steps[0].losses != pytest.approx(steps[len(sizes)].losses, rel=1e-5)
        assert steps[0].losses[0] != pytest.approx(steps[0].losses[1], rel=1e-5)


def test_what_a_step_says(backbone: Backbone) -> None:
    steps = run(backbone, a_bank(backbone), epochs=2, learning_rate=0.1, warmup_steps=2)
    assert [step.number for step in steps] == list(range(1, 9))
    assert {step.steps for step in steps} == {8}
    assert [step.epochs for step in steps] == [[number / 4] * 3 for number in range(1, 9)]
    rates = [0.0, 0.05, 0.1, 0.5 / 6, 0.4 / 6, 0.3 / 6, 0.2 / 6, 0.1 / 6]
    assert [step.learning_rates[0] for step in steps] == pytest.approx(rates)
    assert all(len(set(step.learning_rates)) == 1 for step in steps)
    assert all(len(step.losses) == len(step.grad_norms) == 3 for step in steps)


def test_masks_are_new_in_every_epoch(backbone: Backbone) -> None:
    """One text, learning rate 0: only dropout masks differ between epochs."""
    settings = {"batch_size": 1, "epochs": 4, "learning_rate": 1e-30}
    steps = train(backbone, a_bank(backbone), TEXTS[:1], TARGETS[:1], **settings)
    assert len({step.losses[0] for step in steps}) == 4


@pytest.mark.parametrize("family", models.FAMILIES)
def test_it_learns(family: str) -> None:
    """32 texts with random labels are memorized."""
    backbone = models.backbone(family)
    bank = models.bank(backbone, [models.spec(backbone, 4, seed=7), models.spec(backbone, 8, seed=8)])
    steps = run(backbone, bank, epochs=40, learning_rate=2e-2, batch_size=16, base_dropout=False)
    first, last = (
        np.mean([s.losses for s in steps[:4]], axis=0),
        np.mean([s.losses for s in steps[-4:]], axis=0),
    )
    assert (first > 0.9).all() and (last < 0.05).all()
    assert (bank_logits(backbone, bank, TEXTS).argmax(-1) == TARGETS).all()


def test_the_backbone_stays_frozen(backbone: Backbone) -> None:
    before = [linear.weight.clone() for linear in backbone.linears()]
    run(backbone, a_bank(backbone))
    assert all(torch.equal(a, b.weight) for a, b in zip(before, backbone.linears(), strict=True))


def test_the_same_seed_gives_the_same_bits(backbone: Backbone) -> None:
    """With all dropout on, regardless of other draws from the global generators."""
    banks = [a_bank(backbone), a_bank(backbone)]
    losses = []
    for bank in banks:
        losses.append([step.losses for step in run(backbone, bank, epochs=3)])
        torch.manual_seed(99)
        np.random.seed(99)
    assert losses[0] == losses[1]
    assert torch.equal(banks[0].flat, banks[1].flat)


def test_another_seed_gives_another_adapter(backbone: Backbone) -> None:
    specs = a_bank(backbone).specs
    banks = [models.bank(backbone, [replace(spec, seed=seed) for spec in specs]) for seed in (7, 8)]
    for bank in banks:
        run(backbone, bank)
    assert not models.close(banks[0].flat, banks[1].flat, 0.1)


def test_the_process_generators_are_left_alone(backbone: Backbone) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=False)
    run(backbone, a_bank(backbone))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert str(np.random.get_state(legacy=False)) == str(numpy_state)


def test_balanced_weights_equal_scikit_learns() -> None:
    classes = np.arange(models.CLASSES)
    theirs = compute_class_weight("balanced", classes=classes, y=TARGETS)
    assert SINGLE.balanced_weights(TARGETS, models.CLASSES).tolist() == pytest.approx(theirs.tolist())


def test_a_class_without_texts_has_no_weight() -> None:
    assert SINGLE.balanced_weights(np.array([0, 0, 0, 2]), 4).tolist() == pytest.approx([2 / 3, 0, 2, 0])


def test_class_weights_enter_the_loss(backbone: Backbone) -> None:
    """A step over all texts has the weighted mean of their losses."""
    weights = np.array([5.0, 1.0, 0.1], dtype=np.float32)
    bank = models.bank(backbone, [models.spec(backbone, 2, seed=7)])
    whole = torch.from_numpy(bank_logits(backbone, bank, TEXTS)[0])
    (step,) = run(backbone, bank, batch_size=32, base_dropout=False, weights=weights)
    expected = F.cross_entropy(whole, torch.from_numpy(TARGETS), weight=torch.from_numpy(weights))
    assert step.losses[0] == pytest.approx(float(expected), rel=1e-5)
    assert step.losses[0] != pytest.approx(float(F.cross_entropy(whole, torch.from_numpy(TARGETS))), rel=1e-2)


def test_an_adapter_that_is_no_number_leaves_the_bank(backbone: Backbone) -> None:
    """The first step with a NaN loss names the adapter and its texts; the others continue."""
    making = trainer(backbone, a_bank(backbone), TEXTS, TARGETS, epochs=2)
    making.step()
    making.step()
    with torch.no_grad():
        making.bank.tensors[1][HEAD].fill_(torch.nan)
    result = making.step()
    (failure,) = result.failures
    assert (failure.spec.name, failure.step) == ("r2-s7", 3)
    texts = ", ".join(str(n + 1) for n in order(7, 0, 32)[16:24])
    assert failure.reason.startswith("loss nan, gradient norm nan") and failure.reason.endswith(texts)
    assert result.adapters == making.names == ["r0-s7", "r8-s7"] and len(result.losses) == 2
    assert making.step().failures == [] and making.step_number == 4


def test_without_adapters_training_is_done(backbone: Backbone) -> None:
    making = trainer(backbone, models.bank(backbone, [models.spec(backbone, 2, seed=7)]), TEXTS, TARGETS)
    with torch.no_grad():
        making.bank.flat.fill_(torch.nan)
    assert [failure.spec.name for failure in making.step().failures] == ["r2-s7"]
    assert making.done


def test_a_learning_rate_far_too_high(backbone: Backbone) -> None:
    steps = run(
        backbone, models.bank(backbone, [models.spec(backbone, 2, seed=7)]), learning_rate=1e25, epochs=3
    )
    assert steps[-1].failures and steps[-1].number < 12


def test_a_trainer_goes_on_from_a_state(backbone: Backbone) -> None:
    """Half of the steps, a copy and a second trainer are bit-identical to one trainer."""
    whole = trainer(backbone, a_bank(backbone), TEXTS, TARGETS, epochs=2)
    half = trainer(backbone, a_bank(backbone), TEXTS, TARGETS, epochs=2)
    while not whole.done:
        whole.step()
    for _ in range(3):
        half.step()
    saved = half.state()
    half.step()  # does not affect the copies
    again = Trainer(backbone, half.bank.specs, half.data, half.settings, saved=saved)
    assert again.step_number == 3
    while not again.done:
        again.step()
    assert torch.equal(again.bank.flat, whole.bank.flat)
    assert again.state()["r2-s7"].losses == whole.state()["r2-s7"].losses
