"""Rows -> a file of any known format, written as they come."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from rankwise.errors import UsageError
from rankwise.store import files

Record = Mapping[str, Any]
"""Column -> value, of one line of a file."""
WriteRows = Callable[[Sequence[Record]], None]
BLANK = re.compile(r"[\s\x00-\x1f\x7f\xad\u200b-\u200f\u2060\ufeff]*")
"""Spaces, control characters and others without width, which a spreadsheet may skip."""


@contextmanager
def write_rows(path: Path, preview: Iterable[Sequence[Record]], *, safe: bool = False) -> Iterator[WriteRows]:
    """A function that writes batches of rows; the file is put in place at the end.

    In JSON Lines each row may have columns of its own. The other formats say first of all which
    columns there are, and Parquet of which type, so for them `preview` is read through before.

    Args:
        path: .csv, .tsv, .jsonl, .ndjson or .parquet.
        preview: batches of rows with the same columns, and values of the same kinds, as those to come.
        safe: make every cell `neutral`, for .csv and .tsv.

    Raises:
        UsageError: the suffix is not known, or not of a file for spreadsheets where it should be safe for
            them; or a Parquet column has no type that holds its values.
    """
    if safe and path.suffix.lower() not in (".csv", ".tsv"):
        raise UsageError(
            f"{path}: only .csv and .tsv are made safe for spreadsheets", hint="leave the option out"
        )
    match path.suffix.lower():
        case ".csv" | ".tsv" as suffix:
            with files.writing(path) as text:
                yield _csv_writer(text, _columns(preview), "," if suffix == ".csv" else "\t", safe)
        case ".jsonl" | ".ndjson":
            with files.writing(path) as text:
                yield lambda rows: text.writelines(map(_json_line, rows))
        case ".parquet":
            with files.writing(path, binary=True) as binary, _parquet_writer(path, binary, preview) as write:
                yield write
        case other:
            raise UsageError(
                f"{path}: cannot write {other or 'a file without suffix'}",
                hint="use .csv, .tsv, .jsonl or .parquet",
            )


def neutral(text: str) -> str:
    """Text as a cell of CSV that no spreadsheet takes for a formula: an apostrophe goes before it.

    This is the one rule for every CSV that people open: errors.csv, table.csv and `--safe-csv`. It covers
    what OWASP names under "CSV Injection": cells that begin with = + - @, in their full-width and small
    forms too, also behind blanks; and cells that begin with a tab or a line end. predictions.csv keeps
    its texts as they are: programs read it back, and an apostrophe more would be another text.

    >>> neutral("=1+1"), neutral(" -1"), neutral("so glad")
    ("'=1+1", "' -1", 'so glad')
    """
    bare = BLANK.sub("", text, count=1)
    first = unicodedata.normalize("NFKC", bare[:1])
    formula = first.startswith(("=", "+", "-", "@")) or text.startswith(("\t", "\r", "\n"))
    return f"'{text}" if formula else text


def csv_line(cells: Iterable[Any], delimiter: str = ",", *, safe: bool = False) -> str:
    r"""A line of CSV, its end included. Strings as they are, None as nothing, nested values as JSON.

    With `safe` strings are made `neutral`; numbers stay as they are.

    The standard library leaves a lone carriage return without quotes (before Python 3.13), and
    then cannot read its own file.

    >>> csv_line(["a", 1.5, None, "b, c", "d\r", [True]])
    'a,1.5,,"b, c","d\r",[true]\n'
    """
    if safe:
        cells = (neutral(cell) if isinstance(cell, str) else cell for cell in cells)
    return delimiter.join(_quoted(_text(cell) or "", delimiter) for cell in cells) + "\n"


def _quoted(text: str, delimiter: str) -> str:
    if any(sign in text for sign in (delimiter, '"', "\n", "\r")):
        return '"' + text.replace('"', '""') + '"'
    return text


def _text(value: Any) -> str | None:
    """A value as the text of a cell. Half a surrogate pair, which no file can hold, becomes its escape."""
    if value is None:
        return None
    nested = isinstance(value, dict | list | tuple | bool)
    text = json.dumps(value, ensure_ascii=False, default=str) if nested else str(value)
    return text.encode("utf-8", "backslashreplace").decode()


def _columns(preview: Iterable[Sequence[Record]]) -> list[str]:
    """Every column, in the order of first appearance."""
    return list(dict.fromkeys(column for rows in preview for row in rows for column in row))


def _csv_writer(file: TextIO, columns: list[str], delimiter: str, safe: bool) -> WriteRows:
    file.write(csv_line(columns, delimiter, safe=safe))

    def write(rows: Sequence[Record]) -> None:
        file.writelines(csv_line(map(row.get, columns), delimiter, safe=safe) for row in rows)

    return write


def _json_line(row: Record) -> str:
    # JSON knows no NaN and no infinity, and a Parquet column may hold them.
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
    line = json.dumps(plain, ensure_ascii=False, default=str) + "\n"
    try:
        line.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can hold as an escape only
        line = json.dumps(plain, default=str) + "\n"
    return line


@contextmanager
def _parquet_writer(path: Path, file: BinaryIO, preview: Iterable[Sequence[Record]]) -> Iterator[WriteRows]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = _kinds(preview)
    # Half of a surrogate pair, which JSON allows in a name, is no character.
    schema = pa.schema([(_text(column), kind) for column, kind in kinds.items()])
    with pq.ParquetWriter(file, schema) as writer:

        def write(rows: Sequence[Record]) -> None:
            try:
                arrays = [_array([row.get(name) for row in rows], kind) for name, kind in kinds.items()]
            except (pa.ArrowException, OverflowError) as error:
                raise UsageError(
                    f"{path}: a column holds values that no type of Parquet takes together: {error}",
                    hint="write .jsonl, which takes any value",
                ) from None
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))

        yield write


def _kinds(preview: Iterable[Sequence[Record]]) -> dict[str, Any]:
    """Column -> the narrowest Arrow type for all rows; a column of mixed kinds becomes text."""
    import pyarrow as pa

    types: dict[str, Any] = {}
    for rows in preview:
        for column in _columns([rows]):
            found = _type([row.get(column) for row in rows])
            types[column] = _common(types.get(column, pa.null()), found)
    # Parquet has no structure without fields, which is what {} comes to.
    return {name: pa.string() if "struct<>" in str(t) else t for name, t in types.items()}


def _type(values: list[Any]) -> Any:
    import pyarrow as pa

    try:
        return pa.array(values).type
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return pa.string()


def _common(one: Any, other: Any) -> Any:
    import pyarrow as pa

    schemas = [pa.schema({"": one}), pa.schema({"": other})]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return pa.string()


def _array(values: list[Any], kind: Any) -> Any:
    import pyarrow as pa

    return pa.array([_text(value) for value in values] if pa.types.is_string(kind) else values, kind)
