"""Memory of a training process compared with the plan's estimate, over shapes, precisions and lengths.

Random weights in the shapes of known models, trained by rankwise's own loop. Each case is a separate
process. With emotion's texts, the first step has the batch with the most tokens of an epoch; other texts all
have the same length, as if truncated to `max_length`.

    python -m bench.memory [--steps N] [--only WORD] [--record FILE]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bench import common
from rankwise import plan
from rankwise.models import base as bases
from rankwise.models.registry import build
from rankwise.nn.batch import Ids
from rankwise.recipe import Recipe
from rankwise.training.trainer import Trainer, TrainingData, order

EPOCH = 16_000
GPT2, SMOLLM2 = "gpt2", bases.SMOLLM2
PYTHIA, OPT, QWEN2 = "EleutherAI/pythia-160m", "facebook/opt-125m", "Qwen/Qwen2.5-0.5B"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Case:
    """A training configuration."""

    base: str
    precision: str
    ranks: tuple[int, ...]
    batch: int
    length: int | None = None  # tokens of each text; None: emotion's texts
    last_layers: int | None = None
    targets: tuple[str, ...] | None = None
    dropout: float = 0.1

    @property
    def name(self) -> str:
        """Name of the table row."""
        texts = "emotion" if self.length is None else f"{self.length} tokens"
        where = f", {', '.join(self.targets)}" if self.targets else ""
        depth = f", last {self.last_layers} layers" if self.last_layers else ""
        ranks = "rank " + ", ".join(map(str, self.ranks))
        return f"{self.base}, {self.precision}, {ranks}{where}{depth}, batch {self.batch}, {texts}"

    @property
    def recipe(self) -> Recipe:
        """The case as a recipe."""
        return Recipe(
            base=self.base,
            ranks=self.ranks,
            targets=self.targets,
            last_layers=self.last_layers,
            batch_size=self.batch,
            max_length=self.length or 128,
            lora_dropout=self.dropout,
            epochs=1,
        )


FIVE = (1, 2, 4, 8, 16)
FITTED = (
    Case(GPT2, "bfloat16", (4,), 32),
    Case(GPT2, "bfloat16", FIVE, 32),
    Case(GPT2, "float32", (4,), 32),
    Case(GPT2, "float32", FIVE, 16),
    Case(GPT2, "bfloat16", (4,), 32, targets=("all-linear",)),
    Case(GPT2, "bfloat16", FIVE, 8, 128),
    Case(GPT2, "float32", (4,), 16, 128, last_layers=6),
    Case(GPT2, "bfloat16", (4,), 8, 512),
    Case(GPT2, "bfloat16", (0,), 32),
    Case(SMOLLM2, "bfloat16", (4,), 16, targets=ATTENTION, dropout=0.0),
    Case(SMOLLM2, "bfloat16", FIVE, 16, last_layers=15, targets=ATTENTION, dropout=0.0),
    Case(SMOLLM2, "float32", FIVE, 16, targets=ATTENTION, dropout=0.0),
    Case(SMOLLM2, "float32", (8,), 8, 128),
    Case(SMOLLM2, "bfloat16", (8,), 8, 512),
)
"""The cases used to fit the two constants of `rankwise.memory`."""
CHECKED = (
    Case(PYTHIA, "bfloat16", (4,), 32),
    Case(PYTHIA, "float32", FIVE, 8, 64, targets=("all-linear",)),
    Case(OPT, "bfloat16", FIVE, 16),
    Case(OPT, "float32", (8,), 8, 256, dropout=0.0),
    Case(QWEN2, "bfloat16", (4,), 16, last_layers=12),
    Case("gpt2-medium", "bfloat16", (2, 8), 16),
    Case("distilgpt2", "float32", (16,), 32, 48, dropout=0.0),
    Case(SMOLLM2, "bfloat16", (2, 4, 8), 8, 96, targets=("all-linear",)),
)
"""Held-out cases: other families, sizes and lengths."""
CASES = FITTED + CHECKED


def main() -> None:
    """Run the cases in order and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--steps",
        type=int,
        default=16,
        help="steps of each case; of those of one length four, as nothing grows then",
    )
    parser.add_argument("--checked", action="store_true", help="only cases that nothing was fitted to")
    parser.add_argument("--only", default="", help="only cases whose name has this word")
    parser.add_argument("--record", type=Path, help="Markdown file to write the table to")
    parser.add_argument("--case", help="for the benchmark itself: be this one")
    options = parser.parse_args()
    chosen = CHECKED if options.checked else CASES
    cases = {case.name: case for case in chosen if options.only in case.name}
    if options.case:
        return contend(cases[options.case], options.steps)
    settings = ["-m", "bench.memory", "--steps", str(options.steps)]
    done = common.take_turns({name: [*settings, "--case", name] for name in cases}, 1)
    report(done, cases, options)


def contend(case: Case, steps: int) -> None:
    """Run one case."""
    texts, labels = drawn(case, steps)
    backbone = build(bases.KNOWN[case.base], common.RandomWeights(), getattr(torch, case.precision))
    (specs,) = planned(case, mean_length()).banks
    names, settings = [str(i) for i in range(common.CLASSES)], case.recipe.train
    first, rest = slice(0, case.batch), slice(case.batch, None)
    clock = common.Clock()
    clock.loaded()
    clock.begin()
    Trainer(backbone, specs, TrainingData(texts[first], labels[first], names), settings).step()
    clock.end()
    trainer = Trainer(backbone, specs, TrainingData(texts[rest], labels[rest], names), settings)
    while not trainer.done:
        trainer.step()
    clock.tell()


def drawn(case: Case, steps: int) -> tuple[list[Ids], NDArray[np.int64]]:
    """Texts and labels for the steps; for emotion, the epoch's batch with the most tokens comes first."""
    if case.length is not None:
        random = np.random.default_rng(0)
        ids = random.integers(0, 49_000, (min(steps, 4) * case.batch, case.length))
        return list(ids), random.integers(0, common.CLASSES, len(ids))
    texts, labels = common.draw(EPOCH)
    batches = order(case.recipe.train.seeds[0], 0, EPOCH).reshape(-1, case.batch)
    tokens = np.array([len(ids) for ids in texts])[batches].sum(1)
    chosen = batches[
        np.argsort(-tokens, kind="stable")[[0, *range(7, EPOCH // case.batch, 37)][:steps]]
    ].ravel()
    return [texts[i] for i in chosen], np.array(labels)[chosen]


def planned(case: Case, emotion: float) -> plan.Plan:
    """The plan of a case, with the mean length of its texts; that of emotion's is given."""
    return plan.make(
        case.recipe,
        bases.KNOWN[case.base],
        has_pad_token=True,
        classes=common.CLASSES,
        texts=EPOCH,
        tokens_per_text=case.length or emotion,
        number_bytes=getattr(torch, case.precision).itemsize,
    )


@lru_cache(None)
def mean_length() -> float:
    """Mean number of tokens per text of emotion."""
    return float(np.mean([len(ids) for ids in common.draw(EPOCH)[0]]))


def report(done: dict[str, common.Contender], cases: dict[str, Case], options: argparse.Namespace) -> None:
    """Print the record and write it to a file."""
    rows = []
    for name, run in done.items():
        expected = planned(cases[name], mean_length()).memory_bytes
        off = f"{100 * (expected / run.peak - 1):+.0f} %"
        rows.append([name, f"{run.peak / 1e9:.2f}", f"{expected / 1e9:.2f}", off, f"{run.beyond / 1e9:.2f}"])
    settings = f"--steps {options.steps}" + (" --checked" if options.checked else "")
    settings += f' --only "{options.only}"' if options.only else ""
    notes = {
        "work": f"random weights, targets of the family where none are named; {common.labelled_texts()[0]} "
        f"has {mean_length():.1f} tokens a text, and the first step is the longest of an epoch",
        "measured": "the most memory that the whole process had (VmHWM), Python and torch included",
    }
    header = ["what", "measured, GB", "expected, GB", "off by", "GB beyond the loaded model"]
    title = "Memory of training beside what the plan expects"
    common.write_record(
        title, f"python -m bench.memory {settings}", notes, common.table(header, rows), options.record
    )


if __name__ == "__main__":
    main()
