"""Stage 3: the loop, and nothing but the loop."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise.errors import TrainingError
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import Bank
from rankwise.nn.batch import Ids
from rankwise.nn.ragged.step import RaggedStep
from rankwise.nn.static.graphs import CudaRecorder
from rankwise.nn.static.step import StaticStep
from rankwise.nn.step import TrainingStep
from rankwise.recipe import Recipe
from rankwise.training import signals
from rankwise.training.optimizer import AdamW
from rankwise.training.schedule import schedule


@dataclass(frozen=True)
class StepResult:
    """What one step did, for each adapter of the bank in order."""

    number: int  # from 1
    steps: int  # of the whole run
    epoch: float  # passes over the data so far
    learning_rate: float
    losses: list[float]
    grad_norms: list[float]  # before clipping
    tokens: int  # of the whole bank


@dataclass(frozen=True)
class Failure:
    """An adapter whose loss, gradient or weights are no longer finite numbers after a step."""

    adapter: str  # its name
    reason: str  # with the training texts of the step, counted from 1


Failed = Callable[[StepResult, list[Failure]], None]


def train(
    backbone: Backbone,
    bank: Bank,
    texts: Sequence[Ids],
    targets: NDArray[np.int64],
    recipe: Recipe,
    *,
    class_weights: Tensor | None = None,
    optimizer: AdamW | None = None,
    micro_batches: int = 1,
    on_step: Callable[[StepResult], None] = lambda step: None,
    on_epoch: Callable[[int], None] = lambda epoch: None,
    on_failure: Failed | None = None,
) -> None:
    """Train every adapter of a bank on the same texts, each in its own order.

    Signals are held back (`signals.held`) from the optimizer's update to the end of `on_step`, so
    that parameters, optimizer and the caller's record always belong to the same step.

    Args:
        backbone: the frozen model.
        bank: the adapters; changed in place.
        texts: token ids of each training text, (length,) int64.
        targets: (texts,) label ids.
        recipe: epochs, batch size, learning rate and so on.
        class_weights: (classes,) float32, where the loss is weighted.
        optimizer: of the bank, where training goes on: its `steps` were made before.
        parts: that a batch is split into, with the gradients added up; for a bank of one adapter.
        on_step: called after every step.
        on_epoch: called with the number of epochs done, from 1.
        on_failure: called in place of `on_step` where adapters have failed, and `train` returns then;
            the other adapters have made the step. By default TrainingError is raised.

    Raises:
        TrainingError: a loss, gradient or weight is no longer a finite number.
    """
    optimizer = optimizer or AdamW(bank, recipe.train.weight_decay, recipe.train.max_grad_norm)
    backward = step_of(backbone, bank, class_weights, recipe.train.base_dropout, micro_batches, _warn)
    seeds = [spec.seed for spec in bank.specs]
    per_epoch = steps_per_epoch(len(texts), recipe)
    steps = recipe.train.epochs * per_epoch
    start = optimizer.steps
    for number in range(start, steps):
        signals.check()
        epoch, i = divmod(number, per_epoch)
        if i == 0 or number == start:
            orders = [order(seed, epoch, len(texts)) for seed in seeds]
        batches = [each[i * recipe.train.batch_size : (i + 1) * recipe.train.batch_size] for each in orders]
        chosen = [[texts[n] for n in each] for each in batches]
        each = backward(chosen, [targets[each] for each in batches], number)
        rate = recipe.train.learning_rate * schedule(
            recipe.train.schedule, number, steps, recipe.train.warmup_steps
        )
        with signals.held():
            norms = optimizer.step(rate)
            tokens = sum(len(ids) for batch in chosen for ids in batch)
            epochs = (number + 1) / per_epoch
            done = StepResult(number + 1, steps, epochs, rate, each.tolist(), norms.tolist(), tokens)
            if failures := _failures(done, bank, batches):
                (on_failure or _raise)(done, failures)
                return
            on_step(done)
        if i + 1 == per_epoch:
            on_epoch(epoch + 1)


def steps_per_epoch(texts: int, recipe: Recipe) -> int:
    """Steps of one pass over so many texts."""
    return math.ceil(texts / recipe.train.batch_size)


def order(seed: int, epoch: int, texts: int) -> NDArray[np.int64]:
    """(texts,) the order in which an adapter of this seed meets the texts in an epoch, from 0."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch])).permutation(texts)


def balanced_weights(targets: NDArray[np.int64], classes: int) -> Tensor:
    """(classes,) float32 weights inverse to each class's frequency, with mean 1 over the texts.

    As scikit-learn's `class_weight="balanced"`; a class without texts gets 0.
    """
    counts = np.bincount(targets, minlength=classes)
    weights = np.divide(len(targets) / classes, counts, out=np.zeros(classes), where=counts > 0)
    return torch.from_numpy(weights).float()


def _failures(step: StepResult, bank: Bank, batches: Sequence[NDArray[np.int64]]) -> list[Failure]:
    """The adapters that are no longer finite. The norm of an adapter's parameters tells of all its weights."""
    weights = torch.stack([torch.linalg.vector_norm(bank.flat[s].detach()) for s in bank.segments]).tolist()
    found = []
    for k, (loss, norm, weight) in enumerate(zip(step.losses, step.grad_norms, weights, strict=True)):
        if not math.isfinite(loss + norm + weight):
            texts = ", ".join(str(n + 1) for n in batches[k].tolist())
            reason = f"loss {loss}, gradient norm {norm} and weight norm {weight} on training texts {texts}"
            found.append(Failure(bank.specs[k].name, reason))
    return found


def _warn(reason: str) -> None:
    warnings.warn(f"no CUDA graph could be recorded, so training is slower: {reason}", stacklevel=2)


def _raise(step: StepResult, failures: list[Failure]) -> None:
    raise TrainingError(
        "\n".join(f"step {step.number}: adapter {each.adapter} has {each.reason}" for each in failures),
        hint="a lower --learning-rate or --precision float32 usually helps; "
        "--on-nan drop goes on without the adapter",
    )


def step_of(
    backbone: Backbone,
    bank: Bank,
    class_weights: Tensor | None,
    base_dropout: bool,
    micro_batches: int = 1,
    on_failure: Callable[[str], None] = lambda reason: None,
) -> TrainingStep:
    """The step for the device that the bank is on.

    Args:
        backbone: the frozen model.
        bank: the adapters.
        class_weights: (classes,) float32 on the bank's device, where the loss is weighted.
        base_dropout: whether the backbone's own dropout is active.
        micro_batches: into how many a batch is split, with the gradients accumulated; for a bank of one
            adapter. The dropout masks stay those of the whole batch.
        on_failure: told why no graph can be recorded on a device that has graphs.
    """
    device = bank.flat.device
    if device.type == "cuda":
        record = CudaRecorder(device)
        return StaticStep(backbone, bank, class_weights, base_dropout, record, on_failure, micro_batches)
    return RaggedStep(backbone, bank, class_weights, base_dropout, micro_batches)
