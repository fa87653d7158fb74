"""Trains banks of adapters: every step, validation and checkpoint, and what happens when memory runs out.

for each bank of the stage
    trainer, until it is done: step | validation, then a checkpoint
    out of memory: smaller banks or micro-batches, from the last checkpoint on
    finish(trainer)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from rankwise import hardware
from rankwise.commands.material import Material
from rankwise.errors import Note, ResourceError, TrainingError, option
from rankwise.nn.bank import AdapterSpec
from rankwise.nn.batch import Ids
from rankwise.recipe import TrainSettings
from rankwise.schema import Diverged
from rankwise.training.callbacks import Callback
from rankwise.training.journal import Journal, Stage
from rankwise.training.parallel import PeerLost, SharedOutOfMemory
from rankwise.training.state import AdapterState, Kept
from rankwise.training.trainer import Failure, Trainer, TrainingData


class TrainedBank(Protocol):
    """A bank whose adapters have all finished or diverged: a `Trainer`, or what a worker returns of one."""

    @property
    def specs(self) -> Sequence[AdapterSpec]:
        """The adapters that have not failed."""

    def state(self) -> dict[str, AdapterState]:
        """Name -> state."""

    def kept(self) -> dict[str, Kept]:
        """Name -> kept snapshot."""

    def kept_logits(
        self, texts: Sequence[Ids], on_texts: Callable[[int], None] = lambda texts: None
    ) -> dict[str, NDArray[np.float32]]:
        """Name -> (texts, classes) logits of the kept snapshot."""


@dataclass(frozen=True)
class Training:
    """Banks that train on the same texts, and what to do with a bank that has been trained."""

    stage: Stage
    specs: Mapping[str, AdapterSpec]  # the adapters of all banks, by name
    data: TrainingData
    settings: TrainSettings
    title: Callable[[int], str]  # number of a bank, from 1 -> the displayed name of its training
    finish: Callable[[TrainedBank], None]  # may run out of memory
    refill: Callable[[Trainer], None] = lambda trainer: None  # called when adapters have finished or diverged
    validated_on: str = "validation"
    keeps: Callable[[str], bool] = lambda name: False  # whether to keep the state of a finished adapter


TrainBanks = Callable[[Training, Callable[[str], bool], Material, Journal, Callback], None]
"""Trains every bank of a stage that the journal holds, as `train_banks` does."""


def workers_of(train: TrainBanks) -> int:
    """How many banks train at the same time: as many as a cluster has workers, else one."""
    return int(getattr(train, "workers", 1))


def workers_here(train: TrainBanks) -> int:
    """How many of them share the memory of this machine."""
    return int(getattr(train, "workers_here", 1))


@dataclass(frozen=True)
class Order:
    """A bank to train: what each of several processes must know, besides base and data."""

    stage: Stage
    specs: Sequence[AdapterSpec]
    settings: TrainSettings
    saved: Mapping[str, AdapterState]  # of the adapters that have started to train
    micro_batches: int


def train_banks(
    training: Training, done: Callable[[str], bool], material: Material, journal: Journal, callback: Callback
) -> None:
    """Train every bank of a stage that the journal holds.

    Args:
        training: what to train.
        done: whether an adapter is finished; a bank whose adapters are all finished is skipped.
        material: backbone and recipe.
        journal: progress so far, which is kept up to date.
        callback: notified of progress.

    Raises:
        ResourceError: even one adapter with one text at a time does not fit into memory.
        TrainingError: an adapter has diverged, and the recipe says to stop.
    """
    number = 1
    while number <= len(journal.banks_of(training.stage)):
        names = journal.names(journal.banks_of(training.stage)[number - 1])
        if all(map(done, names)) or _fits(number, names, training, material, journal, callback):
            number += 1
        else:
            relieve(number, training, material, journal, callback)


def _fits(
    number: int,
    names: Sequence[str],
    training: Training,
    material: Material,
    journal: Journal,
    callback: Callback,
) -> bool:
    """Train a bank; return False if it does not fit into memory."""
    bank = journal.banks_of(training.stage)[number - 1]
    specs = [training.specs[name] for name in names]
    saved = {name: journal.adapters[name] for name in names if name in journal.adapters}
    material.group.tell(Order(training.stage, specs, training.settings, saved, bank.micro_batches))
    try:
        trainer = Trainer(
            material.backbone,
            specs,
            training.data,
            training.settings,
            saved=saved,
            micro_batches=bank.micro_batches,
            record=lambda event: journal.record(number if training.stage == "train" else 0, event),
            group=material.group,
        )
        _train(trainer, training, material, journal, callback, training.title(number))
        training.finish(trainer)
    except (RuntimeError, MemoryError) as error:
        # Of several processes, only one that all have noticed leaves them in step.
        shared = material.group.is_alone or isinstance(error, SharedOutOfMemory)
        if not shared or not hardware.is_out_of_memory(error):
            raise
        return False
    for name in names:
        if not training.keeps(name):
            journal.adapters.pop(name, None)
    journal.save()
    return True


def _train(
    trainer: Trainer, training: Training, material: Material, journal: Journal, callback: Callback, title: str
) -> None:
    """Train a bank to completion; save a checkpoint if interrupted."""
    callback.bank(training.stage, {spec.name: spec.rank for spec in trainer.specs})
    callback.begin(title, trainer.steps)
    callback.advance(trainer.step_number)
    try:
        while not trainer.done:
            if trainer.validation_due:
                callback.begin(training.validated_on, len(training.data.validation_ids))
                with journal.clock.timed("evaluate"):
                    validation = trainer.validate(callback.advance)
                callback.end()
                callback.validation(validation)
                training.refill(trainer)
                journal.save(trainer)
                if not trainer.done:
                    callback.begin(title, trainer.steps)
                    callback.advance(trainer.step_number)
                continue
            start = time.perf_counter()
            with journal.clock.timed(training.stage):
                step = trainer.step()
            journal.count(step, time.perf_counter() - start)
            callback.step(step.adapters, step.number, step.steps, step.losses)
            if step.failures:
                drop(step.failures, training, material, journal, callback)
                training.refill(trainer)
            if step.failures or journal.is_due(trainer):
                journal.save(trainer)
    except (KeyboardInterrupt, PeerLost):
        if trainer.settled:
            journal.save(trainer)
        raise
    callback.end()


def drop(
    failures: Sequence[Failure], training: Training, material: Material, journal: Journal, callback: Callback
) -> None:
    """Record the adapters that have diverged, or stop if the recipe says so. A trial may always diverge."""
    if training.stage == "train" and material.recipe.train.on_nan == "stop":
        raise TrainingError(
            "\n".join(
                f"step {failure.step}: adapter {failure.spec.name} has {failure.reason}"
                for failure in failures
            ),
            hint=f"a lower {option('learning_rate')} or {option('precision', 'float32')} usually helps; "
            f"{option('on_nan', 'drop')} continues without the adapter",
        )
    for failure in failures:
        spec, step, reason = failure.spec, failure.step, failure.reason
        journal.diverged.append(
            Diverged(name=spec.name, rank=spec.rank, seed=spec.seed, step=step, reason=reason)
        )
        callback.note(f"step {step}: adapter {spec.name} is dropped: {reason}")


def relieve(
    number: int, training: Training, material: Material, journal: Journal, callback: Callback
) -> None:
    """Reduce the memory use of a bank that does not fit into memory.

    Raises:
        ResourceError: even one adapter with one text at a time does not fit.
    """
    if material.device.type == "cuda":
        torch.cuda.empty_cache()
    settings = material.recipe.train
    done = journal.relieve(training.stage, number, training.data.largest_batch(settings.batch_size))
    if done is None:
        raise ResourceError(
            f"out of memory with one adapter and one text of {settings.max_length} tokens at a time",
            hint=f"in a new run give a smaller {option('max_length')}, or a smaller {option('base')}",
        )
    callback.note(Note(f"out of memory: {done}; a smaller {option('memory_gb')} avoids this from the start"))
