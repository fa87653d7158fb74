"""Exception hierarchy.

Every error that a user can cause or run into has a message (what and where), a hint (what to do) and an
exit status for the command line::

    RankwiseError          1   base class
    ├── UsageError         2   an option, recipe or argument that cannot be used
    ├── DataError          3   a text or label file that cannot be used: file, line, column
    ├── ModelError         4   a base model or adapter that cannot be used
    ├── Unreachable        5   the Hub, another service or process did not answer
    ├── ResourceError      6   out of memory or disk, or the system refuses to write a file
    └── TrainingError      7   the loss, a gradient or a weight is not finite

Status 70 is an error in rankwise itself; 129, 130 and 143 are SIGHUP, Ctrl-C and SIGTERM.

A message may name a setting. The command line calls it an option, and Python a keyword. `option` and `either`
write both forms into the message; an error has Python's, and the command line shows the other::

    UsageError("too long", hint=f"use {option('max_length', 64)} or less")

    Python            use max_length=64 or less
    command line      use --max-length 64 or less

A `Note` is a message that is not an error, such as one to a callback; it has both forms, too.
"""

from __future__ import annotations

import re
from pathlib import Path
from reprlib import repr as brief
from typing import Any, Self

_START, _MIDDLE, _END = "\x02", "\x1f", "\x03"
"""Marks around the two forms. They are control characters, which no message contains otherwise."""
_FORMS = re.compile(f"{_START}([^{_START}{_MIDDLE}{_END}]*){_MIDDLE}([^{_START}{_MIDDLE}{_END}]*){_END}")


def either(command_line: str, python: str) -> str:
    """A part of a message that differs between the command line and Python."""
    return f"{_START}{command_line}{_MIDDLE}{python}{_END}"


def option(name: str, value: Any = None) -> str:
    """A setting or argument by its Python name, with a value if one is given, as a part of a message.

    >>> hint = f"{option('tune', False)}, or set {option('ranks', (1, 4))} and {option('tuning_texts')}"
    >>> as_options(hint)
    '--no-tune, or set --ranks 1,4 and --tuning-texts'
    >>> as_keywords(hint)
    'tune=False, or set ranks=(1, 4) and tuning_texts'
    """
    dashed = name.replace("_", "-")
    if value is None:
        return either(f"--{dashed}", name)
    if isinstance(value, bool):
        return either(f"--{dashed}" if value else f"--no-{dashed}", f"{name}={value}")
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
    return either(f"--{dashed} {shown}", f"{name}={value!r}")


def as_options(text: str) -> str:
    """The command line's form of a message written with `either` or `option`."""
    return _FORMS.sub(r"\1", text)


def as_keywords(text: str) -> str:
    """Python's form of a message written with `either` or `option`."""
    return _FORMS.sub(r"\2", text)


class Note(str):
    """A message in Python's form, from which `on_command_line` makes the other.

    Args:
        written: the message as written with `either` or `option`.

    >>> note = Note(f"a smaller {option('memory_gb')} avoids this")
    >>> print(note), print(on_command_line(note))
    a smaller memory_gb avoids this
    a smaller --memory-gb avoids this
    (None, None)
    """

    written: str

    def __new__(cls, written: str) -> Self:
        """A string with Python's form."""
        note = super().__new__(cls, as_keywords(written))
        note.written = written
        return note


def on_command_line(text: str) -> str:
    """The command line's form of a note, or of any other message."""
    return as_options(text.written if isinstance(text, Note) else text)


class RankwiseError(Exception):
    """An error with a user-facing message. ``str(error)`` is the message, then a ``hint:`` line."""

    exit_status: int = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.written = message, hint
        """Message and hint as written, with both forms of each setting."""

    @property
    def message(self) -> str:
        """What is wrong, and where."""
        return as_keywords(self.written[0])

    @property
    def hint(self) -> str:
        """What to do; empty if there is nothing to say."""
        return as_keywords(self.written[1])

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
    """The Hub, another service or another process did not answer."""

    exit_status = 5


class ResourceError(RankwiseError):
    """Out of memory or disk, or the system refuses to read or write a file."""

    exit_status = 6


class TrainingError(RankwiseError):
    """The loss, a gradient or a weight is not finite."""

    exit_status = 7
