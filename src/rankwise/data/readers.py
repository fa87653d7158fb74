"""A file of any known format -> a table of numbered rows.

CSV, TSV, JSON Lines and Parquet rows keep all their columns; a `.txt` file holds `text;label`
lines, or one text a line. Rows are read as they are asked for, so a file may have any length.
Whatever is wrong with a file's bytes or form is said here, with the line; what its texts and
labels must be like is not known here.
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
"""Characters of a CSV field: any text that fits the memory, where the standard library stops at 131,072."""
csv.field_size_limit(LONGEST_FIELD)

INCOMPLETE = "is it the right file, and was it written to its end?"
AGAIN = "write the file again, or copy it again"

Row = dict[str, Any]
NumberedRows = Iterator[tuple[int, Row]]


@dataclass(frozen=True)
class Origin:
    """Where rows come from, to be put in front of an error: a file, or a split of a Hub dataset."""

    path: Path | str
    in_rows: bool = False
    """Numbers count rows (Parquet, the Hub), not lines of a text file."""
    named: bool = True
    """Columns have names there, as they have not in a `.txt` file."""

    def error(
        self, message: str, number: int | None = None, *, column: str | None = None, hint: str = ""
    ) -> DataError:
        """A DataError here: at a line or row (from 1), about a column, where they are given."""
        column = column if self.named else None
        if self.in_rows and number is not None:
            return DataError(f"row {number}: {message}", path=self.path, column=column, hint=hint)
        return DataError(message, path=self.path, line=number, column=column, hint=hint)


@dataclass(frozen=True)
class Table:
    """Columns, and rows one by one with the line or row number of each."""

    origin: Origin
    columns: list[str]
    rows: NumberedRows
    classes: Mapping[str, Sequence[str]]
    """ClassLabel names by column, where the format has them."""


@contextmanager
def open_table(path: Path, *, labeled: bool = True) -> Iterator[Table]:
    """The table in a file, open while the context lasts.

    `labeled` says what a `.txt` file is: lines of `text;label` (columns text and label), or,
    where it is false, one text a line (column text).

    Raises:
        DataError: here and from the rows, whatever makes the file unreadable or malformed.
    """
    suffix = path.suffix.lower()
    origin = Origin(path, in_rows=suffix == ".parquet", named=suffix != ".txt")
    if not _is_name(path):
        raise origin.error("no file can have this name", hint="it holds a sign that is no character")
    try:
        if path.exists() and not path.is_file():
            raise origin.error("a folder, where a file is expected" if path.is_dir() else "not a plain file")
        with path.open("rb") as file:
            yield _reader(origin, file.peek(8)[:8], suffix, labeled)(origin, file)
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except FileNotFoundError:
        raise origin.error(
            "no such file", hint="check the spelling, and the folder that you are in"
        ) from None
    except OSError as error:
        raise origin.error(f"the file cannot be read: {error.strerror or first_line(error)}") from None


def _is_name(path: Path) -> bool:
    """Whether a file can have this name: none holds a NUL, or half of a surrogate pair."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def listed(names: Sequence[str]) -> str:
    """Names for a message, no more than twenty of them: a, b and c."""
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return (", ".join(short(name).strip("'\"") for name in names[:20]) or "nothing") + more


def short(value: object) -> str:
    """A value for a message, quoted and no longer than 60 characters."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def first_line(error: BaseException) -> str:
    """What an error from a library says, without its explanations."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" :.")


# --- bytes to lines -------------------------------------------------------------------------


def _reader(origin: Origin, head: bytes, suffix: str, labeled: bool) -> _Reader:
    if not head:
        raise origin.error("the file is empty", hint=INCOMPLETE)
    for mark, (of, what, hint) in _MARKS.items():
        if head.startswith(mark) and suffix != of:
            raise origin.error(what, hint=hint)
    if suffix not in _READERS:
        what = f"the suffix {suffix!r} is of no known format" if suffix else "a file name without a suffix"
        raise origin.error(what, hint=f"the known ones are {', '.join(_READERS)}")
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
"""First bytes -> (the suffix that they belong to, what the file is, what to do)."""


def _not_utf8(path: Path) -> DataError:
    """The first byte that is not UTF-8, found by reading again: decoding in blocks loses the place."""
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
    """Lines with their ends; a byte-order mark is dropped."""
    with io.TextIOWrapper(file, "utf-8-sig", newline=newline) as lines:
        for number, line in enumerate(lines, 1):
            if "\0" in line:
                hint = "take it out; if the file is UTF-16: iconv -f UTF-16 -t UTF-8 OLD > NEW"
                raise origin.error("a NUL byte, which no text holds", number, hint=hint)
            yield line


# --- .txt -----------------------------------------------------------------------------------


def _filled_lines(origin: Origin, file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends. Empty lines may only stand at the end of the file."""
    empty = 0
    for number, line in enumerate(_lines(origin, file, "\n"), 1):
        if not line.strip():
            empty = empty or number
        elif empty:
            raise origin.error("the line is empty", empty, hint="take the line out")
        elif "\r" in (line := line.rstrip("\r\n")):
            hint = "line ends are LF or CR LF here; where they are CR alone: tr '\\r' '\\n' < OLD > NEW"
            raise origin.error("a carriage return within the line", number, hint=hint)
        else:
            yield number, line


def _read_plain(origin: Origin, file: BinaryIO) -> Table:
    rows = ((number, {"text": line}) for number, line in _filled_lines(origin, file))
    return Table(origin, ["text"], rows, {})


def _read_pairs(origin: Origin, file: BinaryIO) -> Table:
    return Table(origin, ["text", "label"], _pairs(origin, _filled_lines(origin, file)), {})


def _pairs(origin: Origin, lines: Iterable[tuple[int, str]]) -> NumberedRows:
    """Lines split at the last semicolon, without the header `text;label` if there is one."""
    for number, line in lines:
        text, semicolon, label = line.rpartition(";")
        if not semicolon:
            hint = "each line of a .txt file is text;label"
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
    """Records with the line each begins on; empty lines are passed over."""
    while True:
        begins = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            hint = 'is a quotation mark left open? One inside a field is doubled: "so ""good"", they said"'
            raise origin.error(f"not {_named(reader)}: {error}", begins, hint=hint) from None
        if record:
            yield begins, record


def _named(reader: Any) -> str:
    return "TSV" if reader.dialect.delimiter == "\t" else "CSV"


def _csv_rows(origin: Origin, records: Iterable[tuple[int, list[str]]], columns: list[str]) -> NumberedRows:
    width = len(columns)
    for number, record in records:
        if len(record) != width:
            hint = "a field that holds the separator, a quotation mark or a line end stands in quotes"
            found = f"{len(record)} field" + "s" * (len(record) != 1)
            raise origin.error(f"{found}, where the header has {width}", number, hint=hint)
        yield number, dict(zip(columns, record, strict=True))


# --- .jsonl, .parquet -----------------------------------------------------------------------


def _read_json_lines(origin: Origin, file: BinaryIO) -> Table:
    rows = _json_rows(origin, _lines(origin, file, "\n"))
    first = next(rows, None)
    if first is None:
        raise origin.error("the file holds no rows", hint=INCOMPLETE)
    return Table(origin, list(first[1]), chain([first], rows), {})


def _json_rows(origin: Origin, lines: Iterable[str]) -> NumberedRows:
    hint = 'JSON Lines: one object a line, such as {"text": "...", "label": "..."}'
    for number, line in enumerate(lines, 1):
        line = line.rstrip()
        if not line:
            continue
        try:
            row = json.loads(line, object_pairs_hook=_fields)
        except json.JSONDecodeError as error:
            raise origin.error(f"not JSON: {error.msg} (column {error.colno})", number, hint=hint) from None
        except (ValueError, RecursionError) as error:
            what = str(error).partition(";")[0]  # after it Python speaks to programmers
            raise origin.error(f"not JSON that can be read: {what}", number, hint=hint) from None
        if not isinstance(row, dict):
            raise origin.error("not a JSON object", number, hint=hint)
        yield number, row


def _fields(pairs: list[tuple[str, Any]]) -> Row:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("an object holds the same name twice")
    return fields


def _read_parquet(origin: Origin, file: BinaryIO) -> Table:
    from pyarrow.parquet import ParquetFile

    with _parquet_errors(origin, "not a Parquet file that can be read"):
        source = ParquetFile(file)
        schema = source.schema_arrow
        names = list(schema.names)
    _check_header(origin, names, None)
    return Table(origin, names, _parquet_rows(origin, source), _class_names(schema.metadata or {}))


def _parquet_rows(origin: Origin, source: Any) -> NumberedRows:
    done = 0
    batches = source.iter_batches(batch_size=BATCH_ROWS)
    while True:
        with _parquet_errors(origin, "this row, or one after it, cannot be read", done + 1):
            batch = next(batches, None)
            rows = [] if batch is None else batch.to_pylist()
        if batch is None:
            return
        yield from enumerate(rows, done + 1)
        done += len(rows)


@contextmanager
def _parquet_errors(origin: Origin, what: str, number: int | None = None) -> Iterator[None]:
    """What pyarrow raises at a damaged file or a value that Python cannot hold, as a DataError."""
    from pyarrow import ArrowException

    try:
        yield
    except UnicodeDecodeError:
        what = "a string in this row, or in one after it, is not UTF-8"
        raise origin.error(what, number, hint=AGAIN) from None
    except (ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        why = re.split(r"[:.] ", first_line(error))[0]  # what follows are bytes of the file, or advice
        raise origin.error(f"{what}: {why}", number, hint=AGAIN) from None


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """ClassLabel names by column, as the datasets library notes them in a Parquet file it writes."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in features.items()
            if feature.get("_type") == "ClassLabel"
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}  # no such note, or one that is not understood: labels are then taken as they stand


def _check_header(origin: Origin, columns: list[str], number: int | None) -> None:
    if not any(columns):
        hint = "the first line holds them, such as text,label"
        raise origin.error("there are no column names", hint=INCOMPLETE if origin.in_rows else hint)
    double = next((name for name in columns if columns.count(name) > 1), None)
    if double is not None:
        hint = "give each column a name of its own"
        raise origin.error(f"the column {short(double)} stands twice in the header", number, hint=hint)


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
