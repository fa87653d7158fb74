"""Trainers on given texts, for tests that train without a sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import Bank
from rankwise.nn.batch import Ids
from rankwise.nn.loss import Loss
from rankwise.nn.static.graphs import Record
from rankwise.nn.static.step import StaticStep
from rankwise.nn.step import WHOLE, Share, TrainingStep
from rankwise.recipe import Recipe
from rankwise.tasks.registry import task_of
from rankwise.tasks.task import Targets
from rankwise.training.trainer import StepResult, Trainer, TrainingData

SMALL = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-2}


def trainer(
    backbone: Backbone,
    bank: Bank,
    texts: Sequence[Ids],
    targets: Targets,
    /,
    *,
    weights: NDArray[np.float32] | None = None,
    **settings: Any,
) -> Trainer:
    """A trainer whose bank is initialized with this bank's weights."""
    given = Recipe(**{**SMALL, **settings})
    recipe, task = given.train, task_of(given.data.task)
    data = TrainingData(texts, targets, [str(i) for i in range(bank.classes)], weights, task=task)
    names = [spec.name for spec in bank.specs]
    specs = [
        replace(
            spec,
            name=spec.name if names.count(spec.name) == 1 else f"{spec.name}-{k}",
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            epochs=float(recipe.epochs),
        )
        for k, spec in enumerate(bank.specs)
    ]
    made = Trainer(backbone, specs, data, recipe)
    with torch.no_grad():
        made.bank.flat.copy_(bank.flat)
    return made


def train(
    backbone: Backbone, bank: Bank, texts: Sequence[Ids], targets: Targets, /, **settings: Any
) -> list[StepResult]:
    """Train a bank in place to the end, and return the results of all steps."""
    making = trainer(backbone, bank, texts, targets, **settings)
    steps = []
    while not making.done:
        steps.append(making.step())
    if len(making.bank.specs) == len(bank.specs):
        with torch.no_grad():
            bank.flat.copy_(making.bank.flat)
    return steps


def static_steps(record: Record | None = None) -> Callable[..., TrainingStep]:
    """A replacement of `trainer.step_of` that trains on static-shape batches, as on a CUDA device."""

    def step_of(
        backbone: Backbone,
        bank: Bank,
        loss: Loss,
        base_dropout: bool,
        micro_batches: int,
        on_failure: Callable[[str], None],
        share: Share = WHOLE,
    ) -> TrainingStep:
        return StaticStep(backbone, bank, loss, base_dropout, record, on_failure, micro_batches, share)

    return step_of
