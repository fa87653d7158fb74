"""Pairs of texts, such as a premise and a hypothesis, joined into one text.

The texts are joined by a line break. Every tokenizer has a token for it, people can read and write it, and it
does not tell a pretrained model that the text is over, as an end-of-text token would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rankwise.data.columns import text_of
from rankwise.data.tables import NumberedRows, Origin, Table, listed, short
from rankwise.errors import DataError, option

JOINER = "\n"
"""What stands between the texts of a pair. An adapter stores it, so that it could change."""


def joined_name(columns: Sequence[str]) -> str:
    """The name of the column of joined texts.

    >>> joined_name(("premise", "hypothesis"))
    'premise + hypothesis'
    """
    return " + ".join(columns)


def with_pairs(table: Table, columns: Sequence[str], *, skip_empty: bool = False) -> Table:
    """A table with a column of joined texts in front, instead of their own columns.

    It stays as it is if there is no pair of columns, or if it has joined texts already.

    Args:
        table: the table.
        columns: the two columns; empty for none.
        skip_empty: join a pair with an empty text to None instead of raising an error.

    Raises:
        DataError: a column is missing; in its rows, a text is missing, empty or not a string.
    """
    if not columns or joined_name(columns) in table.columns:
        return table
    rows = _joined_rows(table.origin, table.rows, columns, skip_empty)
    return replace(table, columns=paired(table.origin, table.columns, columns), rows=rows)


def paired(origin: Origin, found: list[str], columns: Sequence[str]) -> list[str]:
    """The columns of a table with those of a pair replaced by one of joined texts.

    Raises:
        DataError: one of the two columns is missing.
    """
    if not columns or joined_name(columns) in found:
        return found
    if missing := [name for name in columns if name not in found]:
        what = f"no column {short(missing[0])}, which is one of a pair; the columns are {listed(list(found))}"
        raise origin.error(what, hint=f"name both columns: {option('text_columns', ('A', 'B'))}")
    return [joined_name(columns), *(name for name in found if name not in columns)]


def _joined_rows(
    origin: Origin, rows: NumberedRows, columns: Sequence[str], skip_empty: bool
) -> NumberedRows:
    for number, row in rows:
        if skip_empty and any(is_empty(row.get(name)) for name in columns):
            yield number, {joined_name(columns): None, **row}
            continue
        texts = [text_of(origin, number, row, name) for name in columns]
        yield number, {joined_name(columns): JOINER.join(texts), **row}


def is_empty(value: object) -> bool:
    """Whether a cell has no text."""
    return value is None or (isinstance(value, str) and not value.strip())


def pair_of(number: int, value: object, columns: Sequence[str]) -> str:
    """A pair of texts as one text, checked.

    Args:
        number: its number, from 1, for messages.
        value: a list or tuple of two strings, or both joined by a line break.
        columns: what the texts of a pair are called.

    Raises:
        DataError: it is something else, or one of the texts is empty.
    """
    texts = value.split(JOINER, 1) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or len(texts) != 2 or not all(isinstance(t, str) for t in texts):
        what = "one text" if isinstance(value, str) else f"of type {type(value).__name__}"
        raise DataError(
            f"text {number} is {what}, and this adapter takes pairs of {columns[0]} and {columns[1]}",
            hint="give a list of two strings, or both in one string with a line break between them",
        )
    if empty := [name for name, text in zip(columns, texts, strict=True) if not text.strip()]:
        raise DataError(f"text {number} has an empty {empty[0]}", hint="remove it, or give it some text")
    return JOINER.join(texts)
