"""Progress in a Jupyter notebook: one output that is updated, and at the end the verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rankwise.progress.board import Board, Grid
from rankwise.progress.outcome import outcome
from rankwise.progress.pace import Now, Pace, clock
from rankwise.report.tables import printable
from rankwise.training.callbacks import Callback, Validation

EVERY = 0.5
"""Seconds between two updates of the output."""
MOST_ROWS = 40
MOST_EPOCHS = 10
CELL = ' style="text-align:right"'


class NotebookDisplay(Callback):
    """Shows the stage, what is done of it, the time, and the board of adapters.

    Args:
        display: `IPython.display.display`.
        now: a clock, in seconds.
    """

    def __init__(self, display: Callable[..., Any], now: Now = time.monotonic) -> None:
        self._now, self._began, self._pace, self._board = now, now(), Pace(now), Board()
        self._stage, self._next = "", "texts"
        self._units: dict[str, str] = {}  # stage -> what it counts
        self._done, self._total = 0, 0
        self._left: float | None = None
        self._notes: list[str] = []
        self._outcome: list[str] = []
        self._drawn = now()
        self._handle = display(self, display_id=True)

    def note(self, text: str) -> None:
        """Show a message."""
        self._notes.append(text)
        self._draw()

    def read(self, text: str) -> None:
        """Show what was read."""
        self.note(text)

    def begin(self, stage: str, total: int | None) -> None:
        """Show a new stage."""
        self._units.setdefault(stage, self._next)
        self._next = "texts"
        self._stage, self._done, self._total, self._left = stage, 0, total or 0, None
        self._draw(at_once=False)

    def advance(self, units: int) -> None:
        """Count texts, or the steps of an earlier session."""
        self._done += units
        self._draw(at_once=False)

    def bank(self, purpose: str, ranks: Mapping[str, int]) -> None:
        """Show these adapters."""
        self._next = "trials" if purpose == "search" else "steps"
        self._board.bank(purpose, ranks)

    def step(self, adapters: Sequence[str], number: int, steps: int, losses: Sequence[float]) -> None:
        """Update the stage and the losses."""
        self._board.step(adapters, losses)
        self._done, self._total, self._left = number, steps, self._pace.left(self._stage, number, steps)
        self._draw(at_once=False)

    def validation(self, found: Validation) -> None:
        """Show the accuracies after an epoch."""
        self._board.validation(found)
        self._draw()

    def finished(self, folder: Path) -> None:
        """Show the verdict and the run folder."""
        self._outcome = outcome(folder)
        self._draw()

    def _draw(self, at_once: bool = True) -> None:
        if at_once or self._now() - self._drawn >= EVERY:
            self._drawn = self._now()
            if self._handle is not None:
                self._handle.update(self)

    def _line(self) -> str:
        """Such as `train: 120 of 2,500 steps, 40 s elapsed, about 14 min left`."""
        elapsed = f"{clock(self._now() - self._began)} elapsed"
        if self._outcome:
            return f"finished, {elapsed}"
        of = f" of {self._total:,}" if self._total else ""
        done = f": {self._done:,}{of} {self._units.get(self._stage, '')}" if self._total or self._done else ""
        left = "" if self._left is None else f", about {clock(self._left)} left"
        return f"{self._stage or 'starting'}{done}, {elapsed}{left}"

    def _grid(self) -> Grid | None:
        return self._board.grid(MOST_EPOCHS, MOST_ROWS)

    def __repr__(self) -> str:
        """The display as text, for frontends without HTML."""
        grid = self._grid()
        rows = [" | ".join(row) for row in (grid.header, *grid.rows)] if grid else []
        caption = [grid.caption] if grid else []
        return "\n".join(map(printable, [self._line(), *caption, *rows, *self._notes, *self._outcome]))

    def _repr_html_(self) -> str:
        bar = f'<progress max="{self._total}" value="{self._done}"></progress> ' if self._total else ""
        shown = [f"<p>{'' if self._outcome else bar}{_safe(self._line())}</p>"]
        if grid := self._grid():
            shown.append(_table(grid))
        shown += [f"<p>{_safe(each)}</p>" for each in (*self._notes, *self._outcome)]
        return "\n".join(shown)


def _table(grid: Grid) -> str:
    head = "".join(f"<th{CELL}>{_safe(title)}</th>" for title in grid.header)
    rows = ("".join(f"<td{CELL}>{_safe(cell)}</td>" for cell in row) for row in grid.rows)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><caption>{_safe(grid.caption)}</caption><tr>{head}</tr>{body}</table>"


def _safe(text: str) -> str:
    return escape(printable(text))
