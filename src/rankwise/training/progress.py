"""What a sweep has done so far: in memory, in its checkpoints, and back."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager

from rankwise.recipe import Recipe
from rankwise.schema import Diverged
from rankwise.store import files
from rankwise.store.run_folder import RunFolder
from rankwise.training import checkpoint, resume, signals
from rankwise.training.bank_run import AdapterState, BankRun
from rankwise.training.checkpoint import BankPlan, Checkpoint, JobState


class Progress:
    """The banks of a sweep, how far each adapter has come, and the time that was spent.

    Args:
        run: its folder.
        save_seconds: seconds between two checkpoints.
        save_steps: steps between two checkpoints, where they are counted too.
    """

    def __init__(self, run: RunFolder, save_seconds: float, save_steps: int | None) -> None:
        self.run, self.save_seconds, self.save_steps = run, save_seconds, save_steps
        self.saved: Checkpoint | None = None  # the last state that was saved
        self.banks: list[BankPlan] = []
        self.states: dict[str, AdapterState] = {}  # adapters that were begun, as they were last saved
        self.diverged: list[Diverged] = []
        self.seconds: defaultdict[str, float] = defaultdict(float)  # stage -> wall seconds
        self.train_seconds: defaultdict[str, float] = defaultdict(float)  # adapter -> wall seconds
        self.trained_tokens = 0
        self._facts: JobState | None = None
        self._began = self._saved_at = self._counted_at = time.perf_counter()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the block's seconds for a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    def begin(
        self, recipe: Recipe, fingerprint: Mapping[str, str], environment: Mapping[str, str]
    ) -> list[str]:
        """Take up what was saved before, if anything was.

        Args:
            recipe: of the sweep.
            fingerprint: of data and base.
            environment: what may change the last digits.

        Returns:
            What is worth saying.

        Raises:
            UsageError: data or base are not what they were.
        """
        self._facts = JobState(
            recipe=recipe.model_dump(mode="json"),
            fingerprint=dict(fingerprint),
            environment=dict(environment),
            banks=[],
        )
        if self.saved is None:
            return []
        state, notes = self.saved.state, []
        if state.fingerprint:
            resume.require_same(fingerprint, state.fingerprint, self.run.path)
        if changed := resume.changes(state.environment, environment):
            notes.append(f"not as when this run was begun: {changed}; the last digits may differ")
        if files.size(self.run.history) < state.history_bytes:
            notes.append(f"{self.run.history}: lines that were written are missing")
        self.go_back()
        self.trained_tokens += state.trained_tokens
        for mine, before in ((self.seconds, state.seconds), (self.train_seconds, state.train_seconds)):
            for key, seconds in before.items():
                mine[key] += seconds
        return notes

    def go_back(self) -> None:
        """Be where the last checkpoint was saved; what came after is cut off history.jsonl."""
        assert self.saved is not None
        state = self.saved.state.model_copy(deep=True)
        self.banks, self.diverged, self.states = state.banks, state.diverged, {}
        for name, progress in state.progress.items():
            mine = {
                key.removeprefix(f"{name}/"): tensor
                for key, tensor in self.saved.tensors.items()
                if key.startswith(f"{name}/")
            }
            self.states[name] = AdapterState.read(progress, mine)
        files.truncate(self.run.history, state.history_bytes)

    def forget(self, finished: Container[str]) -> None:
        """Leave in history.jsonl the lines of finished adapters, where no checkpoint says how long it was."""
        if self.run.history.exists():
            lines = self.run.history.read_text("utf-8").splitlines(keepends=True)
            files.write_text(
                self.run.history, "".join(line for line in lines if resume.is_line_of(line, finished))
            )

    def names(self, number: int) -> list[str]:
        """The adapters of a bank, from 1, without those that were dropped."""
        gone = {each.name for each in self.diverged}
        return [name for name in self.banks[number - 1].adapters if name not in gone]

    def start_clock(self) -> None:
        """A bank begins."""
        self._saved_at = self._counted_at = time.perf_counter()

    def count(self, run: BankRun) -> None:
        """Add what a bank has spent since it was last counted."""
        now = time.perf_counter()
        training = now - self._counted_at - run.evaluating
        self.seconds["train"] += training
        self.seconds["evaluate"] += run.evaluating
        for name in run.names:
            self.train_seconds[name] += training / len(run.names)
        self.trained_tokens += run.tokens
        self._counted_at, run.evaluating, run.tokens = now, 0.0, 0

    def on_saveable(self, run: BankRun, epoch: bool) -> None:
        """Save if it is time, or an epoch is over."""
        due = time.perf_counter() - self._saved_at >= self.save_seconds
        if epoch or due or (self.save_steps and run.steps % self.save_steps == 0):
            self.save(run)

    def save(self, run: BankRun | None = None) -> None:
        """Write a checkpoint. The bank in training must be between two steps."""
        with signals.held():
            if run:
                self.count(run)
                self.states |= run.states()
            gone = {each.name for each in self.diverged}
            self.states = {name: state for name, state in self.states.items() if name not in gone}
            files.sync(self.run.history)
            tensors = {
                f"{name}/{what}": tensor
                for name, state in self.states.items()
                for what, tensor in state.tensors().items()
            }
            self.saved = Checkpoint(self._state(), tensors)
            checkpoint.save(self.run.checkpoint, self.saved)
            self._saved_at = time.perf_counter()

    def _state(self) -> JobState:
        assert self._facts is not None
        total = self.seconds["total"] + time.perf_counter() - self._began
        now = {
            "banks": self.banks,
            "progress": {name: state.progress() for name, state in self.states.items()},
            "diverged": self.diverged,
            "history_bytes": files.size(self.run.history),
            "trained_tokens": self.trained_tokens,
            "seconds": self.seconds | {"total": total},
            "train_seconds": dict(self.train_seconds),
        }
        return self._facts.model_copy(update=now).model_copy(deep=True)

    def relieve(self, number: int, batch_size: int) -> str | None:
        """Go back to what was saved, and halve the bank that did not fit the memory.

        A bank of one adapter computes its batches in twice as many parts from then on.

        Args:
            number: of the bank, from 1.
            batch_size: texts of one adapter in a step.

        Returns:
            What was done; None where nothing is left to do.
        """
        self.go_back()
        bank, names = self.banks[number - 1], self.names(number)
        half = (len(names) + 1) // 2
        if len(names) > 1:
            second = BankPlan(adapters=names[half:], micro_batches=bank.micro_batches)
            bank.adapters = [name for name in bank.adapters if name not in second.adapters]
            self.banks.insert(number, second)
            done = f"the bank of {len(names)} adapters is split into {half} and {len(names) - half}"
        elif bank.micro_batches < batch_size:
            bank.micro_batches = min(2 * bank.micro_batches, batch_size)
            done = f"batches of {batch_size} are computed in {bank.micro_batches} parts"
        else:
            return None
        self.save()
        return done
