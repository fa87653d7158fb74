"""The journal of a sweep: what it has done so far, in memory, in its checkpoints, and in history.jsonl."""

from __future__ import annotations

import json
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from rankwise.schema import Diverged
from rankwise.store import files
from rankwise.store.run_folder import RunFolder
from rankwise.training import checkpoint, signals
from rankwise.training.callbacks import Validation
from rankwise.training.checkpoint import BankPlan, Checkpoint, SweepState
from rankwise.training.state import AdapterState
from rankwise.training.trainer import StepResult, Trainer


class Clock:
    """Wall seconds of each stage of a sweep, those of earlier sessions included."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the block's seconds for a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def reading(self) -> dict[str, float]:
        """Stage -> seconds so far, with the `total`."""
        total = self.seconds.get("total", 0.0) + time.perf_counter() - self._start
        return self.seconds | {"total": total}


@dataclass(frozen=True)
class SaveEvery:
    """How often a checkpoint is written while a bank trains; there is one more after every epoch."""

    seconds: float
    steps: int | None = None


class Journal:
    """The banks of a sweep, how far each adapter has come, and the time that was spent.

    Args:
        run: its folder.
        state: what is known at the start: of a new sweep, or of the last checkpoint.
        adapters: adapters in training, as they were last saved.
        clock: of the whole sweep.
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
        """Adapters that train together, in the order of training."""
        return self.state.banks

    @property
    def diverged(self) -> list[Diverged]:
        """Adapters that were dropped."""
        return self.state.diverged

    def names(self, bank: BankPlan) -> list[str]:
        """The adapters of a bank, without those that were dropped."""
        gone = {each.name for each in self.diverged}
        return [name for name in bank.adapters if name not in gone]

    def bank_of(self, name: str) -> int:
        """The number of the bank that trains an adapter, from 1."""
        return next(number for number, bank in enumerate(self.banks, 1) if name in bank.adapters)

    def record(self, bank: int, event: StepResult | Validation) -> None:
        """Write a step or a validation to history.jsonl."""
        kind = "validation" if isinstance(event, Validation) else "step"
        line = {"kind": kind, "bank": bank} | asdict(event)
        for name in ("failures", "epochs", "step"):  # of no use in a curve
            line.pop(name, None)
        files.append_line(self.run.history, json.dumps(line, allow_nan=False))

    def count(self, step: StepResult, seconds: float) -> None:
        """Count a step's tokens, and share its seconds out among its adapters."""
        self.state.trained_tokens += step.tokens
        for name in step.adapters:
            before = self.state.train_seconds.get(name, 0.0)
            self.state.train_seconds[name] = before + seconds / len(step.adapters)

    def is_due(self, trainer: Trainer) -> bool:
        """Whether it is time for a checkpoint between two epochs."""
        late = time.perf_counter() - self._saved_at >= self.every.seconds
        return late or bool(self.every.steps and trainer.step_number % self.every.steps == 0)

    def save(self, trainer: Trainer | None = None) -> None:
        """Write a checkpoint. A trainer must be settled."""
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
        """Return to the last checkpoint; what came after is cut off history.jsonl."""
        self.state = self._saved.state.model_copy(deep=True)
        self.adapters = dict(self._saved.adapters)
        files.truncate(self.run.history, self.state.history_bytes)

    def forget(self, finished: Container[str]) -> None:
        """Leave only finished adapters' lines in history.jsonl, where no checkpoint says how long it was."""
        if self.run.history.exists():
            lines = self.run.history.read_text("utf-8").splitlines(keepends=True)
            files.write_text(self.run.history, "".join(line for line in lines if _is_of(line, finished)))

    def relieve(self, number: int, batch_size: int) -> str | None:
        """Go back to the last checkpoint, and make the bank that did not fit the memory smaller.

        A bank of several adapters is halved; one of a single adapter computes its batches in twice as many
        micro-batches.

        Args:
            number: of the bank, from 1.
            batch_size: texts of one adapter in a step.

        Returns:
            What was done; None where nothing is left to do.
        """
        self.go_back()
        bank = self.banks[number - 1]
        names = self.names(bank)
        half = (len(names) + 1) // 2
        if len(names) > 1:
            second = BankPlan(adapters=names[half:], micro_batches=bank.micro_batches)
            bank.adapters = [name for name in bank.adapters if name not in second.adapters]
            self.banks.insert(number, second)
            done = f"the bank of {len(names)} adapters is split into {half} and {len(names) - half}"
        elif bank.micro_batches < batch_size:
            bank.micro_batches = min(2 * bank.micro_batches, batch_size)
            done = f"batches of {batch_size} are computed in {bank.micro_batches} micro-batches"
        else:
            return None
        self.save()
        return done


def _is_of(line: str, names: Container[str]) -> bool:
    """Whether a line of history.jsonl is of these adapters alone."""
    try:
        return all(name in names for name in json.loads(line)["adapters"])
    except (ValueError, KeyError, TypeError):
        return False
