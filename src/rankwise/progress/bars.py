"""Progress on a terminal: a board of the adapters, and a bar for each stage below it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table as RichTable
from rich.text import Text

from rankwise.errors import on_command_line
from rankwise.progress import console as consoles
from rankwise.progress.board import Board
from rankwise.progress.lines import LogLines
from rankwise.training.callbacks import Callback, Callbacks, Validation

TITLES = ("stage", "", "done", "elapsed", "left")
"""Headers of the bars' columns."""
WIDE = 100
"""Columns of a terminal on which the bars need not share the width with what stands beside them."""


class ProgressBars(Callbacks):
    """On a terminal, one bar per stage below the board of a sweep; otherwise, lines of a log."""

    def __init__(self, console: Console | None = None) -> None:
        console = console or consoles.stderr
        self._bars = TerminalBars(console) if console.is_terminal else None
        super().__init__(self._bars or LogLines(console))

    def note(self, text: str) -> None:
        """Show a message, in the command line's form."""
        super().note(on_command_line(text))

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()
        if self._bars:
            self._bars.stop()


class TerminalBars(Callback):
    """The board and the bars of a terminal, between `start` and `stop`."""

    def __init__(self, console: Console) -> None:
        self._console, self._board = console, Board()
        self._bars = _Bars(self._board, console)
        self._tasks: dict[str, TaskID] = {}  # stage -> its bar
        self._lengths: dict[str, int | None] = {}
        self._stage, self._purpose = "", ""
        self._trains = False  # whether the next stage is the training of a bank
        self._stepped: set[str] = set()  # stages whose progress `step` reports

    def start(self) -> None:
        """Begin to draw."""
        self._bars.start()

    def stop(self) -> None:
        """Leave the last state on the terminal."""
        self._bars.stop()

    def note(self, text: str) -> None:
        """Print a message above the board."""
        self._console.print(text, soft_wrap=True)

    def read(self, text: str) -> None:
        """Show what was read."""
        self.note(text)

    def begin(self, stage: str, total: int | None) -> None:
        """Start a stage; `total` is its number of units, None if unknown."""
        self.end()
        self._stage, self._lengths[stage] = stage, total
        if stage not in self._tasks:
            trained = "trials" if self._purpose == "search" else "steps"
            unit = trained if self._trains else "texts"
            self._tasks[stage] = self._bars.add_task(stage, total=total, unit=unit)
        elif stage not in self._stepped:
            self._bars.reset(self._tasks[stage], total=total)
        self._trains = False

    def advance(self, units: int) -> None:
        """Advance the bar of the stage."""
        if self._stage and self._stage not in self._stepped:
            self._bars.update(self._tasks[self._stage], advance=units)

    def bank(self, purpose: str, ranks: Mapping[str, int]) -> None:
        """Show these adapters; those of another purpose are no longer shown."""
        self._purpose, self._trains = purpose, True
        self._board.bank(purpose, ranks)

    def step(self, adapters: Sequence[str], number: int, steps: int, losses: Sequence[float]) -> None:
        """Update the board and the bar after step `number` of `steps`, from 1."""
        self._board.step(adapters, losses)
        self._stepped.add(self._stage)
        self._bars.update(self._tasks[self._stage], completed=number, total=steps)

    def validation(self, found: Validation) -> None:
        """Show the accuracies after an epoch."""
        self._board.validation(found)

    def end(self) -> None:
        """End the stage. The bar of a stage of unknown length is removed."""
        if self._stage and self._lengths[self._stage] is None:
            self._bars.remove_task(self._tasks.pop(self._stage))
        self._stage = ""


class _Done(TextColumn):
    """Such as `120/2,500 steps`; empty for a stage of unknown length that counts nothing."""

    def __init__(self) -> None:
        super().__init__("", justify="right")

    def render(self, task: Task) -> Text:
        """The units of a bar."""
        if task.total is None and not task.completed:
            return Text()
        of = "" if task.total is None else f"/{task.total:,.0f}"
        return Text(f"{task.completed:,.0f}{of} {task.fields['unit']}")


class _Bars(Progress):
    """Progress bars below a sweep's board."""

    def __init__(self, board: Board, console: Console) -> None:
        self._board, self._screen = board, console
        narrow = console.width < WIDE
        super().__init__(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=None if narrow else 40),
            _Done(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            expand=narrow,
        )

    def make_tasks_table(self, tasks: Iterable[Task]) -> RichTable:
        """The bars, with a header above them."""
        table = super().make_tasks_table(tasks)
        for column, title in zip(table.columns, TITLES, strict=True):
            column.header = title
        table.show_header, table.header_style = bool(table.row_count), "dim"
        return table

    def get_renderables(self) -> Iterable[RenderableType]:
        """The board, unless it is empty, and the bars."""
        board = self._board.table(self._screen.width, self._screen.height - len(self.tasks) - 1)
        return [*([board] if board else []), self.make_tasks_table(self.tasks)]
