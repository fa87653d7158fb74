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

    step: float  # seconds; 0 if hidden states are kept
    text: float  # seconds to evaluate a text
    steps: int  # timed
    is_frozen: bool = False  # whether the hidden states of the training texts are computed once and kept

    def training(self, steps: float, texts: int) -> float:
        """Seconds of so many steps on so many training texts."""
        return self.text * texts if self.is_frozen else self.step * steps

    def evaluation(self, epochs: float, validation: int, test: int) -> float:
        """Seconds to evaluate validation texts after every epoch, and test texts at the end."""
        return self.text * ((1 if self.is_frozen else epochs) * validation + test)


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
    validation, test = (len(splits[name].ids) if name in splits else 0 for name in ("validation", "test"))
    return Duration(
        tuning=trials,
        training=sum(pace.training(epochs * per_epoch, len(material.training_data.ids)) for pace in paces),
        evaluation=trials_evaluated + sum(pace.evaluation(epochs, validation, test) for pace in paces),
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
    training, evaluation, timed = 0.0, 0.0, 0
    for bank in _first_of_each_kind(material.split(specs)):
        pace = _pace(bank, data, material)
        alike = [rank for rank in ranks if bool(rank) == bool(bank[0].rank)]
        number, length = tuning.cost(recipe, alike, share)
        if pace.is_frozen:  # trials that train together share the hidden states
            trainings = evaluations = float(tuning.rounds(recipe, 0, share))
        else:  # evaluated after every epoch, and at least once for each trial
            trainings, evaluations = length / len(bank), max(number, length * epochs) / len(bank)
        training += trainings * pace.training(epochs * per_epoch, len(data.ids))
        evaluation += evaluations * pace.text * len(data.validation_ids)
        timed += pace.steps
    return training, evaluation, timed


def _first_of_each_kind(banks: Sequence[Sequence[AdapterSpec]]) -> list[Sequence[AdapterSpec]]:
    """The first bank of linear probes and the first bank of adapters, as far as there are any."""
    return list({bool(bank[0].rank): bank for bank in reversed(banks)}.values())


def _pace(bank: Sequence[AdapterSpec], data: TrainingData, material: Material) -> _Pace:
    """Train a few steps of a bank, and evaluate a few texts with it.

    If it keeps the hidden states of the training texts, no step is timed: the first steps compute the states
    of many other texts, too, and later ones take next to no time.
    """
    trainer = Trainer(material.backbone, bank, data, material.recipe.train)
    seconds = [] if trainer.is_frozen else _timed_steps(trainer)
    texts = data.validation_ids[:TEXTS]
    start = time.perf_counter()
    bank_logits(material.backbone, trainer.bank, texts)
    return _Pace(
        step=median(seconds) if seconds else 0.0,
        text=(time.perf_counter() - start) / max(1, len(texts)),
        steps=len(seconds),
        is_frozen=trainer.is_frozen,
    )


def _timed_steps(trainer: Trainer) -> list[float]:
    """Seconds of a few steps. The first one, which compiles kernels, counts only if there are no others."""
    seconds: list[float] = []
    while len(seconds) <= STEPS and sum(seconds[1:]) < MOST_SECONDS:
        if seconds and trainer.validation_due:
            break
        start = time.perf_counter()
        trainer.step()
        seconds.append(time.perf_counter() - start)
    return seconds[1:] or seconds
