"""The option `data --corrections`: a data file with the labels that somebody corrected in errors.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rankwise.data.columns import LabeledRows, collect, text_and_label
from rankwise.data.labels import POINT_ZERO, WHOLE, renamed, whole_numbers
from rankwise.data.pairs import joined_name, paired, with_pairs
from rankwise.data.readers import open_table
from rankwise.data.tables import Origin, Row, listed, short
from rankwise.data.writers import plain, write_rows
from rankwise.errors import UsageError, option
from rankwise.tasks.single import SINGLE
from rankwise.tasks.task import Task

NEEDED = ("text", "label", "corrected_label")
"""Columns that a file of corrections must have; `source` is used if it is there."""


@dataclass(frozen=True)
class Corrected:
    """What was corrected."""

    output: Path
    rows: int  # of the data file
    corrections: int  # lines of the corrections with a new label
    changed: int  # rows whose label is a new one; several if a text occurs several times

    def to_json(self) -> dict[str, Any]:
        """The fields, for `--json`."""
        return asdict(self) | {"output": str(self.output)}


@dataclass(frozen=True)
class _Correction:
    line: int  # of the corrections
    source: str
    text: str
    label: str
    new: str


def correct(
    data: Path,
    corrections: Path,
    output: Path,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    task: Task = SINGLE,
    text_columns: tuple[str, ...] = (),
) -> Corrected:
    """Write a data file with corrected labels. Its other columns and the order of its rows stay.

    A correction belongs to the row that its `source` names, such as `train.csv:12`, if that is a row of this
    file; otherwise to all rows with its text and its label.

    Args:
        data: the file of labeled texts.
        corrections: errors.csv of a report, with new labels in the column `corrected_label`.
        output: the file to write: .csv, .tsv, .jsonl or .parquet.
        text_column: text column of the data, if it cannot be detected.
        label_column: label column of the data, if it cannot be detected.
        task: what labels a text has. The labels of a multi-label text are joined by its separator.
        text_columns: the two columns of a pair of texts.

    Raises:
        DataError: a file cannot be used, a correction fits no row, a new label is not one of the file's
            labels, or two corrections contradict each other; nothing is written.
        UsageError: the output exists, or its suffix is not supported.
    """
    if output.exists():
        raise UsageError(f"{output}: already exists", hint=f"give {option('output')} the name of a new file")
    rows, labeled, column = _read(data, text_column, label_column, task, text_columns)
    found, origin = _corrections(corrections)
    new = _new_labels(found, origin, labeled, task)
    changed = [
        row | {column: _corrected(row[column], new[i], labeled.classes, task)} if i in new else row
        for i, row in enumerate(rows)
    ]
    with write_rows(output, [changed]) as write:
        write(changed)
    return Corrected(output, len(labeled.texts), len(found), len(new))


def _read(
    path: Path, text: str | None, label: str | None, task: Task, pair: tuple[str, ...]
) -> tuple[list[Row], LabeledRows, str]:
    """All rows of a labeled file, its texts and labels, and the name of its label column."""
    with open_table(path) as table:
        wanted = joined_name(pair) if pair else text
        columns = paired(table.origin, table.columns, pair)
        text, label = text_and_label(table.origin, columns, wanted, label)
        numbered = list(table.rows)
        again = replace(table, rows=iter(numbered))
        found = collect(with_pairs(again, pair), text, label, task)
        labeled = renamed(found, whole_numbers([found], task, [found]))  # as a report names them
        return [row for _, row in numbered], labeled, label


def _corrections(path: Path) -> tuple[list[_Correction], Origin]:
    """The lines with a corrected label."""
    with open_table(path, labeled=False) as table:
        if missing := [name for name in NEEDED if name not in table.columns]:
            hint = "give the errors.csv of a report, with its header"
            raise table.origin.error(f"no column {listed(missing)}", hint=hint)
        found = [
            _Correction(number, *(_cell(row, name) for name in ("source", *NEEDED)))
            for number, row in table.rows
            if _cell(row, "corrected_label")
        ]
    if not found:
        hint = "write the right label into the column corrected_label of each line to correct"
        raise table.origin.error("no label is corrected", hint=hint)
    return found, table.origin


def _cell(row: Mapping[str, Any], name: str) -> str:
    """A cell as errors.csv had it before it was made safe for spreadsheets; labels are not padded."""
    value = plain(str(row.get(name) or ""))
    return value if name == "text" else value.strip()


def _new_labels(
    found: Sequence[_Correction], origin: Origin, data: LabeledRows, task: Task
) -> dict[int, str]:
    """Row of the data -> its new label."""
    known = {name for label in data.labels for name in task.names(label)}
    places = {data.origin.place(line): row for row, line in enumerate(data.lines)}
    labels = [_set(task.separator.join(task.names(label)), task) for label in data.labels]
    alike: dict[tuple[str, frozenset[str]], list[int]] = {}
    for row, key in enumerate(zip(data.texts, labels, strict=True)):
        alike.setdefault(key, []).append(row)
    new: dict[int, str] = {}
    for each in found:
        if unknown := sorted(_set(each.new, task) - known):
            hint = f"its labels are {listed(sorted(known))}; labels are case-sensitive"
            raise origin.error(
                f"no text of {data.origin.path} has the label {short(unknown[0])}", each.line, hint=hint
            )
        for row in _rows_of(each, origin, data, labels, task, places, alike):
            if new.setdefault(row, each.new) != each.new:
                what = (
                    f"{data.origin.place(data.lines[row])} is corrected to {short(new[row])} by another line"
                )
                raise origin.error(what, each.line, hint="leave one of the two lines empty")
    return new


def _rows_of(
    each: _Correction,
    origin: Origin,
    data: LabeledRows,
    labels: Sequence[frozenset[str]],
    task: Task,
    places: Mapping[str, int],
    alike: Mapping[tuple[str, frozenset[str]], Sequence[int]],
) -> Sequence[int]:
    """The rows of the data that a correction is about.

    Raises:
        DataError: there is none.
    """
    row, label = places.get(each.source), _set(each.label, task)
    if row is None:
        rows = alike.get((each.text, label), ())
        where = f"no row of {data.origin.path} has this text with the label {short(each.label)}"
    else:
        rows = (row,) if (data.texts[row], labels[row]) == (each.text, label) else ()
        where = f"{each.source} has another text or another label"
    if not rows:
        hint = "give the file that the run was trained on, unchanged, or remove the line from the corrections"
        raise origin.error(where, each.line, hint=hint)
    return rows


def _set(cell: str, task: Task) -> frozenset[str]:
    """The labels in a cell."""
    names = cell.split(task.separator) if task.several else [cell]
    return frozenset(name.strip() for name in names if name.strip())


def _corrected(old: Any, new: str, names: Sequence[str], task: Task) -> Any:
    """The new label or labels in the form of the old ones: a list, a joined string, or a single value."""
    if not task.several or not isinstance(old, list):
        return _like(old, new, names)
    return [_like(old[0] if old else "", each.strip(), names) for each in new.split(task.separator)]


def _like(old: Any, new: str, names: Sequence[str]) -> Any:
    """A label in the type of the one that it replaces.

    >>> _like(0, "joy", ("anger", "joy")), _like(1, "2", ()), _like(True, "false", ()), _like("a", "b", ())
    (1, 2, False, 'b')
    """
    if isinstance(old, bool):
        return new == "true"
    if isinstance(old, str) and POINT_ZERO.fullmatch(old.strip()) and WHOLE.fullmatch(new):
        return f"{new}.0"
    if not isinstance(old, int | float):
        return new
    try:
        return type(old)(names.index(new) if names else new)
    except ValueError:  # a column with numbers and words
        return new
