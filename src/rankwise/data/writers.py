"""Write rows to a file of any supported format, in batches. Text files are UTF-8 whatever the locale."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from rankwise.data.excel import sheet_writer
from rankwise.errors import UsageError
from rankwise.store import files

Record = Mapping[str, Any]
"""One row: column -> value."""
WriteRows = Callable[[Sequence[Record]], None]
OUTPUTS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".xlsx")
BLANK = re.compile(r"[\s\x00-\x1f\x7f\xad\u200b-\u200f\u2060\ufeff]*")
"""Whitespace, control characters and zero-width characters, which a spreadsheet may skip."""


@contextmanager
def write_rows(path: Path, preview: Iterable[Sequence[Record]], *, safe: bool = False) -> Iterator[WriteRows]:
    """Yield a function that writes batches of rows; the file is moved into place at the end.

    In JSON Lines, each row may have its own columns. The other formats declare their columns up
    front (and Parquet also their types), so for them `preview` is consumed first.

    Args:
        path: .csv, .tsv, .jsonl, .ndjson, .parquet or .xlsx.
        preview: batches of rows with the same columns and value types as the rows to be written.
        safe: write for a spreadsheet: pass every cell through `neutral`, and begin the file with the
            byte-order mark by which Excel recognizes UTF-8; .csv and .tsv only.

    Raises:
        UsageError: the suffix is not supported, `safe` is set for a format other than .csv and .tsv,
            no Parquet type can hold a column's values, or a spreadsheet cannot hold the rows.
    """
    require_writable(path, safe=safe)
    match path.suffix.lower():
        case ".csv":
            with files.writing(path) as text:
                yield _csv_writer(text, _columns(preview), ",", safe)
        case ".tsv":
            columns, tabs = _tsv_columns(preview)
            with files.writing(path) as text:
                yield _csv_writer(text, columns, "\t", safe, quote_header=tabs)
        case ".jsonl" | ".ndjson":
            with files.writing(path) as text:
                yield lambda rows: text.writelines(map(_json_line, rows))
        case ".parquet":
            with files.writing(path, binary=True) as binary, _parquet_writer(path, binary, preview) as write:
                yield write
        case ".xlsx":
            with (
                files.writing(path, binary=True) as binary,
                sheet_writer(path, binary, preview, _text) as write,
            ):
                yield write


def require_writable(path: Path, *, safe: bool = False) -> None:
    """Raise a UsageError if no writer exists for a file name, or none that is safe for spreadsheets."""
    suffix = path.suffix.lower()
    if suffix not in OUTPUTS:
        what = f"{path}: cannot write {suffix or 'a file without a suffix'}"
        raise UsageError(what, hint=f"use {', '.join(OUTPUTS[:-1])} or {OUTPUTS[-1]}")
    if safe and suffix not in (".csv", ".tsv"):
        hint = "leave the option out; the cells of an .xlsx file are never formulas"
        raise UsageError(f"{path}: only .csv and .tsv can be made safe for spreadsheets", hint=hint)


def neutral(text: str) -> str:
    """Prefix a CSV cell with an apostrophe if a spreadsheet could read it as a formula.

    Every CSV of a run folder uses this rule, and so does `--safe-csv` output. It covers the cases that OWASP
    lists under "CSV Injection": cells that start with = + - @ (including full-width and small forms, and
    after leading blanks) and cells that start with a tab or newline. A formula that already begins with
    apostrophes gets another one, so that `plain` can undo the rule without loss.

    >>> neutral("=1+1"), neutral(" -1"), neutral("so glad"), neutral("'=1+1")
    ("'=1+1", "' -1", 'so glad', "''=1+1")
    """
    return f"'{text}" if _is_formula(text.lstrip("'")) else text


def plain(cell: str) -> str:
    """The text of a cell that `neutral` wrote.

    >>> [plain(neutral(text)) for text in ("=1+1", "'=1+1", "'quoted'")]
    ['=1+1', "'=1+1", "'quoted'"]
    """
    return cell[1:] if cell.startswith("'") and _is_formula(cell.lstrip("'")) else cell


def _is_formula(text: str) -> bool:
    first = unicodedata.normalize("NFKC", BLANK.sub("", text, count=1)[:1])
    return first.startswith(("=", "+", "-", "@")) or text.startswith(("\t", "\r", "\n"))


def csv_line(cells: Iterable[Any], delimiter: str = ",", *, safe: bool = False) -> str:
    r"""One line of CSV, including the newline. None becomes an empty cell, nested values become JSON.

    With `safe`, strings pass through `neutral`; numbers are unchanged.

    This replaces `csv.writer`, which before Python 3.13 does not quote a lone carriage return and
    then cannot read its own output.

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
    """The text of a cell. A lone surrogate cannot be encoded as UTF-8, so it is escaped."""
    if value is None:
        return None
    nested = isinstance(value, dict | list | tuple | bool)
    text = json.dumps(value, ensure_ascii=False, default=str) if nested else str(value)
    return text.encode("utf-8", "backslashreplace").decode()


def _columns(preview: Iterable[Sequence[Record]]) -> list[str]:
    """All columns, in order of first appearance."""
    return list(dict.fromkeys(column for rows in preview for row in rows for column in row))


def _tsv_columns(preview: Iterable[Sequence[Record]]) -> tuple[list[str], bool]:
    """(all columns, whether a cell contains a tab).

    If such a cell also has line ends, its row could pass for several rows that use no quotes. A quoted header
    tells a reader that the file uses them.
    """
    columns: dict[str, None] = {}
    tabs = False
    for rows in preview:
        for row in rows:
            columns |= dict.fromkeys(row)
            tabs = tabs or any("\t" in (_text(cell) or "") for cell in row.values())
    return list(columns), tabs


def _csv_writer(
    file: TextIO, columns: list[str], delimiter: str, safe: bool, *, quote_header: bool = False
) -> WriteRows:
    header = csv_line(columns, delimiter, safe=safe)
    if quote_header and len(columns) > 1 and not header.startswith('"'):
        first, _, others = header.partition(delimiter)
        header = f'"{first}"{delimiter}{others}'
    file.write(f"\ufeff{header}" if safe else header)

    def write(rows: Sequence[Record]) -> None:
        file.writelines(csv_line(map(row.get, columns), delimiter, safe=safe) for row in rows)

    return write


def _json_line(row: Record) -> str:
    # JSON has no NaN or infinity, but a Parquet column may contain them.
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
    line = json.dumps(plain, ensure_ascii=False, default=str) + "\n"
    try:
        line.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can only represent as an escape
        line = json.dumps(plain, default=str) + "\n"
    return line


@contextmanager
def _parquet_writer(path: Path, file: BinaryIO, preview: Iterable[Sequence[Record]]) -> Iterator[WriteRows]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = _kinds(preview)
    # JSON allows lone surrogates in names; Arrow does not.
    schema = pa.schema([(_text(column), kind) for column, kind in kinds.items()])
    with pq.ParquetWriter(file, schema) as writer:

        def write(rows: Sequence[Record]) -> None:
            try:
                arrays = [_array([row.get(name) for row in rows], kind) for name, kind in kinds.items()]
            except (pa.ArrowException, OverflowError) as error:
                raise UsageError(
                    f"{path}: no Parquet type can hold all values of a column: {error}",
                    hint="write .jsonl, which accepts any value",
                ) from None
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))

        yield write


def _kinds(preview: Iterable[Sequence[Record]]) -> dict[str, Any]:
    """Column -> the narrowest Arrow type for all rows; a column of mixed types becomes string."""
    import pyarrow as pa

    types: dict[str, Any] = {}
    for rows in preview:
        for column in _columns([rows]):
            found = _type([row.get(column) for row in rows])
            types[column] = _common(types.get(column, pa.null()), found)
    # Parquet has no struct without fields, which is the type inferred for {}.
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
