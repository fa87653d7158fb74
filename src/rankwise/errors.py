"""Exception hierarchy.

Every error that a user can cause or run into has a message (what and where), a hint (what to do) and an
exit status for the command line::

    RankwiseError          1   base class
    ├── UsageError         2   an option, recipe or argument that cannot be used
    ├── DataError          3   a text or label file that cannot be used: file, line, column
    ├── ModelError         4   a base model or adapter that cannot be used
    ├── Unreachable        5   the Hub, or another service, did not answer
    ├── ResourceError      6   out of memory or disk, or the system refuses to write a file
    └── TrainingError      7   the loss, a gradient or a weight is not finite

Status 70 is an error in rankwise itself, 130 and 143 are Ctrl-C and SIGTERM.
"""

from __future__ import annotations

from pathlib import Path
from reprlib import repr as brief


class RankwiseError(Exception):
    """An error with a user-facing message. ``str(error)`` is the message, then a ``hint:`` line."""

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

    The message starts with ``file:line:`` (or ``file:``) like a compiler's, so that editors can jump
    to it, and ends with the column name if there is one. ``line`` counts from 1, including the
    header.
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
    """Out of memory or disk, or the system refuses to read or write a file."""

    exit_status = 6


class TrainingError(RankwiseError):
    """The loss, a gradient or a weight is not finite."""

    exit_status = 7
