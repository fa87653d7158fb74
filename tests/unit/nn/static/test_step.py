"""A step on static-shape batches equals a ragged step, also with graphs and micro-batches."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import AdapterSpec, Bank
from rankwise.nn.batch import Ids
from rankwise.nn.loss import BinaryCrossEntropy, CrossEntropy, Loss
from rankwise.nn.ragged.step import RaggedStep
from rankwise.nn.static.graphs import Graph
from rankwise.nn.static.step import StaticStep
from rankwise.nn.step import TrainingStep
from rankwise.recipe import Recipe
from rankwise.training import trainer as training
from tests.training import static_steps, train
from tests.unit.nn import models

ONE, OTHER = models.texts([9, 30, 1, 17], seed=1), models.texts([20, 2, 40, 5], seed=2)
BATCHES = [ONE, OTHER, ONE]  # seeds of `unlike`; adapters with the same seed see the same texts
WEIGHTS = torch.tensor([0.5, 2.0, 1.0])
families = pytest.mark.parametrize("family", models.FAMILIES)


def targets_of(batches: Sequence[Sequence[Ids]]) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Labels derived from the texts, so that they are reordered with them."""
    return [np.array([int(text.sum()) % models.CLASSES for text in batch]) for batch in batches]


def unlike(backbone: Backbone, dropout: float = 0.0) -> list[AdapterSpec]:
    """Adapters that differ in rank, scale, dropout rate, targets and, except for two, seed."""
    return [
        models.spec(backbone, 2, seed=7, dropout=dropout, scale=0.8),
        models.spec(backbone, 5, seed=8, targets=["all-linear"]),
        models.spec(
            backbone, 1, seed=7, dropout=dropout / 2, scale=2.0, targets=list(backbone.modules())[-6:]
        ),
    ]


def done(
    step: TrainingStep, bank: Bank, batches: list[list[Ids]], number: int = 3, **given: Any
) -> tuple[Tensor, list[Tensor]]:
    """Losses and each adapter's gradient."""
    bank.grad.zero_()
    targets = given.pop("targets", None) or targets_of(batches)
    losses = step(batches, targets, [number] * len(batches), **given).clone()
    return losses, [bank.grad[segment].clone() for segment in bank.segments]


ADJUSTMENT = torch.tensor([-0.3, -1.5, -2.0])
LOSSES = {
    "cross-entropy": CrossEntropy(),
    "class weights": CrossEntropy(WEIGHTS),
    "logit adjustment": CrossEntropy(WEIGHTS, ADJUSTMENT),
    "multi-label": BinaryCrossEntropy(models.CLASSES),
    "multi-label, class weights": BinaryCrossEntropy(models.CLASSES, WEIGHTS),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
UNEQUAL = [ONE, OTHER[:3], ONE]
"""As at the end of an epoch, or of texts with different numbers of windows."""
COUNTS = [np.array([1, 3, 3, 3]), np.array([2, 2, 1]), np.array([1, 3, 3, 3])]
each_count = pytest.mark.parametrize("counts", [None, COUNTS], ids=["texts", "windows"])


def targets_for(loss: Loss, batches: Sequence[Sequence[Ids]]) -> list[np.ndarray[Any, Any]]:
    """Targets as a loss takes them; of several labels, some texts have none, and some have all."""
    labels = targets_of(batches)
    if not loss.shape:
        return list(labels)
    sets = np.array([[0, 0, 0], [1, 0, 1], [1, 1, 1]], dtype=np.int8)
    return [sets[of_adapter] for of_adapter in labels]


@each_loss
@each_count
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_every_loss_is_that_of_a_ragged_step(
    loss: Loss, counts: list[np.ndarray[Any, Any]] | None, micro_batches: int
) -> None:
    """Without dropout, because the masks come from different generators."""
    backbone = models.backbone("llama")
    bank = models.trained_bank(backbone, unlike(backbone))
    given: dict[str, Any] = {"targets": targets_for(loss, UNEQUAL), "windows": counts}
    ragged = RaggedStep(backbone, bank, loss, base_dropout=False)
    expected, theirs = done(ragged, bank, UNEQUAL, **given)
    for step in (
        StaticStep(backbone, bank, loss, base_dropout=False, micro_batches=micro_batches),
        RaggedStep(backbone, bank, loss, base_dropout=False, micro_batches=micro_batches),
    ):
        losses, grads = done(step, bank, UNEQUAL, **given)
        torch.testing.assert_close(losses, expected)
        assert all(models.close(ours, each, 1e-5) for ours, each in zip(grads, theirs, strict=True))


@each_loss
def test_texts_of_one_window_have_the_loss_of_texts(loss: Loss) -> None:
    backbone = models.backbone("gpt2")
    bank = models.trained_bank(backbone, unlike(backbone))
    given: dict[str, Any] = {"targets": targets_for(loss, UNEQUAL)}
    ones = [np.ones(len(batch), dtype=np.int64) for batch in UNEQUAL]
    for kind in (StaticStep, RaggedStep):
        step = kind(backbone, bank, loss, base_dropout=False)
        expected, theirs = done(step, bank, UNEQUAL, **given)
        losses, grads = done(step, bank, UNEQUAL, **given, windows=ones)
        torch.testing.assert_close(losses, expected)
        assert all(models.close(ours, each, 1e-5) for ours, each in zip(grads, theirs, strict=True))


@families
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_losses_and_gradients_are_those_of_a_ragged_step(family: str, weights: Tensor | None) -> None:
    """Without dropout, because the masks come from different generators."""
    backbone = models.backbone(family)
    bank = models.trained_bank(backbone, unlike(backbone))
    losses, grads = done(StaticStep(backbone, bank, CrossEntropy(weights), base_dropout=False), bank, BATCHES)
    expected, theirs = done(
        RaggedStep(backbone, bank, CrossEntropy(weights), base_dropout=False), bank, BATCHES
    )
    torch.testing.assert_close(losses, expected)
    assert all(models.close(ours, each, 1e-5) for ours, each in zip(grads, theirs, strict=True))


def test_a_batch_packed_ahead_is_used_for_its_step_alone() -> None:
    """Packed for the step itself, and for another one that does not come."""
    backbone = models.backbone("gpt2")
    bank = models.trained_bank(backbone, unlike(backbone, dropout=0.3))
    step = StaticStep(backbone, bank, CrossEntropy(), base_dropout=True)
    expected, theirs = done(step, bank, BATCHES, number=3)
    for ahead in (3, 4):
        step.prepare(BATCHES, targets_of(BATCHES), [ahead] * len(BATCHES))
        losses, grads = done(step, bank, BATCHES if ahead == 4 else [[], [], []], number=3)
        assert torch.equal(losses, expected)
        assert all(torch.equal(ours, each) for ours, each in zip(grads, theirs, strict=True))


@families
def test_adapters_of_the_last_layer_and_linear_probes(family: str) -> None:
    """The layers below the adapters run once per distinct batch."""
    backbone = models.backbone(family)
    for specs in (
        [models.spec(backbone, rank, seed=7, targets=list(backbone.modules())[-3:]) for rank in (1, 4)],
        [models.spec(backbone, 0, seed=7), models.spec(backbone, 0, seed=7)],
    ):
        bank = models.trained_bank(backbone, specs)
        batches = [ONE, ONE]
        losses, grads = done(StaticStep(backbone, bank, CrossEntropy(), base_dropout=False), bank, batches)
        expected, theirs = done(RaggedStep(backbone, bank, CrossEntropy(), base_dropout=False), bank, batches)
        torch.testing.assert_close(losses, expected)
        assert all(models.close(ours, each, 1e-5) for ours, each in zip(grads, theirs, strict=True))


@families
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_adapter_is_the_same_alone_and_in_a_bank(family: str, place: int) -> None:
    """With all dropout on, even though the other adapters change the padding and the bucket widths."""
    backbone = models.backbone(family)
    specs = unlike(backbone, dropout=0.4)
    bank, alone = models.trained_bank(backbone, specs), models.trained_bank(backbone, [specs[place]])
    losses, grads = done(StaticStep(backbone, bank, CrossEntropy(), base_dropout=True), bank, BATCHES)
    expected, (theirs,) = done(
        StaticStep(backbone, alone, CrossEntropy(), base_dropout=True), alone, [BATCHES[place]]
    )
    torch.testing.assert_close(losses[place], expected[0])
    assert models.close(grads[place], theirs, 1e-5)


@families
def test_dropout_depends_on_the_step(family: str) -> None:
    backbone = models.backbone(family)
    bank = models.trained_bank(backbone, unlike(backbone, dropout=0.4))
    step = StaticStep(backbone, bank, CrossEntropy(), base_dropout=True)
    first, again, next_one = (done(step, bank, BATCHES, number)[0] for number in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.isclose(first, next_one)[[0, 2]].any()  # adapter 1 has none of its own


@families
def test_a_neighbor_that_is_no_number_changes_nothing(family: str) -> None:
    backbone = models.backbone(family)
    bank = models.trained_bank(backbone, unlike(backbone, dropout=0.4))
    step = StaticStep(backbone, bank, CrossEntropy(), base_dropout=True)
    expected, theirs = done(step, bank, BATCHES)
    with torch.no_grad():
        bank.flat[bank.segments[0]] = float("nan")
    losses, grads = done(step, bank, BATCHES)
    assert losses[0].isnan()
    assert torch.equal(losses[1:], expected[1:])
    assert all(torch.equal(ours, each) for ours, each in zip(grads[1:], theirs[1:], strict=True))


class Recorder:
    """Replaces a CUDA graph: reruns the recorded function on its own tensors."""

    def __init__(self) -> None:
        self.replays = 0
        self.recorded = 0

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        result = torch.full((3,), float("nan"))
        recorder = self
        self.recorded += 1

        class Again:
            def replay(self) -> None:
                recorder.replays += 1
                result.copy_(run())

        return Again(), result


@families
def test_a_replayed_step_is_the_step(family: str) -> None:
    """From the third batch of a shape on, losses and gradients come from the graph."""
    backbone = models.backbone(family)
    bank = models.trained_bank(backbone, unlike(backbone, dropout=0.4))
    recorder = Recorder()
    replayed, plain = (
        StaticStep(backbone, bank, CrossEntropy(), True, recorder),
        StaticStep(backbone, bank, CrossEntropy(), True),
    )
    for number in range(5):
        batches = [[(text + number) % models.VOCABULARY for text in batch] for batch in BATCHES]
        losses, grads = done(replayed, bank, batches, number)
        expected, theirs = done(plain, bank, batches, number)
        assert torch.equal(losses, expected)
        assert all(torch.equal(ours, each) for ours, each in zip(grads, theirs, strict=True))
    assert recorder.recorded == 1
    assert recorder.replays == 3


class _Forgetful:
    """Records nothing, and keeps nothing."""

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        return self, run()

    def replay(self) -> None:
        pass


def test_a_trainer_that_is_dropped_frees_its_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once: if the collector of cycles freed them, it could do so while another graph is recorded."""
    backbone = models.backbone("gpt2")
    texts = models.texts([4] * 8)
    (labels,) = targets_of([texts])
    recipe = Recipe(epochs=3, batch_size=4, learning_rate=5e-3, base_dropout=False)
    monkeypatch.setattr(training, "step_of", static_steps(_Forgetful()))
    data = training.TrainingData(texts, labels, [str(i) for i in range(models.CLASSES)])
    specs = [replace(spec, learning_rate=5e-3, epochs=3) for spec in unlike(backbone)]
    gc.disable()
    try:
        trainer = training.Trainer(backbone, specs, data, recipe.train)
        while not trainer.done:
            trainer.step()
        step: Any = trainer._bench.backward
        assert step._replayed._graphs
        alive = weakref.ref(step)
        del trainer, step
        assert alive() is None
    finally:
        gc.enable()


@families
def test_twelve_steps_of_training(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizer gets the same gradients; an epoch's last batch is smaller, so its shape differs."""
    backbone = models.backbone(family)
    texts = models.texts([(7 * i) % 30 + 1 for i in range(22)], seed=4)
    (labels,) = targets_of([texts])
    recipe = Recipe(epochs=2, batch_size=4, learning_rate=5e-3, base_dropout=False)
    recorder = Recorder()

    ragged, static = (models.bank(backbone, unlike(backbone)) for _ in range(2))
    start = ragged.flat.clone()
    train(backbone, ragged, texts, labels, **recipe.flat())
    monkeypatch.setattr(training, "step_of", static_steps(recorder))
    train(backbone, static, texts, labels, **recipe.flat())
    assert models.close(static.flat - start, ragged.flat - start, 1e-3)
    assert recorder.recorded > 0


@families
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("micro_batches", [2, 3, 4, 9])
def test_micro_batches_have_the_gradients_of_the_batch(
    family: str, weights: Tensor | None, micro_batches: int
) -> None:
    """With all dropout on. With four texts, 9 micro-batches become 4, and 3 are of unequal size."""
    backbone = models.backbone(family)
    bank = models.trained_bank(backbone, unlike(backbone, dropout=0.4))
    expected, theirs = done(
        StaticStep(backbone, bank, CrossEntropy(weights), base_dropout=True), bank, BATCHES
    )
    step = StaticStep(backbone, bank, CrossEntropy(weights), base_dropout=True, micro_batches=micro_batches)
    losses, grads = done(step, bank, BATCHES)
    torch.testing.assert_close(losses, expected)
    assert all(models.close(ours, each, 1e-5) for ours, each in zip(grads, theirs, strict=True))


def test_micro_batches_below_the_first_adapted_layer() -> None:
    """The distinct batches use masks numbered by the whole batch, too."""
    backbone = models.backbone("gpt2")
    targets = list(backbone.modules())[-3:]
    specs = [models.spec(backbone, rank, seed=7, dropout=0.3, targets=targets) for rank in (1, 4)]
    bank = models.trained_bank(backbone, specs)
    expected, theirs = done(StaticStep(backbone, bank, CrossEntropy(), base_dropout=True), bank, [ONE, ONE])
    step = StaticStep(backbone, bank, CrossEntropy(), base_dropout=True, micro_batches=2)
    losses, grads = done(step, bank, [ONE, ONE])
    torch.testing.assert_close(losses, expected)
    assert all(models.close(ours, each, 1e-5) for ours, each in zip(grads, theirs, strict=True))


def test_a_recorded_micro_batch_is_the_micro_batch() -> None:
    """The micro-batch's indices are inputs of the graph; as constants, they would repeat the first's."""
    backbone = models.backbone("gpt2")
    bank = models.trained_bank(backbone, unlike(backbone, dropout=0.4))
    batches = [models.texts([9, 9, 9, 9], seed=k) for k in (1, 2)]
    batches.append(batches[0])
    recorder = Recorder()
    replayed = StaticStep(backbone, bank, CrossEntropy(), True, recorder, micro_batches=4)
    losses, grads = done(replayed, bank, batches)
    expected, theirs = done(StaticStep(backbone, bank, CrossEntropy(), True), bank, batches)
    assert (recorder.recorded, recorder.replays) == (1, 2)  # four micro-batches of one shape
    torch.testing.assert_close(losses, expected)
    assert all(models.close(ours, each, 1e-5) for ours, each in zip(grads, theirs, strict=True))


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_a_cuda_device_has_static_steps_only(monkeypatch: pytest.MonkeyPatch, micro_batches: int) -> None:
    """Switching to micro-batches during a run must not change the dropout mask generator."""
    backbone = models.backbone("gpt2")
    bank = models.bank(backbone, [models.spec(backbone, 2)])
    monkeypatch.setattr(training, "CudaRecorder", lambda device: None)
    monkeypatch.setattr(StaticStep, "__init__", note := Noted())
    on_cuda: Any = SimpleNamespace(flat=SimpleNamespace(device=torch.device("cuda")))
    assert isinstance(training.step_of(backbone, on_cuda, CrossEntropy(), True, micro_batches), StaticStep)
    assert note.arguments[-2] == micro_batches
    assert isinstance(training.step_of(backbone, bank, CrossEntropy(), True, micro_batches), RaggedStep)


class Noted:
    """Replaces a constructor."""

    def __call__(self, *arguments: Any) -> None:
        self.arguments = arguments
