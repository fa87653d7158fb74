"""Bytes to lines: compression, encodings, and lines of text with their errors."""

from __future__ import annotations

import gzip
import io
import shlex
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from rankwise.data.tables import AGAIN, Origin, first_line
from rankwise.errors import DataError

MARKS = {
    b"\x1f\x8b": ((), "the file is compressed with gzip", "add .gz to its name, as in data.csv.gz"),
    b"BZh": ((), "the file is compressed with bzip2", "unpack it first, with bunzip2"),
    b"\xfd7zXZ": ((), "the file is compressed with xz", "unpack it first, with unxz"),
    b"\x28\xb5\x2f\xfd": ((), "the file is compressed with zstd", "unpack it first, with unzstd"),
    b"PK\x03\x04": (
        (".xlsx",),
        "the file is a ZIP archive or a spreadsheet",
        "unpack it, or give a spreadsheet the suffix .xlsx",
    ),
    b"\xd0\xcf\x11\xe0": (
        (),
        "the file is an old Excel file, or one with a password",
        "save it as .xlsx without a password",
    ),
    b"PAR1": ((".parquet",), "the file is Parquet", "give it the suffix .parquet"),
    b"ARROW1": ((".arrow",), "the file is Arrow", "give it the suffix .arrow"),
}
"""Magic bytes -> (suffixes that they are valid for, error message, hint)."""

ENCODINGS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""Byte-order mark -> encoding; without one of these, a file must be UTF-8."""


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading; a file whose name ends in .gz is decompressed.

    Raises:
        DataError: a .gz file is not compressed with gzip, or damaged.
    """
    if path.suffix.lower() != ".gz":
        with path.open("rb") as file:
            yield file
        return
    try:
        with gzip.open(path, "rb") as unpacked:
            yield cast(BinaryIO, unpacked)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        what = f"the file cannot be unpacked with gzip: {first_line(error)}"
        raise DataError(what, path=path, hint=f"{AGAIN}; if it is not compressed, rename it") from None


def head(file: BinaryIO) -> bytes:
    """The first bytes of a file, without moving on."""
    return cast(io.BufferedReader, file).peek(8)[:8]


def encoding(start: bytes) -> str:
    """The encoding of a file that begins with these bytes: UTF-16 or UTF-32 by its mark, else UTF-8."""
    return next((name for mark, name in ENCODINGS.items() if start.startswith(mark)), "UTF-8")


def text_lines(origin: Origin, file: BinaryIO, newline: str) -> Iterator[str]:
    """Lines with their line endings; a byte-order mark is dropped."""
    name = encoding(head(file)).replace("UTF-8", "UTF-8-sig")
    with io.TextIOWrapper(file, name, newline=newline) as lines:
        for number, line in enumerate(lines, 1):
            if "\0" in line:
                hint = "remove it; if the file is UTF-16: iconv -f UTF-16 -t UTF-8 OLD > NEW"
                raise origin.error("the line contains a NUL byte", number, hint=hint)
            yield line


def filled_lines(
    origin: Origin, lines: Iterator[str], *, keep_empty: bool = False
) -> Iterator[tuple[int, str]]:
    """Numbered lines without line endings; empty lines at the end are dropped.

    Args:
        origin: of the lines, for errors.
        lines: with their line endings.
        keep_empty: yield empty lines that others follow. If false, they are an error.
    """
    empty: list[int] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            empty.append(number)
            continue
        if empty and not keep_empty:
            raise origin.error("the line is empty", empty[0], hint="remove the line")
        if "\r" in (line := line.rstrip("\r\n")):
            hint = "line endings must be LF or CR LF; to convert CR: tr '\\r' '\\n' < OLD > NEW"
            raise origin.error("a carriage return within the line", number, hint=hint)
        yield from ((each, "") for each in empty)
        empty.clear()
        yield number, line


def undecodable(path: Path) -> DataError:
    """Locate the first byte that is not UTF-8. Buffered decoding loses the position, so read again."""
    offset = 0
    with opened(path) as file:
        start = head(file)
        if (name := encoding(start)) != "UTF-8":
            return DataError(f"not {name}, although it begins with its mark", path=path, hint=AGAIN)
        likely = "UTF-16" if b"\0" in start else "WINDOWS-1252"
        hint = f"if it is {likely}: iconv -f {likely} -t UTF-8 {shlex.quote(path.name)} > NEW"
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                what = f"not UTF-8: byte 0x{line[error.start]:02x} at offset {offset + error.start}"
                return DataError(what, path=path, line=number, hint=hint)
            offset += len(line)
    return DataError("not UTF-8", path=path, hint=hint)
