"""Rows of texts to classify, from a file of any length or from stdin."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import cast

from rankwise.data.columns import Columns, find_text_column, text_of, without_empty_tail
from rankwise.data.delimited import SEPARATORS
from rankwise.data.labels import alike
from rankwise.data.names import known
from rankwise.data.pairs import is_empty, joined_name, paired, with_pairs
from rankwise.data.plain import is_fasttext, is_json, read_plain, split_fasttext
from rankwise.data.readers import open_table
from rankwise.data.tables import BATCH_ROWS, INCOMPLETE, Origin, Row, Table, counted, listed
from rankwise.errors import DataError, option
from rankwise.tasks.labels import SEPARATOR

STDIN = Path("-")
LABELED_SHARE = 0.95
"""Share of the first lines that must contain a label for labels to be taken out of the texts."""

STDIN_NAME = "stdin"
"""What stdin is called in messages."""
NAME = re.compile(r"[^\W\d][\w -]{0,29}")
"""A column's name, for a line to be a header."""

Opener = Callable[[], AbstractContextManager[Table]]
TakeLabel = Callable[[str], tuple[str, str]]
"""Line -> (text, label); the label is empty if the line has none."""


@dataclass(frozen=True)
class TextRows:
    """Rows of unlabeled texts. They are read lazily, and as often as `batches` is called."""

    origin: Origin
    column: str
    """Name of the text column."""
    columns: Columns | None
    """The columns by name; None for lines of text."""
    notes: tuple[str, ...]
    """Notes for the user that are known before the rows have been read."""
    opened: Opener
    skip_empty: bool = False
    take_label: TakeLabel | None = None
    pair: tuple[str, ...] = ()
    """The two columns whose texts `column` joins; that column is not in the source."""
    has_header: bool = False
    """Whether the first of lines of text is a header, such as `text;label`."""

    def batches(self, notes: list[str] | None = None) -> Generator[list[Row], None, None]:
        """Batches of at most `BATCH_ROWS` rows, with all their columns.

        Args:
            notes: notes on how the rows were read are added at the end.

        Raises:
            DataError: the file, a row or its text cannot be used, or there are no texts.
        """
        batch: list[Row] = []
        skipped = done = 0
        with self.opened() as table:
            for number, row in without_empty_tail(with_pairs(table, self.pair, skip_empty=self.skip_empty)):
                if self.has_header and number == 1:
                    continue
                self._divide(row)
                if self.skip_empty and is_empty(row.get(self.column)):
                    skipped += 1
                    continue
                row[self.column] = text_of(table.origin, number, row, self.column)
                batch.append(row)
                done += 1
                if len(batch) == BATCH_ROWS:
                    yield batch
                    batch = []
        if batch:
            yield batch
        if not done:
            raise self.origin.error("the file has no texts", hint=INCOMPLETE)
        if notes is not None:
            notes += table.notes
            notes += (
                [self.origin.note(f"{counted(skipped, 'row')} without a text skipped")] if skipped else []
            )

    def all_columns(self) -> list[str]:
        """The columns of all rows. JSON is read to its end, because each row may have its own.

        Raises:
            DataError: see `batches`.
        """
        with self.opened() as table:
            if not table.ragged:
                return table.columns
        return list(dict.fromkeys(name for batch in self.batches() for row in batch for name in row))

    def _divide(self, row: Row) -> None:
        """Take the label out of the text."""
        if self.take_label is not None:
            text, label = self.take_label(row[self.column])
            row[self.column] = text
            if label:
                row["label"] = label


def text_rows(
    path: Path,
    *,
    text_column: str | None = None,
    pair: tuple[str, ...] = (),
    labels: Collection[str] = (),
    skip_empty: bool = False,
    separator: str = SEPARATOR,
) -> TextRows:
    """Rows of texts to classify.

    A `.txt` file and stdin have one text per line, in the column `text`. If nearly all of their first lines
    contain a label too, as `text;label` or as in fastText, only the text is classified. A header
    `text;label` is left out.

    Args:
        path: a file of any supported format, or `-` for stdin.
        text_column: the text column, if it cannot be detected.
        pair: the two columns of a pair of texts.
        labels: labels of the adapter.
        skip_empty: leave out rows without a text instead of raising an error.
        separator: joins the labels of a text, if it may have several.

    Raises:
        DataError: the file cannot be used, its text column cannot be determined, or lines of text are in fact
            JSON or CSV.
    """
    opener = _from_stdin() if path == STDIN else partial(open_table, path, labeled=False)
    with opener() as table:
        found = paired(table.origin, table.columns, pair)
        column = find_text_column(table.origin, found, joined_name(pair) if pair else text_column)
        origin, notes = table.origin, list(table.notes)
        first = [] if origin.named else [row["text"] for _, row in islice(table.rows, BATCH_ROWS)]
        kept = tuple(name or "(no name)" for name in found if name != column)
    has_header = bool(first) and _is_header(first[0])
    if first and not has_header:
        _refuse_other_formats(origin, first)
    lines = [line for line in first[has_header:] if line.strip()]
    take_label, share = _labels_in(lines, _Known(labels, separator))
    if has_header:
        notes.append(origin.note("the first line is a header and is left out"))
    if take_label is not None:
        notes.append(origin.note(f"{share}: the text is classified without it, and the label is kept"))
    columns = Columns(column, None, kept) if origin.named else None
    if columns:
        others = f"; kept as they are: {listed(kept)}" if kept else ""
        notes.insert(0, origin.note(f"text: {column}{others}"))
    return TextRows(origin, column, columns, tuple(notes), opener, skip_empty, take_label, pair, has_header)


def is_piped() -> bool:
    """Whether stdin is a pipe or a file with something in it. Waits for the program at a pipe's other end."""
    try:
        if sys.stdin is None or sys.stdin.isatty():
            return False
        return bool(cast(io.BufferedReader, sys.stdin.buffer).peek(1))
    except (AttributeError, OSError, ValueError):  # stdin is closed, or replaced by another object
        return False


def _from_stdin() -> Opener:
    """An opener of what stdin contains, which is read once."""
    origin, content = Origin(STDIN_NAME, named=False), sys.stdin.buffer.read()

    @contextmanager
    def opener() -> Iterator[Table]:
        try:
            yield read_plain(origin, io.BufferedReader(io.BytesIO(content)))
        except UnicodeDecodeError as error:
            hint = "convert it, for instance with iconv -f WINDOWS-1252 -t UTF-8"
            raise DataError(f"not UTF-8: {error.reason}", path=origin.path, hint=hint) from None

    return opener


def _is_header(line: str) -> bool:
    """Whether a line of a text file is a header of texts and labels, in either order."""
    return sorted(re.split("[;\t]", line.lower().replace(" ", ""))) == ["label", "text"]


def _refuse_other_formats(origin: Origin, lines: Sequence[str]) -> None:
    """Raise a DataError if lines of text are JSON, or CSV with a header that has a known name."""
    first = lines[0].strip()
    if is_json(first):
        what, suffix = "JSON", ".jsonl"
    elif columns := _csv_columns([line for line in lines if line.strip()]):
        what, suffix = f"a CSV header: {listed(columns)}", ".csv"
    else:
        return
    hint = f"give the file the suffix {suffix}"
    if origin.path == STDIN_NAME:
        hint = f"write it to a file with the suffix {suffix}, and give it with {option('input', 'FILE')}"
    raise origin.error(f"the first line is {what}, but a text is expected in each line", 1, hint=hint)


def _csv_columns(lines: Sequence[str]) -> list[str]:
    """The columns of lines that are clearly CSV, and empty for others.

    The first line consists of short names, one of which is known. All lines have as many fields, and there is
    more than one line, unless both the text and the label are known.
    """
    for sign in SEPARATORS:
        try:
            header, *rows = csv.reader(lines, delimiter=sign, strict=True)
        except csv.Error:
            continue
        names = [name.strip() for name in header]
        enough = known(names) >= 2 or (rows and known(names))
        even = all(len(row) == len(names) for row in rows)
        if len(names) > 1 and enough and even and all(map(NAME.fullmatch, filter(None, names))):
            return names
    return []


class _Known:
    """The labels of an adapter, in any case, alone or joined."""

    def __init__(self, labels: Collection[str], separator: str) -> None:
        self._labels, self._separator = frozenset(map(alike, labels)), separator

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, str) or not value.strip():
            return False
        several = value.split(self._separator) if self._separator else [value]
        return alike(value) in self._labels or self._labels.issuperset(map(alike, several))


def _labels_in(lines: Sequence[str], labels: _Known) -> tuple[TakeLabel | None, str]:
    """(how to take the label out of a line, what to say), if nearly all lines contain one."""
    ways = (
        (partial(_after, ";", labels), "end in ';' and a label"),
        (partial(_after, "\t", labels), "end in a tab and a label"),
        (partial(_before, "\t", labels), "begin with a label and a tab"),
        (partial(_before, ";", labels), "begin with a label and ';'"),
        (_fasttext, "have a __label__"),
    )
    for take, what in ways:
        found = sum(bool(take(line)[1]) for line in lines)
        if found and found >= LABELED_SHARE * len(lines):
            return take, f"{found:,} of the first {counted(len(lines), 'line')} {what}"
    return None, ""


def _after(sign: str, labels: _Known, line: str) -> tuple[str, str]:
    text, _, label = line.rpartition(sign)
    return (text, label.strip()) if text.strip() and label in labels else (line, "")


def _before(sign: str, labels: _Known, line: str) -> tuple[str, str]:
    label, _, text = line.partition(sign)
    return (text, label.strip()) if text.strip() and label in labels else (line, "")


def _fasttext(line: str) -> tuple[str, str]:
    if not is_fasttext(line):
        return line, ""
    text, labels = split_fasttext(line)
    return text, " ".join(labels)
