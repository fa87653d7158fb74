"""How long a sweep takes on this machine, estimated from a few steps of its real banks, texts and lengths."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean, median

from rankwise import tuning
from rankwise.commands.material import Material, read_material
from rankwise.commands.sweep import explained
from rankwise.commands.tune import spec_of, tuning_data
from rankwise.nn.bank import AdapterSpec
from rankwise.nn.inference import bank_logits
from rankwise.plan import epochs_of, tuned_ranks
from rankwise.recipe import Recipe
from rankwise.store import files
from rankwise.store.run_folder import RunFolder
from rankwise.training.callbacks import Callback
from rankwise.training.journal import Clock
from rankwise.training.trainer import Trainer, TrainingData

STEPS = 4
"""Timed steps of a bank. One more comes first, which compiles kernels."""
MOST_SECONDS = 30.0
"""After this time, no further step of a bank is timed."""
TEXTS = 64
"""Texts that the time of an evaluation is measured on."""


@dataclass(frozen=True)
class Duration:
    """Expected seconds of the stages of a sweep."""

    tuning: float
    training: float
    evaluation: float  # of trials and adapters, after every epoch and on test
    timed_steps: int  # what the estimate is based on

    @property
    def total(self) -> float:
        """Seconds of all three stages."""
        return self.tuning + self.training + self.evaluation

    def to_json(self) -> dict[str, float]:
        """The stages and their total as plain values."""
        return asdict(self) | {"total": self.total}


@dataclass(frozen=True)
class _Pace:
    """Measured speed of a bank."""

    step: float  # seconds
    text: float  # seconds to evaluate a text
    steps: int  # timed
    is_frozen: bool = False  # whether later epochs take next to no time, because hidden states are kept

    def epochs(self, epochs: float) -> float:
        """The epochs that take time."""
        return min(1.0, epochs) if self.is_frozen else epochs


def duration(recipe: Recipe, callback: Callback | None = None) -> Duration:
    """Train a few steps of each bank of a sweep and of its first trials, and discard them.

    The estimate covers tuning, training and evaluation. It does not cover reading the data, loading the base
    model, the baselines, the cuts and the report.

    Raises:
        UsageError: the recipe does not fit the model.
        DataError: the data cannot be used.
        ModelError: the base model cannot be used.
        Unreachable: data or base must be downloaded, and the Hub does not answer.
        ResourceError: out of memory or disk space.
    """
    callback = callback or Callback()
    with files.scratch_folder({}, {}) as scratch, explained("plan", run := RunFolder(scratch), callback):
        material = read_material(recipe, run, callback, Clock(), None)
        callback.begin("timing", None)
        paces = [_pace(bank, material.training_data, material) for bank in material.plan.banks]
        trials, trials_evaluated, timed = _trials(material)
        callback.end()
    epochs, splits = mean(epochs_of(recipe)), material.evaluated
    per_epoch = recipe.train.steps_per_epoch(len(material.splits["train"]))
    texts = epochs * len(splits["validation"].ids) + (len(splits["test"].ids) if "test" in splits else 0)
    return Duration(
        tuning=trials,
        training=sum(pace.step * pace.epochs(epochs) for pace in paces) * per_epoch,
        evaluation=trials_evaluated + sum(pace.text for pace in paces) * texts,
        timed_steps=timed + sum(pace.steps for pace in paces),
    )


def _trials(material: Material) -> tuple[float, float, int]:
    """Seconds to train all trials of the tuning, seconds to evaluate them, and the number of timed steps."""
    recipe, ranks = material.recipe, tuned_ranks(material.recipe)
    if not ranks:
        return 0.0, 0.0, 0
    data, epochs = tuning_data(material), mean(epochs_of(recipe))
    per_epoch = recipe.train.steps_per_epoch(len(data.targets))
    share = tuning.share_of(recipe, tuning.fewest_epochs(recipe) * per_epoch)
    specs = [spec_of(trial, material) for trial in tuning.next_trials(recipe, ranks, [], share)]
    bank = material.split(specs)[0]
    pace = _pace(bank, data, material)
    number, length = tuning.cost(recipe, ranks, share)
    evaluations = max(number, length * epochs)  # after every epoch, and at least one for each trial
    training = pace.step / len(bank) * length * epochs * per_epoch
    return training, pace.text / len(bank) * evaluations * len(data.validation_ids), pace.steps


def _pace(bank: Sequence[AdapterSpec], data: TrainingData, material: Material) -> _Pace:
    """Train a few steps of a bank, and evaluate a few texts with it."""
    trainer = Trainer(material.backbone, bank, data, material.recipe.train)
    trainer.step()
    began, seconds = time.perf_counter(), list[float]()
    while len(seconds) < STEPS and time.perf_counter() - began < MOST_SECONDS and not trainer.validation_due:
        start = time.perf_counter()
        trainer.step()
        seconds.append(time.perf_counter() - start)
    texts = data.validation_ids[:TEXTS]
    start = time.perf_counter()
    bank_logits(material.backbone, trainer.bank, texts)
    return _Pace(
        step=median(seconds) if seconds else start - began,
        text=(time.perf_counter() - start) / max(1, len(texts)),
        steps=len(seconds),
        is_frozen=trainer.is_frozen,
    )
