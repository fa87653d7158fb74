"""Naming conventions for columns, splits and paths, and validation of cell values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import category

from rankwise.data.readers import (
    INCOMPLETE,
    SUFFIXES,
    Origin,
    Row,
    Table,
    listed,
    short,
)
from rankwise.errors import DataError, option

TEXT_COLUMNS = (
    "text", "sentence", "content", "body", "document", "tweet", "message", "review", "comment",
    "post", "utterance", "query", "question", "input", "title",
)  # fmt: skip


LABEL_COLUMNS = (
    "label", "labels", "emotion", "class", "category", "target", "sentiment", "intent", "topic",
)  # fmt: skip


SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "val", "valid", "dev"), "test": ("test",)}


@dataclass(frozen=True)
class LabeledRows:
    """The rows of one file or Hub split: labels are still strings, line numbers are for messages."""

    origin: Origin
    texts: list[str]
    labels: list[str]
    lines: list[int]
    classes: Sequence[str]


def text_and_label(
    origin: Origin, columns: list[str], text: str | None, label: str | None
) -> tuple[str, str]:
    """(text column, label column): as given, by common names, or the remaining one of two columns."""
    text = _given(origin, columns, text) or _usual(TEXT_COLUMNS, columns, besides=label)
    label = _given(origin, columns, label) or _usual(LABEL_COLUMNS, columns, besides=text)
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
        DataError: the text column cannot be determined.
    """
    text = _given(origin, columns, text) or _usual(TEXT_COLUMNS, columns, besides=None)
    text = text or _other(columns, _usual(LABEL_COLUMNS, columns, besides=None))
    if text is None and len(columns) == 1:
        text = columns[0]
    if text is None:
        raise _unnamed(origin, columns, "text")
    return text


def _unnamed(origin: Origin, columns: list[str], what: str) -> DataError:
    message = f"no column for the {what} is known by its name; the columns are {listed(columns)}"
    hint = f"use {option(f'{what}_column', 'NAME')}; the first line of a file must contain the column names"
    if len(columns) == 1 and (sign := next((sign for sign in ";\t|" if sign in columns[0]), None)):
        hint = f"the separator seems to be {sign!r}: .csv uses commas, .tsv tabs, .txt is text;label"
    return origin.error(message, hint=hint)


def _given(origin: Origin, columns: list[str], name: str | None) -> str | None:
    if name is not None and name not in columns:
        raise origin.error(f"no column {short(name)}; the columns are {listed(columns)}")
    return name


def _usual(names: tuple[str, ...], columns: list[str], *, besides: str | None) -> str | None:
    by_name = {column.lower(): column for column in reversed(columns) if column != besides}
    return next((by_name[name] for name in names if name in by_name), None)


def _other(columns: list[str], column: str | None) -> str | None:
    """The other column of exactly two."""
    if len(columns) != 2 or column is None:
        return None
    return columns[1] if columns[0] == column else columns[0]


def collect(table: Table, text_column: str, label_column: str) -> LabeledRows:
    """Read and validate all rows of a table."""
    origin, names = table.origin, table.classes.get(label_column, ())
    texts: list[str] = []
    labels: list[str] = []
    lines: list[int] = []
    once: dict[str, str] = {}  # share one string among equal labels
    for number, row in table.rows:
        texts.append(text_of(origin, number, row, text_column))
        label = _label_of(origin, number, row, label_column, names)
        labels.append(once.setdefault(label, label))
        lines.append(number)
    if not texts:
        raise origin.error("the file has no texts", hint=INCOMPLETE)
    return LabeledRows(origin, texts, labels, lines, names)


def text_of(origin: Origin, number: int, row: Row, column: str) -> str:
    """The validated text of a row.

    Raises:
        DataError: the text is missing, empty, not a string, or contains a NUL or a lone surrogate.
    """
    value = row.get(column)
    if not isinstance(value, str):
        what = "missing" if value is None else f"of type {type(value).__name__}, not a string"
        hint = f"add a text or remove the row; {option('text_column', 'NAME')} selects the text column"
        raise origin.error(f"the text is {what}", number, column=column, hint=hint)
    if not value.strip():
        hint = "give it a text, or take the line out"
        raise origin.error("the text is empty", number, column=column, hint=hint)
    return _encodable(origin, number, value, column)


def _label_of(origin: Origin, number: int, row: Row, column: str, names: Sequence[str]) -> str:
    """A label as a string: 1 and 1.0 -> '1', True -> 'true', a ClassLabel index -> its name."""
    value = row.get(column)
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
    return value.startswith(("/", ".", "~")) or Path(value).suffix.lower() in SUFFIXES
