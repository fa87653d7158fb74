"""Stage 3: the loop, and nothing but the loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise.errors import TrainingError
from rankwise.nn.adamw import AdamW, schedule
from rankwise.nn.classifier import logits, losses
from rankwise.nn.dropout import Masks
from rankwise.nn.lora import Bank
from rankwise.nn.packing import Ids, pack
from rankwise.nn.trunk import Trunk
from rankwise.recipe import Recipe


@dataclass(frozen=True)
class Step:
    """What one step did, for each adapter of the bank in order."""

    number: int  # from 1
    steps: int  # of the whole run
    epoch: float  # passes over the data so far
    learning_rate: float
    losses: list[float]
    grad_norms: list[float]  # before clipping
    tokens: int  # of the whole bank


def train(
    trunk: Trunk,
    bank: Bank,
    texts: Sequence[Ids],
    targets: NDArray[np.int64],
    recipe: Recipe,
    *,
    class_weights: Tensor | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
    on_epoch: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Train every adapter of a bank on the same texts, each in its own order.

    Args:
        trunk: the frozen model.
        bank: the adapters; changed in place.
        texts: token ids of each training text, (length,) int64.
        targets: (texts,) label ids.
        recipe: epochs, batch size, learning rate and so on.
        class_weights: (classes,) float32, where the loss is weighted.
        on_step: called after every step.
        on_epoch: called with the number of epochs done, from 1.

    Raises:
        TrainingError: a loss or gradient is no longer a finite number.
    """
    optimizer = AdamW(bank, recipe.weight_decay, recipe.max_grad_norm)
    seeds = [spec.seed for spec in bank.specs]
    labels = torch.from_numpy(targets).to(bank.flat.device)
    per_epoch = math.ceil(len(texts) / recipe.batch_size)
    steps = recipe.epochs * per_epoch
    for epoch in range(recipe.epochs):
        orders = [order(seed, epoch, len(texts)) for seed in seeds]
        for i in range(per_epoch):
            number = epoch * per_epoch + i
            batches = [each[i * recipe.batch_size : (i + 1) * recipe.batch_size] for each in orders]
            stream = pack([[texts[n] for n in batch] for batch in batches], bank.flat.device, same=seeds)
            masks = Masks(seeds, number, stream)
            outputs = logits(trunk, bank, stream, masks, recipe.base_dropout)
            each = losses(outputs, [labels[batch] for batch in batches], class_weights)
            torch.autograd.backward(each.sum())
            rate = recipe.learning_rate * schedule(recipe.schedule, number, steps, recipe.warmup_steps)
            norms = optimizer.step(rate)
            done = Step(
                number + 1,
                steps,
                (number + 1) / per_epoch,
                rate,
                each.tolist(),
                norms.tolist(),
                len(stream.ids),
            )
            _check(done, bank)
            on_step(done)
        on_epoch(epoch + 1)


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


def _check(step: Step, bank: Bank) -> None:
    for spec, loss, norm in zip(bank.specs, step.losses, step.grad_norms, strict=True):
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                f"step {step.number}: adapter {spec.name} has loss {loss} and gradient norm {norm}",
                hint="a lower --learning-rate or --precision float32 usually helps",
            )
