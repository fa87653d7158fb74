"""The board of a running job: each adapter's training loss, and its accuracy after every epoch."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from rankwise.training.callbacks import Validation

RECENT = 20
"""The displayed loss is the mean over this many steps."""
NAME_WIDTH = 24
"""Terminal columns for an adapter's name and loss."""
EPOCH_WIDTH = 10
"""Terminal columns per epoch."""
MARGIN = 6
"""Terminal lines for the caption, the header and the prompt above."""
JUDGED = {"tune": "on the tuning texts", "search": "on validation", "train": "on validation"}
"""What a bank is trained for -> the texts that its accuracies are measured on."""


@dataclass(frozen=True)
class Grid:
    """The cells of the board, for any kind of display."""

    caption: str  # what the numbers are
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass
class _Progress:
    """Progress of one adapter."""

    losses: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    accuracy: dict[float, float] = field(default_factory=dict)  # epoch -> fraction

    def loss(self) -> float | None:
        return sum(self.losses) / len(self.losses) if self.losses else None


class Board:
    """Losses and accuracies so far; `table` shows as many as fit."""

    def __init__(self) -> None:
        self._rows: defaultdict[str, _Progress] = defaultdict(_Progress)
        self._training: Sequence[str] = ()
        self._ranks: dict[str, int] = {}
        self._purpose = ""

    def bank(self, purpose: str, ranks: Mapping[str, int]) -> None:
        """A bank is to be trained; trials and final adapters are not shown together."""
        if purpose != self._purpose:
            self._rows.clear()
        self._purpose = purpose
        self._ranks |= ranks

    def step(self, adapters: Sequence[str], losses: Sequence[float]) -> None:
        """Add the losses of a step."""
        self._training = adapters
        for name, loss in zip(adapters, losses, strict=True):
            self._rows[name].losses.append(loss)

    def validation(self, found: Validation) -> None:
        """Add the accuracies after an epoch."""
        for name, accuracy in zip(found.adapters, found.accuracy, strict=True):
            self._rows[name].accuracy[found.epoch] = accuracy

    def grid(self, epochs_shown: int, room: int) -> Grid | None:
        """As much as fits into `room` rows and `epochs_shown` columns; None while there is nothing to show.

        If the adapters do not fit, only those in training are shown. If these do not fit either, each rank
        has one line with the mean over its adapters, and the last ranks are replaced by their number.
        """
        names = {name: [name] for name in self._rows}
        if len(names) > room and 0 < len(self._training) <= room:
            names = {name: [name] for name in self._training}
        elif len(names) > room:
            names = self._by_rank()
        if not names:
            return None
        epochs = sorted({epoch for row in self._rows.values() for epoch in row.accuracy})[-epochs_shown:]
        shown = list(names.items())[: room if len(names) <= room else room - 1]
        rows = [
            (name, *self._cells([self._rows[each] for each in members], epochs)) for name, members in shown
        ]
        if len(names) > room:
            rows.append((f"and {len(names) - room + 1} more", *[""] * (1 + len(epochs))))
        first = "adapter" if names.keys() <= self._rows.keys() else "rank"
        judged = JUDGED.get(self._purpose, "on validation")
        return Grid(
            f"loss: training, last {RECENT} steps; epoch: accuracy {judged} in %",
            (first, "loss", *(f"epoch {epoch:.3g}" for epoch in epochs)),
            tuple(rows),
        )

    def table(self, columns: int, lines: int) -> RenderableType | None:
        """The board for a terminal of this size; None while there is nothing to show."""
        epochs = max(1, (columns - NAME_WIDTH) // EPOCH_WIDTH)
        found = self.grid(epochs, max(1, lines - MARGIN))
        if found is None:
            return None
        shown = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for i, title in enumerate(found.header):
            shown.add_column(title, justify="right" if i else "left", no_wrap=True)
        for row in found.rows:
            shown.add_row(*row)
        return Group(Text(found.caption, "dim"), shown) if len(found.caption) <= columns else shown

    @staticmethod
    def _cells(rows: Sequence[_Progress], epochs: Sequence[float]) -> list[str]:
        accuracies = ([row.accuracy.get(epoch) for row in rows] for epoch in epochs)
        return [_number([row.loss() for row in rows], 1, 3), *(_number(each, 100, 2) for each in accuracies)]

    def _by_rank(self) -> dict[str, list[str]]:
        """Rank -> its adapters."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for name in self._rows:
            found[str(self._ranks[name])].append(name)
        return dict(found)


def line(found: Validation, purpose: str = "train") -> str:
    """The accuracies after an epoch, or the log losses of trials, on one line.

    >>> line(Validation(["r1-s110"], 1, 3, 6, [0.915], [0.9], [0.3]))
    'epoch 1/3, validation accuracy: r1-s110 91.50'
    """
    if purpose in ("tune", "search"):
        losses = (f"{name} {loss:.3f}" for name, loss in zip(found.adapters, found.log_loss, strict=True))
        return f"log loss on {'the tuning texts' if purpose == 'tune' else 'validation'}: {', '.join(losses)}"
    each = (f"{name} {100 * right:.2f}" for name, right in zip(found.adapters, found.accuracy, strict=True))
    return f"epoch {found.epoch:.3g}/{found.epochs:.3g}, validation accuracy: {', '.join(each)}"


def _number(values: Iterable[float | None], scale: float, digits: int) -> str:
    """Format the mean of the values that are not None."""
    known = [value for value in values if value is not None]
    return f"{scale * sum(known) / len(known):.{digits}f}" if known else ""
