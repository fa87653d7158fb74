"""Rows with line numbers, and where they come from: what every reader returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankwise.errors import DataError

BATCH_ROWS = 1024
INCOMPLETE = "is this the right file, and is it complete?"
AGAIN = "write or copy the file again"

Row = dict[str, Any]
NumberedRows = Iterator[tuple[int, Row]]


@dataclass(frozen=True)
class Origin:
    """Where rows come from, for messages: a file, or a split of a dataset."""

    path: Path | str
    in_rows: bool = False
    """Whether numbers count rows (Parquet, spreadsheets, the Hub) instead of lines of a text file."""
    named: bool = True
    """Whether columns have names; those of a `.txt` file do not."""
    spreadsheet: bool = False
    """Whether a number may be a text: a spreadsheet turns a text such as 2024 into a number."""

    @property
    def name(self) -> str:
        """The file name, or the dataset and its split."""
        return self.path.name if isinstance(self.path, Path) else self.path

    @property
    def file(self) -> Path:
        """The path of a file."""
        return Path(self.path)

    def error(
        self, message: str, number: int | None = None, *, column: str | None = None, hint: str = ""
    ) -> DataError:
        """A DataError at this origin, optionally with a line or row number (from 1) and a column."""
        column = column if self.named else None
        if self.in_rows and number is not None:
            return DataError(f"row {number}: {message}", path=self.path, column=column, hint=hint)
        return DataError(message, path=self.path, line=number, column=column, hint=hint)

    def note(self, message: str) -> str:
        """A note for the user on this origin."""
        return f"{self.name}: {message}"

    def place(self, number: int) -> str:
        """Where a row is, such as `train.csv:12` or `train.parquet row 12`, without the folder."""
        return f"{self.name} row {number}" if self.in_rows else f"{self.name}:{number}"


@dataclass(frozen=True)
class Table:
    """Columns, and an iterator of rows with their line or row numbers."""

    origin: Origin
    columns: list[str]
    rows: NumberedRows
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Column -> ClassLabel names, for formats that have them."""
    notes: list[str] = field(default_factory=list)
    """Notes for the user; complete once all rows have been read."""
    padded: bool = False
    """Whether the rows may end in empty ones, as office programs write them."""
    ragged: bool = False
    """Whether later rows may have columns that the first one lacks."""


def listed(names: Sequence[str]) -> str:
    """Names joined for a message, at most twenty."""
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return (", ".join(short(name).strip("'\"") for name in names[:20]) or "nothing") + more


def short(value: object) -> str:
    """A value quoted for a message, at most 60 characters."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def first_line(error: BaseException) -> str:
    """The first line of a library error's message, or its class name if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" :.")


def counted(number: int, what: str) -> str:
    """A number and what it counts.

    >>> counted(1, "row"), counted(2000, "row")
    ('1 row', '2,000 rows')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"
