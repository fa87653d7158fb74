"""The largest differences from transformers + PEFT: `python -m tests.parity.figures` prints a table.

Models have random weights, in float32 and without dropout. Gradients and adapters are compared tensor by
tensor, by the norm of the difference relative to the norm.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rankwise.nn.batch import Ids
from rankwise.recipe import Recipe
from rankwise.tasks.task import Targets
from tests.parity import test_multi_label, test_pairs
from tests.parity.peers import (
    CLASSES,
    Pair,
    gradients_apart,
    make_pair,
    random_texts,
    steps_apart,
    without_dropout,
)

STEPS, BATCH = 50, 8
FAMILIES = ("gpt2", "llama")
SETTINGS: dict[str, Any] = {"epochs": 1, "batch_size": BATCH, "learning_rate": 2e-3, "weight_decay": 0.1}
HEADER = ("task", "model", "loss", "gradients", f"losses of {STEPS} steps", "adapter after them")


class Case(NamedTuple):
    """Both models, texts and targets of a task."""

    task: str
    pair: Pair
    texts: list[Ids]
    targets: Targets


def cases(family: str, folder: Path, texts: int) -> Iterator[Case]:
    """The tasks, each with so many texts."""
    random = np.random.default_rng(3)
    ids = random_texts(random.integers(1, 30, texts).tolist(), 500)
    yield Case("one label", without_dropout(make_pair(family)), ids, random.integers(0, CLASSES, texts))
    yield Case("several labels", *test_multi_label.made(family, texts))
    yield Case("pairs of texts", *test_pairs.made(family, test_pairs.BASES[family](folder), texts))


def rows() -> Iterator[list[str]]:
    """The rows of the table."""
    with tempfile.TemporaryDirectory() as name:
        for family in FAMILIES:
            batches = cases(family, Path(name) / f"{family}-batch", 9)
            epochs = cases(family, Path(name) / f"{family}-epoch", STEPS * BATCH)
            for batch, epoch in zip(batches, epochs, strict=True):
                labels = "multi-label" if batch.task == "several labels" else "single-label"
                recipe = Recipe(**SETTINGS, base_dropout=False, task=labels)
                one = gradients_apart(batch.pair, batch.texts, batch.targets)
                every = steps_apart(epoch.pair, epoch.texts, epoch.targets, recipe, Path(name) / "steps")
                yield [batch.task, family, *(f"{each:.0e}" for each in (*one, *every))]


def main() -> None:
    """Print the table."""
    for cells in (HEADER, ["---"] * len(HEADER), *rows()):
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
