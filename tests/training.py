"""Trainers on given texts, for tests that train without a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import Bank
from rankwise.nn.batch import Ids
from rankwise.recipe import Recipe
from rankwise.training.trainer import StepResult, Trainer, TrainingData

SMALL = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-2}


def trainer(
    backbone: Backbone,
    bank: Bank,
    texts: Sequence[Ids],
    targets: NDArray[np.int64],
    /,
    *,
    weights: NDArray[np.float32] | None = None,
    **settings: Any,
) -> Trainer:
    """A trainer whose bank is initialized with this bank's weights."""
    data = TrainingData(texts, targets, [str(i) for i in range(bank.classes)], weights)
    made = Trainer(backbone, bank.specs, data, Recipe(**{**SMALL, **settings}).train)
    with torch.no_grad():
        made.bank.flat.copy_(bank.flat)
    return made


def train(
    backbone: Backbone, bank: Bank, texts: Sequence[Ids], targets: NDArray[np.int64], /, **settings: Any
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
