"""Progress as lines of a log file or a pipe."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from rich.console import Console

from rankwise.progress.board import line
from rankwise.progress.pace import Now, Pace, clock
from rankwise.training.callbacks import Callback, Validation

EVERY = 30.0
"""Seconds between two lines on the progress of a stage."""


class LogLines(Callback):
    """One line per stage, one per validation, and at most every 30 seconds one on the progress."""

    def __init__(self, console: Console, now: Now = time.monotonic) -> None:
        self._console, self._now, self._pace = console, now, Pace(now)
        self._seen: set[str] = set()
        self._stage, self._purpose, self._total, self._done = "", "", 0, 0
        self._last = now()

    def note(self, text: str) -> None:
        """Print a message."""
        self._print(text)

    def read(self, text: str) -> None:
        """Show what was read."""
        self.note(text)

    def begin(self, stage: str, total: int | None) -> None:
        """Name a stage when it begins for the first time."""
        self._stage, self._total, self._done = stage, total or 0, 0
        if stage not in self._seen:
            self._seen.add(stage)
            self._print(stage if total is None else f"{stage} ({total:,})")

    def advance(self, units: int) -> None:
        """Count texts."""
        self._done += units
        if self._is_due():
            of = f"/{self._total:,}" if self._total else ""
            self._print(f"{self._stage} {self._done:,}{of} texts")

    def bank(self, purpose: str, ranks: Mapping[str, int]) -> None:
        """Remember what the adapters are trained for."""
        self._purpose = purpose

    def step(self, adapters: Sequence[str], number: int, steps: int, losses: Sequence[float]) -> None:
        """Say how far the training is: `train 120/2,500 steps, loss 0.41, 14 min left`."""
        left = self._pace.left(self._stage, number, steps)
        if self._is_due():
            unit = "trials" if self._purpose == "search" else "steps"
            loss = f", loss {sum(losses) / len(losses):.2f}" if losses else ""
            rest = "" if left is None else f", {clock(left)} left"
            self._print(f"{self._stage} {number:,}/{steps:,} {unit}{loss}{rest}")

    def validation(self, found: Validation) -> None:
        """Print the accuracies after an epoch."""
        self._print(line(found, self._purpose))

    def _is_due(self) -> bool:
        return self._now() - self._last >= EVERY

    def _print(self, text: str) -> None:
        self._last = self._now()
        self._console.print(text, soft_wrap=True)
