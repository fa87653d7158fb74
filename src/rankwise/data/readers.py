"""Read a file of any supported format as a table of numbered rows.

CSV, TSV, JSON Lines and Parquet rows keep all their columns; a `.txt` file contains `text;label`
lines, or one text per line. Rows are read lazily, so a file may have any length. This module
reports encoding and syntax errors with their line numbers; it does not validate texts or labels.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from rankwise.errors import DataError

BATCH_ROWS = 1024
LONGEST_FIELD = 2**31 - 1
"""Maximum characters of a CSV field; the standard library's default is 131,072."""
csv.field_size_limit(LONGEST_FIELD)

INCOMPLETE = "is this the right file, and is it complete?"
AGAIN = "write or copy the file again"

Row = dict[str, Any]
NumberedRows = Iterator[tuple[int, Row]]


@dataclass(frozen=True)
class Origin:
    """Where rows come from, for error messages: a file, or a split of a Hub dataset."""

    path: Path | str
    in_rows: bool = False
    """Whether numbers count rows (Parquet, the Hub) instead of lines of a text file."""
    named: bool = True
    """Whether columns have names; those of a `.txt` file do not."""

    def place(self, number: int) -> str:
        """Where a row is, such as `train.csv:12` or `train.parquet row 12`, without the folder."""
        name = self.path.name if isinstance(self.path, Path) else self.path
        return f"{name} row {number}" if self.in_rows else f"{name}:{number}"

    def error(
        self, message: str, number: int | None = None, *, column: str | None = None, hint: str = ""
    ) -> DataError:
        """A DataError at this origin, optionally with a line or row number (from 1) and a column."""
        column = column if self.named else None
        if self.in_rows and number is not None:
            return DataError(f"row {number}: {message}", path=self.path, column=column, hint=hint)
        return DataError(message, path=self.path, line=number, column=column, hint=hint)


@dataclass(frozen=True)
class Table:
    """Columns, and an iterator of rows with their line or row numbers."""

    origin: Origin
    columns: list[str]
    rows: NumberedRows
    classes: Mapping[str, Sequence[str]]
    """Column -> ClassLabel names, for formats that have them."""


@contextmanager
def open_table(path: Path, *, labeled: bool = True) -> Iterator[Table]:
    """Open a file as a table for the duration of the context.

    `labeled` selects the format of a `.txt` file: `text;label` lines (columns text and label) if
    true, one text per line (column text) if false.

    Raises:
        DataError: the file is unreadable or malformed; also raised while iterating over the rows.
    """
    suffix = path.suffix.lower()
    origin = Origin(path, in_rows=suffix == ".parquet", named=suffix != ".txt")
    if not _is_name(path):
        raise origin.error("invalid file name", hint="it contains a NUL or a lone surrogate")
    try:
        if path.exists() and not path.is_file():
            raise origin.error("expected a file, not a folder" if path.is_dir() else "not a regular file")
        with path.open("rb") as file:
            yield _reader(origin, file.peek(8)[:8], suffix, labeled)(origin, file)
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except FileNotFoundError:
        raise origin.error("no such file", hint="check the spelling and the current directory") from None
    except OSError as error:
        raise origin.error(f"the file cannot be read: {error.strerror or first_line(error)}") from None


def _is_name(path: Path) -> bool:
    """Whether this is a valid file name, without NUL or lone surrogates."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


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


# --- bytes to lines -------------------------------------------------------------------------


def _reader(origin: Origin, head: bytes, suffix: str, labeled: bool) -> _Reader:
    if not head:
        raise origin.error("the file is empty", hint=INCOMPLETE)
    for mark, (of, what, hint) in _MARKS.items():
        if head.startswith(mark) and suffix != of:
            raise origin.error(what, hint=hint)
    if suffix not in _READERS:
        what = f"the suffix {suffix!r} is not supported" if suffix else "the file name has no suffix"
        raise origin.error(what, hint=f"supported suffixes are {', '.join(_READERS)}")
    return _read_plain if suffix == ".txt" and not labeled else _READERS[suffix]


_MARKS = {
    b"\x1f\x8b": ("", "the file is compressed with gzip", "unpack it first, with gunzip"),
    b"BZh": ("", "the file is compressed with bzip2", "unpack it first, with bunzip2"),
    b"\xfd7zXZ": ("", "the file is compressed with xz", "unpack it first, with unxz"),
    b"\x28\xb5\x2f\xfd": ("", "the file is compressed with zstd", "unpack it first, with unzstd"),
    b"PK\x03\x04": (
        "", "the file is a ZIP archive or a spreadsheet", "unpack it, or save the sheet as CSV in UTF-8",
    ),
    b"PAR1": (".parquet", "the file is Parquet", "give it the suffix .parquet"),
}  # fmt: skip
"""Magic bytes -> (the suffix they are valid for, error message, hint)."""


def _not_utf8(path: Path) -> DataError:
    """Locate the first byte that is not UTF-8. Buffered decoding loses the position, so read again."""
    offset = 0
    with path.open("rb") as file:
        head = file.peek(4)
        likely = "WINDOWS-1252" if b"\0" not in head else "UTF-32" if b"\0\0" in head[:4] else "UTF-16"
        hint = f"if it is {likely}: iconv -f {likely} -t UTF-8 {shlex.quote(path.name)} > NEW"
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                what = f"not UTF-8: byte 0x{line[error.start]:02x} at offset {offset + error.start}"
                return DataError(what, path=path, line=number, hint=hint)
            offset += len(line)
    return DataError("not UTF-8", path=path, hint=hint)


def _lines(origin: Origin, file: BinaryIO, newline: str) -> Iterator[str]:
    """Lines with their line endings; a byte-order mark is dropped."""
    with io.TextIOWrapper(file, "utf-8-sig", newline=newline) as lines:
        for number, line in enumerate(lines, 1):
            if "\0" in line:
                hint = "remove it; if the file is UTF-16: iconv -f UTF-16 -t UTF-8 OLD > NEW"
                raise origin.error("the line contains a NUL byte", number, hint=hint)
            yield line


# --- .txt -----------------------------------------------------------------------------------


def _filled_lines(origin: Origin, file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Numbered lines without line endings. Empty lines are only allowed at the end of the file."""
    empty = 0
    for number, line in enumerate(_lines(origin, file, "\n"), 1):
        if not line.strip():
            empty = empty or number
        elif empty:
            raise origin.error("the line is empty", empty, hint="remove the line")
        elif "\r" in (line := line.rstrip("\r\n")):
            hint = "line endings must be LF or CR LF; to convert CR: tr '\\r' '\\n' < OLD > NEW"
            raise origin.error("a carriage return within the line", number, hint=hint)
        else:
            yield number, line


def _read_plain(origin: Origin, file: BinaryIO) -> Table:
    rows = ((number, {"text": line}) for number, line in _filled_lines(origin, file))
    return Table(origin, ["text"], rows, {})


def _read_pairs(origin: Origin, file: BinaryIO) -> Table:
    return Table(origin, ["text", "label"], _pairs(origin, _filled_lines(origin, file)), {})


def _pairs(origin: Origin, lines: Iterable[tuple[int, str]]) -> NumberedRows:
    """Lines split at the last semicolon, skipping the optional header `text;label`."""
    for number, line in lines:
        text, semicolon, label = line.rpartition(";")
        if not semicolon:
            hint = "each line of a .txt file must be text;label"
            raise origin.error("no ';' between text and label", number, hint=hint)
        if number > 1 or (text.strip().lower(), label.strip().lower()) != ("text", "label"):
            yield number, {"text": text, "label": label}


# --- .csv, .tsv -----------------------------------------------------------------------------


def _read_csv(origin: Origin, file: BinaryIO, delimiter: str) -> Table:
    reader = csv.reader(_lines(origin, file, ""), delimiter=delimiter, strict=True)
    records = _records(origin, reader)
    number, header = next(records, (1, []))
    columns = [name.strip() for name in header]
    _check_header(origin, columns, number)
    return Table(origin, columns, _csv_rows(origin, records, columns), {})


def _records(origin: Origin, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Records with the numbers of their first lines; empty lines are skipped."""
    while True:
        begins = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            hint = 'is a quote left open? Quotes inside a field are doubled: "so ""good"", they said"'
            raise origin.error(f"not {_named(reader)}: {error}", begins, hint=hint) from None
        if record:
            yield begins, record


def _named(reader: Any) -> str:
    return "TSV" if reader.dialect.delimiter == "\t" else "CSV"


def _csv_rows(origin: Origin, records: Iterable[tuple[int, list[str]]], columns: list[str]) -> NumberedRows:
    width = len(columns)
    for number, record in records:
        if len(record) != width:
            hint = "quote fields that contain the separator, a quote or a newline"
            found = f"{len(record)} field" + "s" * (len(record) != 1)
            raise origin.error(f"{found}, but the header has {width}", number, hint=hint)
        yield number, dict(zip(columns, record, strict=True))


# --- .jsonl, .parquet -----------------------------------------------------------------------


def _read_json_lines(origin: Origin, file: BinaryIO) -> Table:
    rows = _json_rows(origin, _lines(origin, file, "\n"))
    first = next(rows, None)
    if first is None:
        raise origin.error("the file has no rows", hint=INCOMPLETE)
    return Table(origin, list(first[1]), chain([first], rows), {})


def _json_rows(origin: Origin, lines: Iterable[str]) -> NumberedRows:
    hint = 'JSON Lines: one object per line, such as {"text": "...", "label": "..."}'
    for number, line in enumerate(lines, 1):
        line = line.rstrip()
        if not line:
            continue
        try:
            row = json.loads(line, object_pairs_hook=_fields)
        except json.JSONDecodeError as error:
            raise origin.error(f"not JSON: {error.msg} (column {error.colno})", number, hint=hint) from None
        except (ValueError, RecursionError) as error:
            what = str(error).partition(";")[0]  # the rest is advice for Python programmers
            raise origin.error(f"cannot be read as JSON: {what}", number, hint=hint) from None
        if not isinstance(row, dict):
            raise origin.error("not a JSON object", number, hint=hint)
        yield number, row


def _fields(pairs: list[tuple[str, Any]]) -> Row:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("an object has duplicate names")
    return fields


def _read_parquet(origin: Origin, file: BinaryIO) -> Table:
    from pyarrow.parquet import ParquetFile

    with _parquet_errors(origin, "cannot be read as Parquet"):
        source = ParquetFile(file)
        schema = source.schema_arrow
        names = list(schema.names)
    _check_header(origin, names, None)
    return Table(origin, names, _parquet_rows(origin, source), _class_names(schema.metadata or {}))


def _parquet_rows(origin: Origin, source: Any) -> NumberedRows:
    done = 0
    batches = source.iter_batches(batch_size=BATCH_ROWS)
    while True:
        with _parquet_errors(origin, "this row or a later one cannot be read", done + 1):
            batch = next(batches, None)
            rows = [] if batch is None else batch.to_pylist()
        if batch is None:
            return
        yield from enumerate(rows, done + 1)
        done += len(rows)


@contextmanager
def _parquet_errors(origin: Origin, what: str, number: int | None = None) -> Iterator[None]:
    """Turn pyarrow's errors (a damaged file, a value out of Python's range) into DataErrors."""
    from pyarrow import ArrowException

    try:
        yield
    except UnicodeDecodeError:
        what = "a string in this row or a later one is not UTF-8"
        raise origin.error(what, number, hint=AGAIN) from None
    except (ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        why = re.split(r"[:.] ", first_line(error))[0]  # the rest is raw bytes or advice
        raise origin.error(f"{what}: {why}", number, hint=AGAIN) from None


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Column -> ClassLabel names, from the metadata that the datasets library writes to Parquet."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in features.items()
            if feature.get("_type") == "ClassLabel"
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}  # no metadata, or an unknown layout: use the labels as stored


def _check_header(origin: Origin, columns: list[str], number: int | None) -> None:
    if not any(columns):
        hint = "put them in the first line, such as text,label"
        raise origin.error("the file has no column names", hint=INCOMPLETE if origin.in_rows else hint)
    double = next((name for name in columns if columns.count(name) > 1), None)
    if double is not None:
        hint = "give each column a unique name"
        raise origin.error(f"the column {short(double)} appears twice in the header", number, hint=hint)


_Reader = Callable[[Origin, BinaryIO], Table]
_READERS: dict[str, _Reader] = {
    ".txt": _read_pairs,
    ".csv": partial(_read_csv, delimiter=","),
    ".tsv": partial(_read_csv, delimiter="\t"),
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json_lines,
    ".parquet": _read_parquet,
}
SUFFIXES = tuple(_READERS)
