"""CSV and TSV: which separator, whether quotes quote, and what office programs add."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, BinaryIO

from rankwise.data.lines import opened, text_lines
from rankwise.data.names import known
from rankwise.data.tables import INCOMPLETE, NumberedRows, Origin, Table, counted, short

LONGEST_FIELD = 2**31 - 1
"""Maximum characters of a CSV field; the standard library's default is 131,072."""
csv.field_size_limit(LONGEST_FIELD)

SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}
HEAD_LINES = 100
"""Number of lines that the separator is chosen by."""
DECLARED = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)
"""A first line by which Excel is told the separator."""


@dataclass(frozen=True)
class Dialect:
    """How the lines of a file are read."""

    separator: str
    quoted: bool = True
    skipped: int = 0
    """Lines before the header."""

    def reader(self, lines: Iterable[str]) -> Any:
        """A CSV reader of the lines after the skipped ones."""
        return csv.reader(
            islice(lines, self.skipped, None),
            delimiter=self.separator,
            quoting=csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE,
            strict=True,
        )

    @property
    def name(self) -> str:
        """CSV or TSV."""
        return "TSV" if self.separator == "\t" else "CSV"


def read_delimited(origin: Origin, file: BinaryIO, separator: str) -> Table:
    """A table with a header. `separator` is the one that the suffix stands for.

    The file's own separator is the one that splits its first lines into equally many fields. Quotes are
    ignored in a TSV if they join lines that are whole rows without them.

    Raises:
        DataError: there is no header, or a column has no name or one that another has; also raised while
            iterating over the rows.
    """
    lines = text_lines(origin, file, "")
    head = list(islice(lines, HEAD_LINES))
    dialect = _dialect(origin, head, separator)
    records = _Records(origin, dialect, chain(head, lines))
    number, header = next(iter(records), (1, []))
    names = [name.strip() for name in header]
    kept = kept_columns(names)
    check_header(origin, [names[at] for at in kept], number)
    notes = _notes(origin, dialect, separator, len(names) - len(kept))
    rows = _rows(origin, records, names, kept, notes)
    return Table(origin, [names[at] for at in kept], rows, notes=notes, padded=True)


def kept_columns(names: list[str]) -> list[int]:
    """Positions of the columns with a name, and of the first one, which may be an index that pandas wrote."""
    return [at for at, name in enumerate(names) if name or (at == 0 and any(names))]


def check_header(origin: Origin, columns: list[str], number: int | None) -> None:
    """Raise a DataError if no column has a name, or two have the same name."""
    if not any(columns):
        hint = "put them in the first line, such as text,label"
        raise origin.error("the file has no column names", hint=INCOMPLETE if origin.in_rows else hint)
    double = next((name for name in columns if columns.count(name) > 1), None)
    if double is not None:
        hint = "give each column a unique name"
        raise origin.error(f"the column {short(double)} appears twice in the header", number, hint=hint)


# --- the dialect ----------------------------------------------------------------------------


def _dialect(origin: Origin, head: list[str], usual: str) -> Dialect:
    declared = DECLARED.fullmatch(head[0]) if head else None
    if declared:
        return Dialect(declared[1], skipped=1)
    dialect = Dialect(max(SEPARATORS, key=lambda each: (_fit(head, each), each == usual)))
    if dialect.separator == "\t" and _is_unquoted(origin):
        return Dialect("\t", quoted=False)
    return dialect


def _fit(head: list[str], separator: str) -> tuple[bool, bool, int]:
    """How well a separator fits: it is in the header, the rows have equally many fields, known names."""
    records = Dialect(separator).reader(head)
    header = _next_record(records) or []
    if len(header) < 2:
        return False, False, 0
    return True, _is_even(records, len(header), len(head) == HEAD_LINES), known([n.strip() for n in header])


def _next_record(records: Any) -> list[str] | None:
    try:
        return next((record for record in records if record), None)
    except csv.Error:
        return None


def _is_even(records: Any, width: int, is_cut: bool) -> bool:
    """Whether all records have this width. If the lines were cut off, the last record may be incomplete."""
    try:
        return all(_fields(record, width) is not None for record in records if record)
    except csv.Error:
        return is_cut


def _is_unquoted(origin: Origin) -> bool:
    """Whether a TSV is to be read without quoting: quotes join lines, and each line is a whole row without.

    A quote at the start of a header's field shows that the file uses quotes. In a single column, every line
    is a whole row, which shows nothing.
    """
    with opened(origin.file) as file:
        lines = text_lines(origin, file, "")
        header = next(lines, "")
        width = header.count("\t")
        quotes = False
        for line in lines:
            if line.count("\t") != width and line.strip():
                return False
            quotes = quotes or '"' in line
    plain = width > 0 and not re.search('(^|\t)"', header)
    return quotes and plain and _joins_lines(origin)


def _joins_lines(origin: Origin) -> bool:
    """Whether quotes make a field span several lines, or cannot be read at all."""
    with opened(origin.file) as file:
        reader = Dialect("\t").reader(text_lines(origin, file, ""))
        try:
            return any(reader.line_num != number for number, _ in enumerate(reader, 1))
        except csv.Error:
            return True


def _notes(origin: Origin, dialect: Dialect, usual: str, unnamed: int) -> list[str]:
    notes = []
    if dialect.separator != usual:
        named = SEPARATORS.get(dialect.separator, repr(dialect.separator))
        notes.append(origin.note(f"the separator is {named}"))
    if not dialect.quoted:
        what = (
            "read without quoting, because each line is a whole row only then; quotes are part of the texts"
        )
        notes.append(origin.note(what))
    if unnamed:
        notes.append(origin.note(f"{counted(unnamed, 'empty column')} without a name left out"))
    return notes


# --- rows -----------------------------------------------------------------------------------


@dataclass
class Joined:
    """Rows that span several lines, because a quoted field contains line ends."""

    rows: int = 0
    first: int = 0  # line that the first of them begins in
    longest: int = 0  # lines

    def add(self, begins: int, lines: int) -> None:
        """Count a row if it has several lines."""
        if lines > 1:
            self.rows += 1
            self.first = self.first or begins
            self.longest = max(self.longest, lines)

    def __str__(self) -> str:
        """What to tell the user."""
        return (
            f"{self.rows:,} {'rows span' if self.rows > 1 else 'row spans'} several lines, because a quoted "
            f"field contains line ends; the first begins in line {self.first:,}, and the longest has "
            f"{self.longest:,} lines"
        )


class _Records:
    """Records with the numbers of their first lines; empty lines are skipped."""

    def __init__(self, origin: Origin, dialect: Dialect, lines: Iterable[str]) -> None:
        self._origin, self._dialect = origin, dialect
        self._reader = dialect.reader(lines)
        self.joined = Joined()

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        skipped = self._dialect.skipped
        while True:
            before = self._reader.line_num
            try:
                record = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise self._broken(error, before + 1 + skipped) from None
            self.joined.add(before + 1 + skipped, self._reader.line_num - before)
            if record:
                yield before + 1 + skipped, record

    def _broken(self, error: csv.Error, number: int) -> Exception:
        hint = 'is a quote left open? Quotes inside a field are doubled: "so ""good"", they said"'
        return self._origin.error(f"not {self._dialect.name}: {error}", number, hint=hint)


def _rows(
    origin: Origin, records: _Records, names: list[str], kept: list[int], notes: list[str]
) -> NumberedRows:
    width, columns = len(names), [names[at] for at in kept]
    unnamed = sorted(set(range(width)) - set(kept))
    for number, record in records:
        fields = _fields(record, width)
        if fields is None:
            hint = "quote fields that contain the separator, a quote or a newline"
            found = counted(len(record), "field")
            raise origin.error(f"{found}, but the header has {width}", number, hint=hint)
        if unnamed:
            _refuse_nameless(origin, number, fields, unnamed)
            fields = [fields[at] for at in kept]
        yield number, dict(zip(columns, fields, strict=True))
    if records.joined.rows:
        notes.append(origin.note(str(records.joined)))


def _fields(record: list[str], width: int) -> list[str] | None:
    """The fields of a record, without empty ones beyond the header's; None for another width."""
    if len(record) > width and not any(record[width:]):
        return record[:width]
    return record if len(record) == width else None


def _refuse_nameless(origin: Origin, number: int, fields: list[str], unnamed: list[int]) -> None:
    """Raise a DataError if a column without a name has a value."""
    for at in unnamed:
        if fields[at].strip():
            what = f"column {at + 1} has the value {short(fields[at])}, but no name in the header"
            raise origin.error(what, number, hint="name the column in the first line, or remove it")
