"""The rank table and the sample table, as rows and as Markdown."""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rankwise.errors import UsageError
from rankwise.store import files
from rankwise.store.run import AdapterResult, Diverged, Results, RunFolder

RANK_COLUMNS = ("rank", "trainable params", "total params", "% trainable")
SAMPLE_COLUMNS = ("text", "label", "emotion", "predicted label", "predicted emotion")
_STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, signs that turn the direction of what follows, halves of surrogate pairs."""


@dataclass(frozen=True)
class Table:
    """Cells as people read them."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    keys: int = 1
    """How many of the first columns name the row."""
    note: str = ""
    """What the columns mean, in a line."""

    def markdown(self) -> str:
        """As a Markdown table. Text from the data cannot become markup."""
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        return "".join(f"| {' | '.join(_escape(cell) for cell in line)} |\n" for line in lines)


def rank_table(results: Results) -> Table:
    """One row an adapter: rank, parameters, accuracy with its 95 % interval over texts, macro-F1."""
    tested = any(row.test for row in results.adapters)
    seeded = len({row.seed for row in results.adapters} | {row.seed for row in results.diverged}) > 1
    columns = (
        *(("seed",) if seeded else ()),
        *RANK_COLUMNS,
        *("validation accuracy", "95 %", "validation macro-F1"),
        *(("test accuracy", "95 %", "test macro-F1") if tested else ()),
    )
    rows = [_rank_row(row, tested, seeded) for row in results.adapters]
    rows += [_dropped_row(each, len(columns), seeded) for each in results.diverged]
    title = f"{results.base}, {results.texts['train']:,} training texts"
    note = "Accuracy and macro-F1 in percent; 95 %: the interval of the accuracy over texts (Wilson)."
    if results.diverged:
        note += " Dropped: loss, gradient or weights were no longer numbers."
    return Table(title, columns, rows, keys=2 if seeded else 1, note=note)


def _dropped_row(each: Diverged, columns: int, seeded: bool) -> tuple[str, ...]:
    keys = (*((str(each.seed),) if seeded else ()), str(each.rank), "-", "-", "-")
    rest = (f"dropped at step {each.step}", *("-",) * columns)
    return (*keys, *rest)[:columns]


def _rank_row(row: AdapterResult, tested: bool, seeded: bool) -> tuple[str, ...]:
    splits = [row.validation, row.test] if tested else [row.validation]
    scores = [cell for split in splits if split for cell in _scores(split)]
    return (
        *((str(row.seed),) if seeded else ()),
        str(row.rank),
        f"{row.trainable_params:,}",
        f"{row.total_params:,}",
        f"{row.trainable_percent:.4f}",
        *scores,
    )


def _scores(split: dict[str, float]) -> tuple[str, str, str]:
    interval = f"{100 * split['accuracy_low']:.1f}-{100 * split['accuracy_high']:.1f}"
    return f"{100 * split['accuracy']:.2f}", interval, f"{100 * split['macro_f1']:.2f}"


def sample_table(run: RunFolder, *, adapter: str | None = None, seed: int = 110, per_class: int = 2) -> Table:
    """Texts of each class, drawn by seed, with an adapter's predictions.

    Args:
        run: a finished run. Its test texts are used, or its validation texts where it has no test.
        adapter: by default the one with the best validation accuracy, the smallest rank among equals.
        seed: of the draw.
        per_class: texts of each class.

    Raises:
        UsageError: the run is not finished, or has no such adapter.
    """
    results = run.read_results()
    names = [row.name for row in results.adapters]
    if adapter is None:
        adapter = max(results.adapters, key=lambda row: (row.validation["accuracy"], -row.rank)).name
    if adapter not in names:
        raise UsageError(f"{run.path}: no adapter {adapter}", hint=f"it has {', '.join(names)}")
    lines = read_predictions(run, [adapter])
    split = "test" if "test" in results.texts else "validation"
    rows = []
    for label, name in enumerate(results.labels):
        mine = [line for line in lines if line["split"] == split and line["label"] == name]
        for line in random.Random(f"{seed} {name}").sample(mine, min(per_class, len(mine))):
            predicted = line[adapter]
            number = str(results.labels.index(predicted)) if predicted in results.labels else "?"
            rows.append((line["text"], str(label), name, number, predicted))
    return Table(f"{split} texts, predicted by {adapter}", SAMPLE_COLUMNS, rows)


def read_predictions(run: RunFolder, adapters: Sequence[str]) -> list[dict[str, str]]:
    """The lines of predictions.csv, which must hold these adapters.

    Raises:
        UsageError: the file cannot be read, or is not as the sweep wrote it.
    """
    try:
        with run.predictions.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file, restval="", strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{run.predictions}: cannot be read: {error}") from None
    if not lines or not {"split", "text", "label", *adapters} <= lines[0].keys():
        raise UsageError(f"{run.predictions}: not as the sweep wrote it", hint="run the sweep again")
    return lines


def write(run: RunFolder) -> None:
    """Write table.md and samples.md."""
    ranks, samples = rank_table(run.read_results()), sample_table(run)
    files.write_text(run.table, f"{_escape(ranks.title)}\n\n{ranks.markdown()}\n{ranks.note}\n")
    files.write_text(run.samples, f"{_escape(samples.title)}\n\n{samples.markdown()}")


def printable(text: str) -> str:
    r"""Text from outside without anything that steers a terminal; line ends stay.

    >>> ascii(printable("\x1b[2J\n"))
    "'\\ufffd[2J\\n'"
    """
    return _STEERING.sub("\ufffd", text)


def one_line(text: str) -> str:
    """Text from the data as the cell of a table can show it."""
    return printable(" ".join(text.split()))


def _escape(cell: str) -> str:
    """Markdown and HTML signs made plain, and what GitHub turns into links, formulas and pictures."""
    cell = one_line(cell)
    for sign in "\\`*_{}[]<>#|&~:$@":
        cell = cell.replace(sign, f"\\{sign}")
    return cell.replace("www.", "www\\.")
