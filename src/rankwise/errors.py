"""What can go wrong, as one tree.

Every error that a user can cause or meet carries a message (what, where), a hint (what to do) and the
exit status of the command line::

    RankwiseError          1   anything below
    ├── UsageError         2   an option, recipe or argument that cannot be used
    ├── DataError          3   a text or label file that cannot be used: file, line, column
    ├── ModelError         4   a base model or adapter that cannot be used
    ├── Unreachable        5   the Hub, or another service, did not answer
    ├── ResourceError      6   out of memory or disk
    └── TrainingError      7   the loss, a gradient or a weight is no longer a number

Status 70 is an error in rankwise itself, 130 and 143 are Ctrl-C and SIGTERM.
"""

from __future__ import annotations

from pathlib import Path
from reprlib import repr as brief


class RankwiseError(Exception):
    """An error with a message for people. ``str(error)`` is the message, then a ``hint:`` line."""

    exit_status: int = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class UsageError(RankwiseError):
    """An option, recipe or argument that cannot be used."""

    exit_status = 2


class DataError(RankwiseError):
    """A text or label file that cannot be used.

    The message begins with ``file:line:`` (or ``file:``), as compilers do, so that editors
    can jump to it, and ends with the column's name where it is about one. ``line`` counts from 1,
    header included.
    """

    exit_status = 3

    def __init__(
        self,
        message: str,
        *,
        path: Path | str | None = None,
        line: int | None = None,
        column: str | None = None,
        hint: str = "",
    ) -> None:
        where = "" if path is None else f"{path}:" if line is None else f"{path}:{line}:"
        which = "" if column is None else f" (column {brief(column)})"
        super().__init__(f"{where} {message}{which}".lstrip(), hint=hint)
        self.path = path
        self.line = line
        self.column = column


class ModelError(RankwiseError):
    """A base model or adapter that cannot be used."""

    exit_status = 4


class Unreachable(RankwiseError):
    """The Hub, or another service, did not answer."""

    exit_status = 5


class ResourceError(RankwiseError):
    """Out of memory or disk."""

    exit_status = 6


class TrainingError(RankwiseError):
    """The loss, a gradient or a weight is no longer a number."""

    exit_status = 7
