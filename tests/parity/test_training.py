"""Fifty optimizer steps give the same result as transformers' Trainer + PEFT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rankwise.models.registry import FAMILIES
from rankwise.recipe import Recipe
from tests.parity.peers import CLASSES, make_pair, random_texts, steps_apart, without_dropout

STEPS, BATCH = 50, 8


@pytest.mark.parametrize(
    ("family", "schedule"),
    [*((name, "linear") for name in (*FAMILIES, "gpt_neox-serial")), ("gpt2", "cosine"), ("llama", "cosine")],
)
def test_fifty_steps(family: str, schedule: str, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    texts = random_texts(random.integers(1, 30, STEPS * BATCH).tolist(), 500)
    targets = random.integers(0, CLASSES, len(texts))
    recipe = Recipe(
        epochs=1,
        batch_size=BATCH,
        learning_rate=2e-3,
        weight_decay=0.1,
        warmup_steps=5,
        schedule=schedule,
        base_dropout=False,
    )
    found = steps_apart(without_dropout(make_pair(family)), texts, targets, recipe, tmp_path)
    assert found.losses <= 1e-4
    assert found.tensors <= 1e-4
