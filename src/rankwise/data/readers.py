"""Read a file of any supported format as a table of numbered rows.

Rows keep all their columns, except in `.txt` files, which contain `text;label` lines, fastText lines, or one
text per line. Text formats may be compressed with gzip. Rows are read lazily, so a file may have any length;
the exceptions are JSON arrays. Encoding and syntax errors are reported with their line numbers; texts and
labels are not validated here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from rankwise.data.arrow import read_arrow, read_parquet
from rankwise.data.delimited import read_delimited
from rankwise.data.excel import read_excel
from rankwise.data.json_rows import read_json
from rankwise.data.lines import MARKS, encoding, head, opened, undecodable
from rankwise.data.plain import read_pairs, read_plain
from rankwise.data.tables import INCOMPLETE, Origin, Table, first_line

_Reader = Callable[[Origin, BinaryIO], Table]
_TEXT_READERS: dict[str, _Reader] = {
    ".txt": read_pairs,
    ".csv": partial(read_delimited, separator=","),
    ".tsv": partial(read_delimited, separator="\t"),
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".json": read_json,
}
_BINARY_READERS: dict[str, _Reader] = {
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".xlsx": read_excel,
}
_READERS = {**_TEXT_READERS, **_BINARY_READERS}
SUFFIXES = (*_READERS, *(f"{suffix}.gz" for suffix in _TEXT_READERS))
SUPPORTED = f"supported suffixes are {', '.join(_READERS)}; the first six also with .gz"


@contextmanager
def open_table(path: Path, *, labeled: bool = True) -> Iterator[Table]:
    """Open a file as a table for the duration of the context.

    `labeled` selects the format of a `.txt` file: `text;label` or fastText lines (columns text and label) if
    true, one text per line (column text) if false.

    Raises:
        DataError: the file is unreadable or malformed; also raised while iterating over the rows.
    """
    suffix = suffix_of(path)
    kind = suffix.removesuffix(".gz")
    spreadsheet = kind == ".xlsx"
    origin = Origin(path, kind in _BINARY_READERS, named=kind != ".txt", spreadsheet=spreadsheet)
    if not _is_name(path):
        raise origin.error("invalid file name", hint="it contains a NUL or a lone surrogate")
    try:
        if path.exists() and not path.is_file():
            raise origin.error("expected a file, not a folder" if path.is_dir() else "not a regular file")
        with opened(path) as file:
            start = head(file)
            table = _reader(origin, start, suffix, labeled)(origin, file)
            if (name := encoding(start)) != "UTF-8" and kind in _TEXT_READERS:
                table.notes.append(origin.note(f"read as {name}"))
            yield table
    except UnicodeDecodeError:
        raise undecodable(path) from None
    except FileNotFoundError:
        raise origin.error("no such file", hint="check the spelling and the current directory") from None
    except OSError as error:
        raise origin.error(f"the file cannot be read: {error.strerror or first_line(error)}") from None


def suffix_of(path: Path) -> str:
    """The lower-case suffix of a file name; for a compressed file, with .gz.

    >>> suffix_of(Path("a.CSV")), suffix_of(Path("a.b.csv.gz"))
    ('.csv', '.csv.gz')
    """
    last = path.suffix.lower()
    return Path(path.stem).suffix.lower() + last if last == ".gz" else last


def _is_name(path: Path) -> bool:
    """Whether this is a valid file name, without NUL or lone surrogates."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def _reader(origin: Origin, start: bytes, suffix: str, labeled: bool) -> _Reader:
    if not start:
        raise origin.error("the file is empty", hint=INCOMPLETE)
    kind = suffix.removesuffix(".gz")
    for mark, (of, what, hint) in MARKS.items():
        if start.startswith(mark) and kind not in of:
            raise origin.error(what, hint=hint)
    if suffix not in SUFFIXES:
        what = f"the suffix {suffix!r} is not supported" if suffix else "the file name has no suffix"
        raise origin.error(what, hint=SUPPORTED)
    return read_plain if kind == ".txt" and not labeled else _READERS[kind]
