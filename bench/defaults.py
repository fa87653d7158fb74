"""Defaults of LoRA for this task: the scaling, the target modules, LoRA+, and the grid of learning rates.

Each variant is trained at several ranks and learning rates, all in a few banks over one frozen base, and each
is judged at its own best rate by log loss on the validation texts::

    variant                    ranks      parameters per rank and layer
    ratio, fixed, rslora       1, 4, 16   3,840   attention (q, k, v, o)
    MLP too                    1, 6       10,176  all linear layers; rank 6 has the parameters of rank 16
    LoRA+ 8, LoRA+ 16          4          3,840

Ranks of the variants have no statistics here: it is one seed, and the aim is a choice of defaults. A scaling
is good if the best learning rate is nearly the same at every rank, because then one grid serves them all.

Run it on a quiet machine: `python -m bench.defaults --data emotion/ --texts 1600 --record record.md`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import common
from rankwise import Recipe, hardware
from rankwise.data import load as data
from rankwise.models import base as bases
from rankwise.models.tokenizer import Tokenizer
from rankwise.nn.bank import AdapterSpec
from rankwise.plan import adapter
from rankwise.training.callbacks import Validation
from rankwise.training.trainer import Trainer, TrainingData
from rankwise.tuning import label

Key = tuple[str, int, float]
"""Variant, rank, learning rate."""
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
IN_BANK = 12
"""Adapters that train together."""


@dataclass(frozen=True)
class Variant:
    """Settings to compare, at some ranks."""

    name: str
    ranks: tuple[int, ...]
    settings: Mapping[str, Any]


VARIANTS = (
    Variant("ratio, alpha 2", (1, 4, 16), {"alpha_mode": "ratio", "alpha": 2.0}),
    Variant("fixed, alpha 16", (1, 4, 16), {"alpha_mode": "fixed", "alpha": 16.0}),
    Variant("rslora, alpha 4", (1, 4, 16), {"alpha_mode": "rslora", "alpha": 4.0}),
    Variant("ratio, MLP too", (1, 6), {"targets": ("all-linear",)}),
    Variant("ratio, LoRA+ 8", (4,), {"lora_plus_ratio": 8.0}),
    Variant("ratio, LoRA+ 16", (4,), {"lora_plus_ratio": 16.0}),
)


def main() -> None:
    """Train every variant and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="file or folder of labeled texts")
    parser.add_argument("--texts", type=int, default=1600, help="training texts to use, the first ones")
    parser.add_argument("--validation-texts", type=int, default=1000, help="validation texts to use")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--record", type=Path, help="write the table as a record")
    options = parser.parse_args()
    recipe = Recipe(
        data=options.data,
        targets=ATTENTION,
        last_layers=15,
        epochs=options.epochs,
        warmup_steps=20,
        seeds=(0,),
        tune=False,
    )
    found = dict(trained(recipe, options.texts, options.validation_texts))
    rows = [list(row) for row in summary(found)]
    print(common.table(HEADER, rows))
    common.write_record(
        "Defaults: scaling, target modules, LoRA+ and learning rates",
        f"python -m bench.defaults --data {Path(options.data).name} --texts {options.texts} "
        f"--validation-texts {options.validation_texts} --epochs {options.epochs}",
        {
            "work": f"SmolLM2-135M, last 15 of 30 layers, {options.texts} training texts, "
            f"epochs: {options.epochs}, "
            f"batch 16, AdamW, linear schedule, one seed; {options.validation_texts} validation texts; "
            f"learning rates {', '.join(f'{rate:g}' for rate in RATES)}",
            "reading": "log loss in nats at each learning rate, then accuracy in percent at the best one",
        },
        common.table(HEADER, rows),
        options.record,
    )


HEADER = ("variant", "rank", *(f"{rate:g}" for rate in RATES), "best rate", "log loss", "accuracy")


def trained(
    recipe: Recipe, texts: int, validation: int
) -> Iterator[tuple[tuple[str, int, float], Validation]]:
    """(variant, rank, learning rate) -> the last validation of that adapter."""
    material = read(recipe, texts, validation)
    backbone = bases.load_backbone(
        bases.find(recipe.base), hardware.dtype("auto", hardware.device("cpu")), hardware.device("cpu")
    )
    modules = list(backbone.modules())
    specs: dict[str, tuple[tuple[str, int, float], AdapterSpec]] = {}
    for variant in VARIANTS:
        for rank in variant.ranks:
            for rate in RATES:
                settings = dict(variant.settings) | {"learning_rate": rate}
                name = f"r{rank}-{label(settings)}"
                spec = adapter(recipe, rank, recipe.train.seeds[0], modules, (), settings, name)
                specs[name] = ((variant.name, rank, rate), spec)
    names = list(specs)
    for start in range(0, len(names), IN_BANK):
        last: dict[str, Validation] = {}
        trainer = Trainer(
            backbone, [specs[name][1] for name in names[start : start + IN_BANK]], material, recipe.train
        )
        while not trainer.done:
            if trainer.validation_due:
                found = trainer.validate()
                last |= {name: one(found, k) for k, name in enumerate(found.adapters)}
            else:
                trainer.step()
        yield from ((specs[name][0], found) for name, found in last.items())
        print(f"{min(start + IN_BANK, len(names))} of {len(names)} adapters", flush=True)


def one(found: Validation, k: int) -> Validation:
    """The validation of a single adapter."""
    return Validation(
        [found.adapters[k]],
        found.epoch,
        found.epochs,
        found.step,
        [found.accuracy[k]],
        [found.macro_f1[k]],
        [found.log_loss[k]],
    )


def read(recipe: Recipe, texts: int, validation: int) -> TrainingData:
    """The first texts of the training split, and some of the validation split."""
    corpus = data.load(recipe)
    tokenizer = Tokenizer.load(bases.find(recipe.base).folder)
    held = next(split for split in corpus.splits if split.name == "validation")
    return TrainingData(
        tokenizer(corpus.train.texts[:texts], recipe.train.max_length),
        np.array(corpus.train.labels[:texts], dtype=np.int64),
        corpus.labels,
        None,
        tokenizer(held.texts[:validation], recipe.train.max_length),
        np.array(held.labels[:validation], dtype=np.int64),
    )


def summary(found: Mapping[tuple[str, int, float], Validation]) -> Iterator[Sequence[object]]:
    """A row for each variant and rank; "diverged" is a rate at which the loss became infinite or NaN."""
    for variant in VARIANTS:
        for rank in variant.ranks:
            at = {rate: found.get((variant.name, rank, rate)) for rate in RATES}
            losses = {rate: each.log_loss[0] for rate, each in at.items() if each}
            best = min(losses, key=lambda rate: losses[rate])
            cells = [f"{losses[rate]:.3f}" if rate in losses else "diverged" for rate in RATES]
            accuracy = next(each.accuracy[0] for rate, each in at.items() if each and rate == best)
            yield variant.name, rank, *cells, f"{best:g}", f"{losses[best]:.3f}", f"{100 * accuracy:.2f}"


if __name__ == "__main__":
    main()
