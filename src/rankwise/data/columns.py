"""Which columns are the text, the label and the split, and validation of their values."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unicodedata import category

from rankwise.data.names import LABEL_KEYS, TEXT_KEYS, key
from rankwise.data.readers import SUFFIXES, suffix_of
from rankwise.data.roles import Roles
from rankwise.data.tables import INCOMPLETE, NumberedRows, Origin, Row, Table, counted, listed, short
from rankwise.errors import DataError, either, option
from rankwise.recipe import OTHER_TASKS
from rankwise.tasks.labels import ONE_LABEL, Label, Labels


@dataclass(frozen=True)
class LabeledRows:
    """The rows of one file or split: labels are still strings, line numbers are for messages."""

    origin: Origin
    texts: list[str]
    labels: list[Label]
    lines: list[int]
    classes: Sequence[str]
    columns: Columns | None = None
    """The columns that were read; None if there are no names for them."""
    splits: list[str] = field(default_factory=list)
    """The split of each row, by the column `split`; empty without such a column."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a table that are read, and of those that are not."""

    text: str
    label: str | None
    unused: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """What is read of a table: its columns, found by their usual names if they are None, and the task."""

    text: str | None = None
    label: str | None = None
    task: Labels = ONE_LABEL
    pair: tuple[str, ...] = ()  # the two columns of a pair of texts, which `text` then is the name of


USUAL = Wanted()
"""One text and one label, in columns with usual names."""


def text_and_label(
    origin: Origin, columns: list[str], text: str | None, label: str | None
) -> tuple[str, str]:
    """(text column, label column): as given, by common names, or the remaining one of two columns.

    Raises:
        DataError: a column cannot be determined, or more than one could be meant.
    """
    text = _given(origin, columns, text)
    label = _given(origin, columns, label)
    text = text or _usual(origin, columns, "text", besides=label)
    label = label or _usual(origin, columns, "label", besides=text)
    text = text or _other(columns, label)
    label = label or _other(columns, text)
    if text is None or label is None:
        raise _unnamed(origin, columns, "text" if text is None else "label")
    if text == label:
        raise origin.error(f"the column {short(text)} cannot be both text and label")
    return text, label


def find_text_column(origin: Origin, columns: list[str], text: str | None) -> str:
    """The text column of unlabeled rows: as given, by a common name, or the only column.

    Raises:
        DataError: the text column cannot be determined, or more than one could be meant.
    """
    text = _given(origin, columns, text) or _usual(origin, columns, "text", besides=None)
    text = text or _other(columns, next(iter(_candidates(columns, "label", besides=None)), None))
    if text is None and len(columns) == 1:
        text = columns[0]
    if text is None:
        raise _unnamed(origin, columns, "text")
    return text


def has_label_column(columns: list[str], label: str | None) -> bool:
    """Whether a table has a column for labels that is given or known by its name."""
    return label in columns if label else bool(_candidates(columns, "label", besides=None))


def without_labels(origin: Origin, columns: list[str], wanted: Wanted, train: LabeledRows) -> list[str]:
    """A note if a test split has no column for labels: neither that of train, nor one known by its name."""
    used = train.columns and train.columns.label
    if used is None or used in columns or has_label_column(columns, wanted.label):
        return []
    return [origin.note("no label column, so there is no test split")]


def _unnamed(origin: Origin, columns: list[str], what: str) -> DataError:
    message = f"no column for the {what} is known by its name; the columns are {listed(columns)}"
    hint = f"use {option(f'{what}_column', 'NAME')}; the first line of the file must contain the column names"
    return origin.error(message, hint=hint)


def _given(origin: Origin, columns: list[str], name: str | None) -> str | None:
    if name is not None and name not in columns:
        raise origin.error(f"no column {short(name)}; the columns are {listed(columns)}")
    return name


def _usual(origin: Origin, columns: list[str], what: str, *, besides: str | None) -> str | None:
    """The column that is known as a text or a label by its name. Raises a DataError if several are."""
    found = _candidates(columns, what, besides=besides)
    if len(found) < 2 or key(found[0]) == what:
        return next(iter(found), None)
    several = f"{len(found)} columns could be the {what}: {listed(found)}"
    chosen = either(f"--{what}-column {shlex.quote(found[0])}", f"{what}_column={found[0]!r}")
    raise origin.error(several, hint=f"choose one: {chosen}")


def _candidates(columns: list[str], what: str, *, besides: str | None) -> list[str]:
    """The columns known as texts or labels, in the order of the known names."""
    names = TEXT_KEYS if what == "text" else LABEL_KEYS
    found = [column for column in columns if column != besides and key(column) in names]
    return sorted(found, key=lambda column: names.index(key(column)))


def _other(columns: list[str], column: str | None) -> str | None:
    """The other column of exactly two."""
    if len(columns) != 2 or column is None:
        return None
    return columns[1] if columns[0] == column else columns[0]


def collect(
    table: Table, text_column: str, label_column: str, task: Labels = ONE_LABEL, *, optional: bool = False
) -> LabeledRows:
    """Read and validate all rows of a table. Empty rows at the end are left out, with a note in the table.

    Labels of test rows, or of all rows if `optional` is true, may be missing, as `is_unlabeled` tells.
    """
    origin, names = table.origin, table.classes.get(label_column, ())
    roles = Roles(origin, table.columns, table.classes, (text_column, label_column))
    texts: list[str] = []
    labels: list[Label] = []
    lines: list[int] = []
    splits: list[str] = []
    once: dict[Label, Label] = {}  # share one object among equal labels
    for number, row in without_empty_tail(table):
        texts.append(text_of(origin, number, row, text_column))
        if (split := roles.add(number, row)) is not None:
            splits.append(split)
        if (optional or splits[-1:] == ["test"]) and is_unlabeled(row.get(label_column)):
            label: Label = () if task.several else _no_label(row.get(label_column))
        else:
            label = _label_of(origin, number, row, label_column, names, task)
        labels.append(once.setdefault(label, label))
        lines.append(number)
    if not texts:
        raise origin.error("the file has no texts", hint=INCOMPLETE)
    roles.check()
    used = {text_column, label_column, roles.column}
    unused = tuple(name or "(no name)" for name in table.columns if name not in used)
    columns = Columns(text_column, label_column, unused) if origin.named else None
    return LabeledRows(origin, texts, labels, lines, names, columns, splits)


def without_empty_tail(table: Table) -> NumberedRows:
    """The rows of a table. If office programs may have padded it, empty rows at the end are left out."""
    if not table.padded:
        yield from table.rows
        return
    empty: list[int] = []
    blank: Row = {}
    for number, row in table.rows:
        if all(value is None or (isinstance(value, str) and not value.strip()) for value in row.values()):
            empty.append(number)
            blank = blank or row
            continue
        yield from ((each, dict(blank)) for each in empty)
        empty.clear()
        yield number, row
    if empty:
        table.notes.append(table.origin.note(f"{counted(len(empty), 'empty row')} at the end left out"))


def text_of(origin: Origin, number: int, row: Row, column: str) -> str:
    """The validated text of a row.

    Raises:
        DataError: the text is missing, empty, not a string, or contains a NUL or a lone surrogate.
    """
    value = row.get(column)
    if origin.spreadsheet and isinstance(value, int | float) and not isinstance(value, bool):
        value = f"{value:.15g}"  # as the spreadsheet shows it
    if not isinstance(value, str):
        if _is_list(value):
            raise origin.error("the text is a list of words", number, column=column, hint=WORDS)
        what = "missing" if value is None else f"of type {type(value).__name__}, not a string"
        hint = f"add a text or remove the row; {option('text_column', 'NAME')} selects the text column"
        raise origin.error(f"the text is {what}", number, column=column, hint=hint)
    if not value.strip():
        hint = "add a text, or remove the line"
        raise origin.error("the text is empty", number, column=column, hint=hint)
    return _encodable(origin, number, value, column)


def _label_of(
    origin: Origin, number: int, row: Row, column: str, names: Sequence[str], task: Labels
) -> Label:
    """The validated label of a row, or all of its labels without repetitions."""
    value = row.get(column)
    if not task.several:
        if _is_list(value):
            raise _several(origin, number, value, row, column)
        return _one_label(origin, number, value, column, names)
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        value = [each for each in value.split(task.separator) if each.strip()]
    values = value if _is_list(value) else [value]
    found = tuple(dict.fromkeys(_one_label(origin, number, each, column, names) for each in values))
    if joined := [label for label in found if task.separator in label]:
        hint = f"choose another one with {option('label_separator', ';')}"
        what = f"the label {short(joined[0])} contains {task.separator!r}, which joins labels in tables"
        raise origin.error(what, number, column=column, hint=hint)
    return found


WORDS = f"rankwise trains classifiers: {OTHER_TASKS['token']}"
"""Hint for data with a label for each word."""


def _several(origin: Origin, number: int, values: Any, row: Row, column: str) -> DataError:
    """The error for a list of labels where one label is expected."""
    others = [value for name, value in row.items() if name != column]
    words = {
        len(value.split()) if isinstance(value, str) else len(value) for value in others if _is_text(value)
    }
    if len(values) > 2 and len(values) in words:
        return origin.error(
            "the label is a list with a label for each word", number, column=column, hint=WORDS
        )
    hint = f"for texts with several labels: {option('task', 'multi-label')}"
    return origin.error(f"the label is a list: {short(values)}", number, column=column, hint=hint)


def _is_text(value: object) -> bool:
    return isinstance(value, str) or _is_list(value)


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def _one_label(origin: Origin, number: int, value: object, column: str, names: Sequence[str]) -> str:
    """A label as a string: 1 and 1.0 -> '1', True -> 'true', a ClassLabel index -> its name."""
    if isinstance(value, str):
        label = value.strip()
    elif isinstance(value, bool):
        label = str(value).lower()
    elif isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        if names and not 0 <= value < len(names):
            what = f"the label {short(value)} is outside 0 to {len(names) - 1}"
            hint = "labels must be indices into the dataset's class names; -1 marks an unlabeled row"
            raise origin.error(what, number, column=column, hint=hint)
        label = names[int(value)] if names else str(int(value))
    else:
        what = "missing" if value is None else f"{short(value)}, neither a string nor an integer"
        hint = "add a label or remove the row; labels are strings, integers, true or false"
        hint = OTHER_TASKS["regression"] if isinstance(value, float) and value == value else hint
        raise origin.error(f"the label is {what}", number, column=column, hint=hint)
    if not label:
        hint = "add a label or remove the line"
        raise origin.error("the label is empty", number, column=column, hint=hint)
    if not label.isprintable() and any(category(sign) == "Cc" for sign in label):
        hint = "is a quote left open, or is this the text column?"
        what = f"the label {short(label)} contains a control character"
        raise origin.error(what, number, column=column, hint=hint)
    return _encodable(origin, number, label, column)


def _encodable(origin: Origin, number: int, value: str, column: str) -> str:
    """The value, checked for NULs and lone surrogates: JSON allows both, other formats do not."""
    if "\0" in value:
        raise origin.error("the value contains a NUL", number, column=column, hint="remove it")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            what = f"the value contains \\u{ord(value[error.start]):04x}, a lone surrogate"
            hint = "the text was cut inside a character: restore or remove that character"
            raise origin.error(what, number, column=column, hint=hint) from None
    return value


def is_path(value: str) -> bool:
    """Whether a value is a file or folder path, not a Hub dataset or split."""
    return value.startswith(("/", ".", "~")) or suffix_of(Path(value)) in SUFFIXES


def is_unlabeled(value: object) -> bool:
    """Whether a label says that there is none: it is -1, missing or empty.

    >>> [is_unlabeled(value) for value in (-1, "-1.0", None, float("nan"), " ", 0, "x")]
    [True, True, True, True, True, False, False]
    """
    if isinstance(value, str):
        return value.strip() in ("", "-1", "-1.0")
    return value is None or value == -1 or value != value


def _no_label(value: object) -> str:
    """A value that `is_unlabeled` as a string, which is the name of a class if train has it."""
    return value.strip() if isinstance(value, str) else "-1" if value == -1 else ""
