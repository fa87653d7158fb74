"""JSON: Lines with one object each, an array of objects, or an object that holds one such array."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain, islice
from typing import Any, BinaryIO

from rankwise.data.lines import text_lines
from rankwise.data.tables import INCOMPLETE, NumberedRows, Origin, Row, Table, listed
from rankwise.errors import DataError

HINT = 'JSON Lines: one object per line, such as {"text": "...", "label": "..."}'
ARRAY_HINT = 'an array holds objects, such as [{"text": "...", "label": "..."}]'


def read_json(origin: Origin, file: BinaryIO) -> Table:
    """Read JSON of any of the three layouts, whatever the suffix. JSON Lines are read lazily.

    Raises:
        DataError: the file is not JSON, or in another layout.
    """
    lines = enumerate(text_lines(origin, file, "\n"), 1)
    first = next((each for each in lines if each[1].strip()), None)
    if first is None:
        raise origin.error("the file has no rows", hint=INCOMPLETE)
    if first[1].lstrip().startswith("["):
        return _whole(origin, first, lines)
    try:
        row = _parsed(origin, first[1].rstrip(), first[0])
    except DataError as error:  # perhaps an object that goes on in the next lines
        return _whole(origin, first, lines, otherwise=error)
    opening = [first]
    if isinstance(row, dict):
        _refuse_columns(origin, row)
    if isinstance(row, dict) and _lists(row):
        opening += islice((each for each in lines if each[1].strip()), 1)
        if len(opening) == 1:
            return _whole(origin, first, lines)
    return _table(origin, _rows(origin, chain(opening, lines)))


def _table(origin: Origin, rows: NumberedRows) -> Table:
    first = next(rows)
    return Table(origin, list(first[1]), chain([first], rows), ragged=True)


def _rows(origin: Origin, lines: Iterable[tuple[int, str]]) -> NumberedRows:
    for number, line in lines:
        if not (line := line.rstrip()):
            continue
        row = _parsed(origin, line, number)
        if not isinstance(row, dict):
            raise origin.error("not a JSON object", number, hint=HINT)
        yield number, row


def _parsed(origin: Origin, text: str, number: int | None) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_fields)
    except (ValueError, RecursionError) as error:
        raise _broken(origin, error, number) from None


def _broken(origin: Origin, error: Exception, number: int | None) -> DataError:
    if isinstance(error, json.JSONDecodeError):
        at = error.lineno if number is None else number
        return origin.error(f"not JSON: {error.msg} (column {error.colno})", at, hint=HINT)
    what = str(error).partition(";")[0]  # the rest is advice for Python programmers
    return origin.error(f"cannot be read as JSON: {what}", number, hint=HINT)


def _fields(pairs: list[tuple[str, Any]]) -> Row:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("an object has duplicate names")
    return fields


# --- whole files ----------------------------------------------------------------------------


def _whole(
    origin: Origin,
    first: tuple[int, str],
    rest: Iterable[tuple[int, str]],
    otherwise: DataError | None = None,
) -> Table:
    """A file that is one JSON value. Its rows are numbered by their place in the array, from 1.

    `otherwise` is the error to raise if it is not.
    """
    content = "\n" * (first[0] - 1) + first[1] + "".join(line for _, line in rest)
    try:
        value = _parsed(origin, content, None)
    except DataError as error:
        raise (otherwise or error) from None
    if isinstance(value, dict):
        _refuse_columns(origin, value)
    items, name = _items(origin, value)
    if not items:
        raise origin.error("the array is empty", hint=INCOMPLETE)
    in_items = replace(origin, in_rows=True)
    table = _table(in_items, _objects(in_items, items))
    if name:
        table.notes.append(origin.note(f"the rows are the list {name!r}"))
    return table


def _items(origin: Origin, value: Any) -> tuple[list[Any], str]:
    """(items, name of their list or '')."""
    if isinstance(value, list):
        return value, ""
    lists = _lists(value) if isinstance(value, dict) else []
    if len(lists) == 1:
        return value[lists[0]], lists[0]
    what = f"several lists of objects: {listed(lists)}" if lists else "one JSON object, not a list of them"
    raise origin.error(what, hint=f"{ARRAY_HINT}; {HINT}")


def _refuse_columns(origin: Origin, value: dict[str, Any]) -> None:
    """Raise a DataError for an object of columns, as pandas writes it; a row of JSON Lines may look alike."""
    if ".json" not in [suffix.lower() for suffix in origin.file.suffixes]:
        return
    columns = [isinstance(column, dict | list) and bool(column) for column in value.values()]
    if len(columns) > 1 and all(columns) and not _lists(value):
        hint = "write rows; with pandas: to_json(PATH, orient='records', lines=True)"
        raise origin.error(f"the columns {listed(list(value))} instead of rows", hint=hint)


def _lists(value: dict[str, Any]) -> list[str]:
    """The names of the fields that are lists of objects."""
    return [
        name
        for name, items in value.items()
        if isinstance(items, list) and items and isinstance(items[0], dict)
    ]


def _objects(origin: Origin, items: list[Any]) -> NumberedRows:
    for number, item in enumerate(items, 1):
        if not isinstance(item, dict):
            raise origin.error("not a JSON object", number, hint=ARRAY_HINT)
        yield number, item
