"""The journal of a sweep: its progress in memory, in its checkpoints, and in history.jsonl."""

from __future__ import annotations

import json
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Literal

from rankwise.schema import Diverged, Trial
from rankwise.store import files
from rankwise.store.run_folder import RunFolder
from rankwise.training import checkpoint, signals
from rankwise.training.callbacks import Validation
from rankwise.training.checkpoint import BankPlan, Checkpoint, SearchPlan, SweepState
from rankwise.training.state import AdapterState
from rankwise.training.trainer import StepResult, Trainer

Stage = Literal["tune", "search", "train"]
"""What a bank is trained for: to choose settings, in a sweep or a search, or to be the result."""


class Clock:
    """Wall time of each stage of a sweep, including earlier sessions of a resumed run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the wall time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def reading(self) -> dict[str, float]:
        """Stage -> seconds so far, including `total`."""
        total = self.seconds.get("total", 0.0) + time.perf_counter() - self._start
        return self.seconds | {"total": total}


@dataclass(frozen=True)
class SaveEvery:
    """How often to save a checkpoint while a bank trains, in addition to one after every epoch."""

    seconds: float
    steps: int | None = None


class Journal:
    """The banks of a sweep, the progress of each adapter, and the time spent.

    Args:
        run: folder of the run.
        state: initial state: that of a new sweep, or of the last checkpoint.
        adapters: saved states of the adapters in training.
        clock: clock of the whole sweep.
        every: how often to save.
    """

    def __init__(
        self,
        run: RunFolder,
        state: SweepState,
        adapters: dict[str, AdapterState],
        clock: Clock,
        every: SaveEvery,
    ) -> None:
        self.run, self.state, self.adapters = run, state, adapters
        self.clock, self.every = clock, every
        for stage, seconds in state.seconds.items():
            clock.seconds[stage] = clock.seconds.get(stage, 0.0) + seconds
        self._saved = Checkpoint(state.model_copy(deep=True), dict(adapters))
        self._saved_at = time.perf_counter()

    @property
    def banks(self) -> list[BankPlan]:
        """The banks, in training order."""
        return self.state.banks

    @property
    def diverged(self) -> list[Diverged]:
        """The adapters that diverged and were dropped."""
        return self.state.diverged

    @property
    def trials(self) -> list[Trial]:
        """The finished trials of tuning."""
        return self.state.trials

    def names(self, bank: BankPlan) -> list[str]:
        """The adapters of a bank that have not been dropped."""
        dropped = {adapter.name for adapter in self.diverged}
        return [name for name in bank.adapters if name not in dropped]

    def bank_number(self, stage: Stage, names: Sequence[str]) -> int:
        """The number of the bank of a stage that has these adapters, from 1."""
        banks = self.banks_of(stage)
        return next(number for number, bank in enumerate(banks, 1) if names[0] in bank.adapters)

    def bank_of(self, name: str) -> int:
        """The number of the bank that trains an adapter, from 1."""
        return self.bank_number("train", [name])

    def record(self, bank: int, event: StepResult | Validation) -> None:
        """Write a step or a validation to history.jsonl; bank 0 is that of tuning."""
        validation = isinstance(event, Validation)
        line = {"kind": "validation" if validation else "step", "bank": bank} | asdict(event)
        for name in ("epochs", "step") if validation else ("failures",):  # not needed for the curves
            line.pop(name)
        files.append_line(self.run.history, json.dumps(line, allow_nan=False))

    def count(self, step: StepResult, seconds: float) -> None:
        """Count a step's tokens, and divide its duration equally among its adapters."""
        self.state.trained_tokens += step.tokens
        for name in step.adapters:
            before = self.state.train_seconds.get(name, 0.0)
            self.state.train_seconds[name] = before + seconds / len(step.adapters)

    def is_due(self, trainer: Trainer) -> bool:
        """Whether a checkpoint is due within an epoch."""
        late = time.perf_counter() - self._saved_at >= self.every.seconds
        return late or bool(self.every.steps and trainer.step_number % self.every.steps == 0)

    def save(self, trainer: Trainer | None = None) -> None:
        """Save a checkpoint. The trainer, if given, must be settled."""
        with signals.held():
            if trainer:
                self.adapters |= trainer.state()
            for gone in self.diverged:
                self.adapters.pop(gone.name, None)
            files.sync(self.run.history)
            self.state.history_bytes = files.size(self.run.history)
            self.state.seconds = self.clock.reading()
            self._saved = Checkpoint(self.state.model_copy(deep=True), dict(self.adapters))
            checkpoint.save(self.run.checkpoint, self._saved)
            self._saved_at = time.perf_counter()

    def go_back(self) -> None:
        """Roll back to the last checkpoint, and truncate history.jsonl accordingly."""
        self.state = self._saved.state.model_copy(deep=True)
        self.adapters = dict(self._saved.adapters)
        files.truncate(self.run.history, self.state.history_bytes)

    def forget(self, finished: Container[str]) -> None:
        """Keep only the lines of finished adapters in history.jsonl. Used if there is no checkpoint."""
        if self.run.history.exists():
            lines = self.run.history.read_text("utf-8").splitlines(keepends=True)
            files.write_text(self.run.history, "".join(line for line in lines if _is_of(line, finished)))

    def banks_of(self, stage: Stage) -> list[BankPlan]:
        """The banks of a stage, in training order."""
        return self.state.banks if stage == "train" else self.state.trial_banks

    def relieve(self, stage: Stage, number: int, batch_size: int) -> str | None:
        """Roll back to the last checkpoint, and reduce the memory use of a bank that ran out of memory.

        A bank of several adapters is split in half; in a search, the second half starts over when places
        are free. For a bank of a single adapter, the number of micro-batches is doubled.

        Args:
            stage: the stage whose bank it is.
            number: number of the bank, from 1.
            batch_size: texts per adapter and step.

        Returns:
            A description of the change; None if no further reduction is possible.
        """
        self.go_back()
        banks = self.banks_of(stage)
        bank = banks[number - 1]
        names = self.names(bank)
        half, search = (len(names) + 1) // 2, self.state.search
        if search and not search.in_waves and search.places > 1:
            done = self._fewer_places(search, bank)
        elif len(names) > 1 and (not search or search.in_waves):
            second = BankPlan(adapters=names[half:], micro_batches=bank.micro_batches)
            bank.adapters = [name for name in bank.adapters if name not in second.adapters]
            banks.insert(number, second)
            done = f"the bank of {len(names)} adapters is split into {half} and {len(names) - half}"
        elif bank.micro_batches < batch_size:
            bank.micro_batches = min(2 * bank.micro_batches, batch_size)
            done = f"batches of {batch_size} are computed in {bank.micro_batches} micro-batches"
        else:
            return None
        self.save()
        return done

    def _fewer_places(self, search: SearchPlan, bank: BankPlan) -> str:
        """Halve the places of a search. Adapters that lose theirs start over when places are free."""
        search.places = (search.places + 1) // 2
        finished = {trial.name for trial in self.trials}
        lost = [name for name in self.names(bank) if name not in finished][search.places :]
        bank.adapters = [name for name in bank.adapters if name not in lost]
        for name in lost:
            self.adapters.pop(name, None)
        return f"{search.places} adapters train at once from here on"


def _is_of(line: str, names: Container[str]) -> bool:
    """Whether a line of history.jsonl only concerns these adapters."""
    try:
        return all(name in names for name in json.loads(line)["adapters"])
    except (ValueError, KeyError, TypeError):
        return False
