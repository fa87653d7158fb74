"""On a CUDA device, a recorded step equals the eager step, and a sweep works as on the CPU."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rankwise
from rankwise.nn.loss import CrossEntropy, Loss
from rankwise.nn.ragged.step import RaggedStep
from rankwise.nn.static.graphs import CudaRecorder, Graph
from rankwise.nn.static.step import StaticStep
from tests import tiny
from tests.gpu.devices import bank_on
from tests.unit.nn import models
from tests.unit.nn.static.test_step import (
    BATCHES,
    COUNTS,
    UNEQUAL,
    done,
    each_loss,
    targets_for,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
each_family = pytest.mark.parametrize("family", models.FAMILIES)


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    """Disable TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@each_family
def test_a_step_is_the_cpus(family: str) -> None:
    backbone, bank = bank_on("cuda", family)
    losses, grads = done(StaticStep(backbone, bank, CrossEntropy(), base_dropout=False), bank, BATCHES)
    backbone, bank = bank_on("cpu", family)
    expected, theirs = done(RaggedStep(backbone, bank, CrossEntropy(), base_dropout=False), bank, BATCHES)
    torch.testing.assert_close(losses.cpu(), expected)
    assert all(models.close(ours.cpu(), each, 1e-4) for ours, each in zip(grads, theirs, strict=True))


@each_family
def test_masks_are_the_cpus(family: str) -> None:
    """Masks are hashes, so even dropout is the same on every device."""
    losses = []
    for device in ("cuda", "cpu"):
        backbone, bank = bank_on(device, family, dropout=0.4)
        losses.append(
            done(StaticStep(backbone, bank, CrossEntropy(), base_dropout=True), bank, BATCHES)[0].cpu()
        )
    torch.testing.assert_close(losses[0], losses[1])


@each_family
@pytest.mark.filterwarnings("error")
def test_a_graph_gives_what_its_kernels_give(family: str) -> None:
    """Losses and gradients of ten steps, eight of them replayed; if none were, there would be a warning."""
    backbone, bank = bank_on("cuda", family, dropout=0.4)
    recorder = CudaRecorder(bank.flat.device)
    replayed, plain = (
        StaticStep(backbone, bank, CrossEntropy(), True, recorder),
        StaticStep(backbone, bank, CrossEntropy(), True),
    )
    for number in range(10):
        batches = [[(text + number) % models.VOCABULARY for text in batch] for batch in BATCHES]
        losses, grads = done(replayed, bank, batches, number)
        expected, theirs = done(plain, bank, batches, number)
        torch.testing.assert_close(losses, expected)
        assert all(models.close(ours, each, 1e-5) for ours, each in zip(grads, theirs, strict=True))
    assert len(replayed._replayed._graphs) == 1


@each_family
@pytest.mark.filterwarnings("error")
def test_recorded_micro_batches_have_the_gradients_of_the_batch(family: str) -> None:
    """With all dropout on: eager, recorded and replayed."""
    backbone, bank = bank_on("cuda", family, dropout=0.4)
    whole = StaticStep(backbone, bank, CrossEntropy(), True)
    parts = StaticStep(backbone, bank, CrossEntropy(), True, CudaRecorder(bank.flat.device), micro_batches=2)
    for number in range(4):
        expected, theirs = done(whole, bank, BATCHES, number)
        losses, grads = done(parts, bank, BATCHES, number)
        torch.testing.assert_close(losses, expected)
        assert all(models.close(ours, each, 1e-4) for ours, each in zip(grads, theirs, strict=True))


@each_loss
@pytest.mark.filterwarnings("error")
def test_every_loss_is_the_cpus(loss: Loss) -> None:
    """Of texts in windows, in batches of unequal size: eager, recorded and replayed."""
    backbone, bank = bank_on("cpu", "llama")
    given: dict[str, Any] = {"targets": targets_for(loss, UNEQUAL), "windows": COUNTS}
    expected, theirs = done(RaggedStep(backbone, bank, loss, base_dropout=False), bank, UNEQUAL, **given)
    backbone, bank = bank_on("cuda", "llama")
    step = StaticStep(backbone, bank, on_cuda(loss), False, CudaRecorder(bank.flat.device))
    for _ in range(4):
        losses, grads = done(step, bank, UNEQUAL, **given)
        torch.testing.assert_close(losses.cpu(), expected)
        assert all(models.close(ours.cpu(), each, 1e-4) for ours, each in zip(grads, theirs, strict=True))


@pytest.mark.filterwarnings("error")
def test_no_graph_is_freed_while_another_is_recorded() -> None:
    """That would end the recording. Here a graph becomes garbage in the middle of one."""
    backbone, bank = bank_on("cuda", "llama")
    recorder = CudaRecorder(bank.flat.device)
    owners: list[Any] = []

    def drop_owners_and_record(run: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        def drop_owners_and_run() -> Tensor:
            owners.clear()
            gc.set_threshold(1)  # the collector would run at once
            return run()

        return recorder(drop_owners_and_run)

    thresholds = gc.get_threshold()
    try:
        for record in (recorder, drop_owners_and_record):
            step: Any = StaticStep(backbone, bank, CrossEntropy(), True, record)
            for number in range(2):
                done(step, bank, BATCHES, number)
            assert len(step._replayed._graphs) == 1
            step.cycle = step
            owners.append(step)
            del step
    finally:
        gc.set_threshold(*thresholds)


def on_cuda(loss: Loss) -> Loss:
    """The loss with its tensors on the device."""
    tensors = {name: each.cuda() for name, each in vars(loss).items() if isinstance(each, torch.Tensor)}
    given: Any = loss
    moved: Loss = replace(given, **tensors)
    return moved


def test_a_sweep_with_several_labels(tmp_path: Path) -> None:
    recipe = tiny.recipe(
        tiny.llama(tmp_path / "base"),
        tiny.multi_folder(tmp_path / "data"),
        device="cuda",
        epochs=3,
        task="multi-label",
        class_weights="balanced",
        max_length=8,
        windows=True,
    )
    result = rankwise.sweep(recipe, tmp_path / "run")
    assert result.windowed
    assert max(row.validation.macro_f1 for row in result.adapters if row.validation) > 0.75


def test_a_sweep(tmp_path: Path) -> None:
    """From the command to the results, and predictions with the trained adapters."""
    recipe = tiny.recipe(
        tiny.gpt2(tmp_path / "base"), tiny.data_folder(tmp_path / "data"), device="cuda", epochs=8
    )
    result = rankwise.sweep(recipe, tmp_path / "run")
    assert max(row.validation.accuracy for row in result.adapters if row.validation) > 0.6
