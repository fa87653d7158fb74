"""The `predict` command: a file of texts -> the file with their labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankwise.commands.arguments import require_abstaining, require_target
from rankwise.commands.classifier import Classifier
from rankwise.commands.texts import LongTexts
from rankwise.data.ahead import ahead
from rankwise.data.columns import Wanted
from rankwise.data.pairs import joined_name
from rankwise.data.tables import Row, counted, short
from rankwise.data.unlabeled import STDIN, TextRows, text_rows
from rankwise.data.writers import write_rows
from rankwise.errors import UsageError, option
from rankwise.models import windows as long_windows
from rankwise.paths import expanded

JOINED = (".csv", ".tsv", ".xlsx")
"""Suffixes of files whose cells hold no lists."""


@dataclass(frozen=True)
class Counts:
    """What became of the texts of a file."""

    texts: int = 0
    unanswered: int = 0  # texts without a label
    long: LongTexts = field(default_factory=LongTexts)

    def __add__(self, other: Counts) -> Counts:
        """The sum over two files."""
        texts, unanswered = self.texts + other.texts, self.unanswered + other.unanswered
        return Counts(texts, unanswered, self.long + other.long)


def predict_file(
    classifier: Classifier,
    source: Path | str,
    target: Path | str,
    *,
    text_column: str | None = None,
    text_columns: tuple[str, ...] | None = None,
    safe_csv: bool = False,
    overwrite: bool = False,
    skip_empty: bool = False,
    abstain_below: float | None = None,
    on_stage: Callable[[str, int | None], None] = lambda stage, rows: None,
    on_read: Callable[[int], None] = lambda rows: None,
    on_rows: Callable[[int], None] = lambda rows: None,
    on_note: Callable[[str], None] = lambda note: None,
    on_counts: Callable[[Counts], None] | None = None,
) -> int:
    """Classify every row of a file of any length, and write the results to another file.

    The next rows are read and tokenized while the model works on the current ones.
    Rows keep their columns and order; `predicted_label` and a `probability_LABEL` for each label are added.
    A multi-label classifier adds `predicted_labels`: a list, or labels joined by its separator in CSV, TSV
    and spreadsheets.
    If the source has such a column, the added ones get a number.

    Args:
        classifier: the classifier.
        source: a file of any supported format; `.txt` has one text per line; `-` is stdin, in the same way.
        target: .csv, .tsv, .jsonl, .parquet or .xlsx; only put in place once complete.
        text_column: text column of the source, if it cannot be detected.
        text_columns: the two columns of a pair of texts, if they are not called as in training.
        safe_csv: prefix cells that a spreadsheet would run as formulas with an apostrophe.
        overwrite: replace the target if it exists.
        skip_empty: leave out rows without a text.
        abstain_below: leave the label empty if its probability is below this; a note says how often.
        on_stage: called when a stage begins, with its name and the number of rows, if known. `read` finds the
            columns of all rows, which .jsonl does not need; `predict` classifies the rows.
        on_read: called with the number of rows after each batch that was read.
        on_rows: called with the number of rows after each batch that was classified and written.
        on_note: called with notes on what was read, and how much of it was used.
        on_counts: called at the end instead of `on_note` with the notes on them.

    Returns:
        The number of rows.

    Raises:
        DataError: the source cannot be used; nothing is written.
        UsageError: the target exists, its suffix is not supported, or the text column has the name of an
            added one; or abstain_below is not a probability.
    """
    least = 0.0 if abstain_below is None else require_abstaining(classifier.task, abstain_below)
    source, target = expanded(source), expanded(target)
    require_target(target, overwrite=overwrite, safe_csv=safe_csv)
    rows = text_rows(
        source,
        text_column=text_column,
        pair=pair_columns(classifier.text_columns, text_column, text_columns),
        labels=classifier.labels,
        skip_empty=skip_empty,
        separator=classifier.task.separator,
    )
    for note in rows.notes:
        on_note(note)
    added = _added_columns(classifier, rows, on_note)
    as_list = classifier.task.several and target.suffix.lower() not in JOINED
    blank = dict.fromkeys(added, 0.0) | {added[0]: [""] if as_list else ""}
    notes: list[str] = []
    total, counts = 0, Counts()

    def preview() -> Iterator[list[Row]]:
        nonlocal total
        on_stage("read", None)
        for batch in ahead(rows.batches()):
            total += len(batch)
            on_read(len(batch))
            yield [_without_pair(row, rows) | blank for row in batch]

    encoded = (
        (batch, classifier.encoded([row[rows.column] for row in batch])) for batch in rows.batches(notes)
    )
    with write_rows(target, preview(), safe=safe_csv) as write, closing(ahead(encoded)) as batches:
        on_stage("predict", total or None)
        for batch, texts in batches:
            unanswered = 0
            for row, found in zip(batch, classifier(texts), strict=True):
                label = found.answer(least)
                unanswered += label is None
                said = list(found.labels) if as_list else label or ""
                values = (said, *(round(p, 6) for p in found.probabilities.values()))
                row |= dict(zip(added, values, strict=True))
            write([_without_pair(row, rows) for row in batch])
            counts += Counts(len(batch), unanswered, classifier.long_texts(texts))
            on_rows(len(batch))
    more = count_notes(counts, classifier.max_length, classifier.window_stride is not None, abstain_below)
    for note in [*(each for each in notes if each not in rows.notes), *(() if on_counts else more)]:
        on_note(note)
    if on_counts:
        on_counts(counts)
    return counts.texts


def _without_pair(row: dict[str, Any], rows: TextRows) -> dict[str, Any]:
    """A row without the joined texts of a pair, which are not in the source."""
    return {name: value for name, value in row.items() if name != rows.column} if rows.pair else row


def pair_columns(
    known: tuple[str, ...], text_column: str | None, given: tuple[str, ...] | None
) -> tuple[str, ...]:
    """The two columns of a pair of texts: those that are given, or those of training; empty for single texts.

    Args:
        known: those of training.
        text_column: the column of single texts, if it is given.
        given: the two columns, if they are given.

    Raises:
        UsageError: columns are given that do not suit the adapter.
    """
    if text_column and known:
        raise UsageError(
            f"this adapter takes pairs of {known[0]} and {known[1]}, not one text",
            hint=f"name both columns: {option('text_columns', ('A', 'B'))}",
        )
    if given and not known:
        hint = f"name one column: {option('text_column', 'NAME')}"
        raise UsageError("this adapter takes one text, not a pair", hint=hint)
    if given and len(given) != 2:
        raise UsageError(f"{option('text_columns')}: give the names of two columns")
    return given or known


def wanted_by(classifier: Classifier, columns: Mapping[str, Any]) -> Wanted:
    """What is read of labeled data for a classifier.

    Args:
        classifier: the classifier.
        columns: `text_column` or `text_columns`, and `label_column`, if they cannot be detected.

    Raises:
        UsageError: see `pair_columns`.
    """
    text = columns.get("text_column")
    pair = pair_columns(classifier.text_columns, text, columns.get("text_columns"))
    return Wanted(joined_name(pair) if pair else text, columns.get("label_column"), classifier.task, pair)


def lines_of_stdin(classifier: Classifier, *, skip_empty: bool, on_note: Callable[[str], None]) -> list[str]:
    """The texts in stdin, one per line.

    Raises:
        DataError: stdin is not UTF-8, has no texts, or an empty line within them that is not to be skipped.
    """
    separator = classifier.task.separator
    rows = text_rows(STDIN, labels=classifier.labels, skip_empty=skip_empty, separator=separator)
    notes = list(rows.notes)
    texts = [row[rows.column] for batch in rows.batches(notes) for row in batch]
    for note in notes:
        on_note(note)
    return texts


def count_notes(
    counts: Counts, length: int, in_windows: bool, abstain_below: float | None = None
) -> list[str]:
    """Notes on the texts that were cut or read in windows, and on those without a label, if there are any.

    Args:
        counts: their numbers.
        length: most tokens that are read of a text, or of a window.
        in_windows: whether long texts are read in windows instead of being cut.
        abstain_below: least probability of a label, if there is one.
    """
    notes = _long_notes(counts.long, counts.texts, length, in_windows)
    return [*notes, *_abstain_note(abstain_below, counts.unanswered, counts.texts)]


def _long_notes(long: LongTexts, texts: int, length: int, in_windows: bool) -> list[str]:
    if not in_windows:
        return [f"{long.cut:,} of {texts:,} texts cut at {counted(length, 'token')}"] if long.cut else []
    notes = []
    if long.windowed:
        said = f"{long.windowed:,} of {texts:,} texts read in windows of {counted(length, 'token')}"
        notes.append(f"{said}, {long.windows:,} windows in all")
    if long.cut:
        notes.append(f"{long.cut:,} of {texts:,} texts cut at {long_windows.MOST:,} windows")
    return notes


def _abstain_note(abstain_below: float | None, unanswered: int, texts: int) -> list[str]:
    if abstain_below is None:
        return []
    return [f"{unanswered:,} of {texts:,} texts have no label: its probability is below {abstain_below:g}"]


def _added_columns(classifier: Classifier, rows: TextRows, on_note: Callable[[str], None]) -> list[str]:
    """Names of the added columns; they get a number if the input has one of these names.

    Raises:
        UsageError: the text column has one of these names.
    """
    first = "predicted_labels" if classifier.task.several else "predicted_label"
    usual = [first, *(f"probability_{label}" for label in classifier.labels)]
    if rows.column in usual:
        hint = f"rename the column, or select another with {option('text_column', 'NAME')}"
        raise UsageError(f"the text column {short(rows.column)} has the name of an output column", hint=hint)
    taken = set(rows.all_columns())
    names, number = usual, 1
    while not taken.isdisjoint(names):
        number += 1
        names = [f"{name}_{number}" for name in usual]
    if names != usual:
        there = next(name for name in usual if name in taken)
        on_note(rows.origin.note(f"has a column {short(there)}, so the new columns end in _{number}"))
    return names
