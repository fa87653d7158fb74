"""An A/A test of the verdict on trained adapters: one rank entered as five ranks must not be told apart.

    python -m bench.aa --quick
    python -m bench.aa --record docs/records/DATE-aa.md

Many adapters of one rank and one setting, which differ only in their seed, are trained on a tiny GPT-2 with
random weights. A sweep is then drawn from them: disjoint groups of seeds, each entered as a rank of its own,
judged on a random subset of the evaluation texts. Any difference between these "ranks" is chance, so a pair
that is told apart, or a rank that is called the best, is a false claim. "Enough" is a true claim. Unlike in
`bench.coverage`, no model generates the answers: seeds, texts and their interactions are those of training.

The texts are token IDs: some tokens of a text are typical of its class, the others are shared by all, and a
few labels are wrong, so that the accuracy is neither chance nor 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bench import common
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import AdapterSpec, match_modules
from rankwise.nn.batch import Ids
from rankwise.nn.inference import bank_logits
from rankwise.recipe import TrainSettings
from rankwise.stats.metrics import text_log_losses
from rankwise.stats.paired import macro_f1_pseudo_values, macro_f1_step
from rankwise.stats.verdict import ACCURACY, LOG_LOSS, MACRO_F1, Metric, judge
from rankwise.stats.wording import headline
from rankwise.training.trainer import Trainer, TrainingData

Floats = NDArray[np.float64]

RANKS = 5
"""Ranks that the one rank is entered as."""
CLASSES, VOCABULARY, LENGTH = 6, 100, 12
OWN_TOKENS = 6
"""Tokens of the vocabulary that are typical of a class."""
TYPICAL, LAST = 0.3, 0.85
"""Share of a text's tokens, and of the last tokens of the texts, that are typical of the class."""
SHARES = (0.3, 0.3, 0.15, 0.12, 0.09, 0.04)
"""Of the classes."""
WRONG_LABELS = 0.05
SHAPE = {
    "model_type": "gpt2",
    "vocab_size": VOCABULARY,
    "n_positions": LENGTH,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
}
SETTINGS = TrainSettings(epochs=4, batch_size=16, learning_rate=2e-2)
TRAIN_TEXTS = 600
MARGINS = {ACCURACY: 0.01, MACRO_F1: 0.01, LOG_LOSS: 0.01}


@dataclass(frozen=True)
class Pool:
    """The adapters' results on the evaluation texts."""

    targets: NDArray[np.int64]  # (texts,)
    predicted: NDArray[np.int64]  # (adapters, texts)
    losses: Floats  # (adapters, texts), in nats

    @property
    def accuracies(self) -> Floats:
        """(adapters,)."""
        return np.asarray((self.predicted == self.targets).mean(axis=1))


def texts(number: int, seed: int) -> tuple[list[Ids], NDArray[np.int64]]:
    """Token IDs and label IDs of texts of unequal classes."""
    rng = np.random.default_rng(seed)
    classes = rng.choice(CLASSES, number, p=SHARES)
    own = classes[:, None] * OWN_TOKENS + rng.integers(0, OWN_TOKENS, (number, LENGTH))
    share = np.append(np.full(LENGTH - 1, TYPICAL), LAST)
    ids = np.where(rng.random((number, LENGTH)) < share, own, rng.integers(0, VOCABULARY, (number, LENGTH)))
    wrong = rng.random(number) < WRONG_LABELS
    return list(ids.astype(np.int64)), np.where(wrong, rng.integers(0, CLASSES, number), classes)


def train(adapters: int, evaluated: int, bank: int = 60) -> Pool:
    """Train adapters of rank 4 that differ in their seed, some at a time, and evaluate them."""
    torch.manual_seed(0)
    backbone = common.gpt2(SHAPE, torch.float32)
    train_ids, train_targets = texts(TRAIN_TEXTS, 1)
    ids, targets = texts(evaluated, 2)
    data = TrainingData(train_ids, train_targets, [str(i) for i in range(CLASSES)], None, ids, targets)
    seeds = range(adapters)
    logits = np.concatenate(
        [_logits(backbone, seeds[start : start + bank], data) for start in range(0, adapters, bank)]
    )
    return Pool(targets, logits.argmax(axis=-1), text_log_losses(targets, logits))


def _logits(backbone: Backbone, seeds: Sequence[int], data: TrainingData) -> NDArray[np.float32]:
    """(adapters, evaluation texts, classes) of adapters that are trained to the end."""
    modules = match_modules(list(backbone.modules()), ["c_attn"])
    specs = [AdapterSpec(4, 8.0, 2.0, seed, 0.0, modules) for seed in seeds]
    trainer = Trainer(backbone, specs, data, SETTINGS)
    while trainer.step_number < trainer.steps:
        trainer.step()
    print(f"trained seeds {seeds[0]} to {seeds[-1]}", flush=True)
    return bank_logits(backbone, trainer.bank, data.validation_ids)


def scores(pool: Pool, metric: Metric, adapters: NDArray[np.intp], chosen: NDArray[np.intp]) -> Floats:
    """(adapters, texts) scores of some adapters on some texts."""
    predicted, targets = pool.predicted[np.ix_(adapters, chosen)], pool.targets[chosen]
    if metric is LOG_LOSS:
        return np.asarray(-pool.losses[np.ix_(adapters, chosen)])
    if metric is MACRO_F1:
        return macro_f1_pseudo_values(predicted, targets, CLASSES)
    return np.asarray((predicted == targets).astype(np.float64))


OUTCOMES = ("cannot be told apart", "enough", "some pair told apart", "best")


def outcomes(pool: Pool, metric: Metric, seeds: int, number: int, sweeps: int) -> dict[str, float]:
    """Percent of sweeps with each outcome; the last two are false claims."""
    rng = np.random.default_rng([seeds, number])
    counts = dict.fromkeys(OUTCOMES, 0)
    for _ in range(sweeps):
        adapters = rng.choice(len(pool.predicted), RANKS * seeds, replace=False)
        chosen = rng.choice(len(pool.targets), number, replace=False)
        step = macro_f1_step(pool.targets[chosen]) if metric is MACRO_F1 else None
        tables = scores(pool, metric, adapters, chosen).reshape(RANKS, seeds, number)
        found = judge(dict(enumerate(tables, 1)), MARGINS[metric], metric, step=step)
        counts["cannot be told apart"] += headline(found).startswith("The ranks cannot be told apart")
        counts["enough"] += found.claims.enough is not None
        counts["some pair told apart"] += any(pair.apart for pair in found.pairs)
        counts["best"] += found.claims.best is not None
    return {name: 100 * count / sweeps for name, count in counts.items()}


def body(pool: Pool, grid: Sequence[tuple[int, int]], sweeps: int) -> str:
    """The table of outcomes."""
    rows = []
    for metric in MARGINS:
        for seeds, number in grid:
            found = outcomes(pool, metric, seeds, number, sweeps)
            shown = [f"{found[name]:.1f}" for name in OUTCOMES]
            rows.append([metric.name.removeprefix("validation "), str(seeds), f"{number:,}", *shown])
            print(" | ".join(rows[-1]), flush=True)
    return (
        f"{sweeps:,} sweeps per row, each of {RANKS} groups of seeds of the same rank. In percent of sweeps; "
        "the last two columns are false claims, and each should be at most 5.\n\n"
        + common.table(("metric", "seeds", "texts", *OUTCOMES), rows)
    )


def main() -> None:
    """Train, draw sweeps, print the table, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="few adapters and sweeps")
    parser.add_argument("--record", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    adapters, evaluated, sweeps = (60, 1000, 50) if options.quick else (200, 4000, 500)
    grid = [(2, 200), (3, 500)]
    grid += [] if options.quick else [(2, 2000), (3, 2000), (5, 2000), (10, 2000)]
    pool = train(adapters, evaluated)
    accuracies = 100 * pool.accuracies
    notes = {
        "adapters": f"{adapters} of rank 4, with different seeds, on a GPT-2 of 2 layers with random weights",
        "accuracy": f"{accuracies.mean():.1f} % on {evaluated:,} texts, from {accuracies.min():.1f} to "
        f"{accuracies.max():.1f}, standard deviation over seeds {accuracies.std(ddof=1):.2f} points",
        "margins": "1 point of accuracy and macro-F1, 0.01 nats",
    }
    common.write_record(
        "A/A test: one rank entered as five",
        "python -m bench.aa",
        notes,
        body(pool, grid, sweeps),
        options.record,
    )


if __name__ == "__main__":
    main()
