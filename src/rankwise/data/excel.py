"""Spreadsheets (.xlsx), read and written with openpyxl, which the extra `rankwise[excel]` installs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO
from zipfile import BadZipFile

from rankwise.data.delimited import check_header, kept_columns
from rankwise.data.tables import (
    AGAIN,
    INCOMPLETE,
    NumberedRows,
    Origin,
    Table,
    counted,
    first_line,
    listed,
    short,
)
from rankwise.errors import DataError, UsageError

MOST_ROWS = 1_048_576
"""Rows of a sheet in Excel, including the header."""
LONGEST_CELL = 32_767
"""Characters of a cell in Excel. openpyxl cuts longer ones without a word."""
LARGEST_INTEGER = 10**15
"""Excel stores numbers as float64 and shows fifteen digits; larger integers are written as text."""
UNWRITABLE = re.compile(r"[\x00-\x08\x0b-\x1f\ufffe\uffff]|_(?=x[0-9A-Fa-f]{4}_)")
"""Characters that XML does not hold, carriage returns, which it turns into newlines, and literal escapes."""
ESCAPE = re.compile(r"_x([0-9A-Fa-f]{4})_")
"""How the file format writes such a character, by its code."""


def _openpyxl(path: Path | str) -> ModuleType:
    try:
        import openpyxl
    except ImportError:
        hint = "pip install 'rankwise[excel]', or save the sheet as CSV in UTF-8"
        raise DataError("spreadsheets need the package openpyxl", path=path, hint=hint) from None
    return openpyxl


# --- reading --------------------------------------------------------------------------------


def read_excel(origin: Origin, file: BinaryIO) -> Table:
    """The only sheet with data, with a header. Rows have the numbers that the spreadsheet shows.

    Formulas are read as the values that the spreadsheet stored.

    Raises:
        DataError: openpyxl is missing, the file is not a spreadsheet, several sheets have data, or there is
            no header; also raised while iterating over the rows.
    """
    openpyxl = _openpyxl(origin.path)
    with _errors(origin):
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        sheet = _only_sheet(origin, book.worksheets)
        rows = _filled(sheet)
        number, header = next(rows)
    names = [str(cell).strip() if cell is not None else "" for cell in header]
    kept = kept_columns(names)
    columns = [names[at] for at in kept]
    check_header(origin, columns, number)
    notes = (
        []
        if len(book.worksheets) == 1
        else [origin.note(f"read the sheet {sheet.title!r}; the others are empty")]
    )
    return Table(origin, columns, _rows(origin, rows, names, kept), notes=notes, padded=True)


@contextmanager
def _errors(origin: Origin) -> Iterator[None]:
    """Turn the errors of openpyxl and of the XML parser into DataErrors."""
    try:
        yield
    except DataError:
        raise
    except (
        BadZipFile,
        KeyError,
        ValueError,
        TypeError,
        SyntaxError,
        OSError,
        EOFError,
        AttributeError,
    ) as error:
        what = f"cannot be read as a spreadsheet: {first_line(error)}"
        raise origin.error(what, hint=f"{AGAIN}, or save the sheet as CSV in UTF-8") from None


def _only_sheet(origin: Origin, sheets: Sequence[Any]) -> Any:
    filled = [sheet for sheet in sheets if next(_filled(sheet), None)]
    if not filled:
        raise origin.error("no sheet has data", hint=INCOMPLETE)
    if len(filled) > 1:
        hint = "keep one of them in the file, or save it as CSV in UTF-8"
        names = listed([sheet.title for sheet in filled])
        raise origin.error(f"{len(filled)} sheets have data: {names}", hint=hint)
    return filled[0]


def _filled(sheet: Any) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Rows from the first one with a value, which is the header."""
    sheet.reset_dimensions()  # some programs store wrong ones, and rows would be cut off
    rows = iter(enumerate(sheet.iter_rows(values_only=True), 1))
    for number, cells in rows:
        if any(cell is not None for cell in cells):
            yield number, cells
            yield from rows
            return


def _rows(
    origin: Origin, rows: Iterator[tuple[int, tuple[Any, ...]]], names: list[str], kept: list[int]
) -> NumberedRows:
    columns = [names[at] for at in kept]
    while True:
        with _errors(origin):
            found = next(rows, None)
        if found is None:
            return
        number, cells = found
        for at, cell in enumerate(cells):
            if at not in kept and cell not in (None, ""):
                what = f"column {at + 1} has the value {short(cell)}, but no name in the header"
                raise origin.error(what, number, hint="name the column in the first row, or remove it")
        values = (_read(cells[at]) if at < len(cells) else None for at in kept)
        yield number, dict(zip(columns, values, strict=True))


def _read(cell: Any) -> Any:
    if not isinstance(cell, str) or "_x" not in cell:
        return cell
    return ESCAPE.sub(lambda found: chr(int(found[1], 16)), cell)


# --- writing --------------------------------------------------------------------------------


@contextmanager
def sheet_writer(
    path: Path,
    file: BinaryIO,
    preview: Iterable[Sequence[Mapping[str, Any]]],
    text: Callable[[Any], str | None],
) -> Iterator[Callable[[Sequence[Mapping[str, Any]]], None]]:
    """Yield a function that writes batches of rows to a sheet. Texts are never formulas.

    Args:
        path: of the file, for messages.
        file: where the spreadsheet is written at the end.
        preview: the rows, which are checked against the limits of a spreadsheet first.
        text: the text of a value that is neither a string nor a number.

    Raises:
        UsageError: openpyxl is missing, or a spreadsheet cannot hold the rows.
    """
    try:
        openpyxl = _openpyxl(path)
    except DataError as error:
        raise UsageError(error.message, hint="pip install 'rankwise[excel]', or write .csv") from None
    columns = _checked(path, preview, text)
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("predictions")

    def write(rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            sheet.append([_cell(sheet, _value(row.get(column), text)) for column in columns])

    write([dict(zip(columns, columns, strict=True))])
    yield write
    book.save(file)


def _checked(
    path: Path, preview: Iterable[Sequence[Mapping[str, Any]]], text: Callable[[Any], str | None]
) -> list[str]:
    """All columns. Raises a UsageError if a spreadsheet cannot hold the rows."""
    columns: dict[str, None] = {}
    done = 0
    for rows in preview:
        for number, row in enumerate(rows, done + 1):
            columns |= dict.fromkeys(row)
            for column, value in row.items():
                _check_cell(path, number, column, _value(value, text))
        done += len(rows)
    if done >= MOST_ROWS:
        raise _too_much(path, f"{counted(done, 'row')} and a header; a sheet holds {MOST_ROWS:,}")
    return list(columns)


def _check_cell(path: Path, number: int, column: str, value: object) -> None:
    if isinstance(value, str) and len(value) > LONGEST_CELL:
        what = f"row {number:,} has {len(value):,} characters in the column {short(column)}"
        raise _too_much(path, f"{what}; a cell holds {LONGEST_CELL:,}")


def _too_much(path: Path, what: str) -> UsageError:
    return UsageError(f"{path}: {what}", hint="write .csv, .jsonl or .parquet")


def _value(value: Any, text: Callable[[Any], str | None]) -> Any:
    """A value that a cell can hold: None, a truth value, a number or a string."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int) and abs(value) < LARGEST_INTEGER:
        return value
    return UNWRITABLE.sub(_escaped, text(value) or "")


def _escaped(found: re.Match[str]) -> str:
    """The escape that the file format has for a character, such as _x000D_ for a carriage return."""
    return f"_x{ord(found[0]):04X}_"


def _cell(sheet: Any, value: Any) -> Any:
    """A cell. A string that begins with = would otherwise become a formula."""
    from openpyxl.cell import WriteOnlyCell

    cell = WriteOnlyCell(sheet, value)
    if isinstance(value, str):
        cell.data_type = "s"
    return cell
