"""The rank table and the sample table, as rows and as Markdown."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rankwise.data.writers import csv_line
from rankwise.errors import UsageError
from rankwise.report.predictions import read_predictions
from rankwise.report.scores import Score, ScoreRow, alone, baseline_rows, best_adapter, rank_rows, splits
from rankwise.schema import ClassMetrics, Results
from rankwise.store import files
from rankwise.store.run_folder import RunFolder

RANK_COLUMNS = ("rank", "trainable params", "total params", "% trainable")
SAMPLE_COLUMNS = ("text", "label", "emotion", "predicted label", "predicted emotion")
PARAMETER_COLUMNS = ("trainable_params", "total_params", "trainable_percent", "adapter_bytes")
CSV_COLUMNS = ("kind", "name", "rank", "seed", "seeds", *PARAMETER_COLUMNS)
SCORE_COLUMNS = {
    "accuracy": "accuracy", "accuracy_low": "low", "accuracy_high": "high", "accuracy_spread": "spread",
    "macro_f1": "macro_f1", "log_loss": "log_loss",
}  # fmt: skip
"""Column of table.csv, after the split -> field of `Score`."""
_FORMULA = re.compile(r"\s*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
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
        return "".join(f"| {' | '.join(escape(cell) for cell in line)} |\n" for line in lines)


def class_figures(title: str, classes: Sequence[ClassMetrics]) -> Table:
    """A row for each class: precision, recall and F1 in percent, and its number of texts."""
    rows = [
        (each.label, percent(each.precision), percent(each.recall), percent(each.f1), f"{each.texts:,}")
        for each in classes
    ]
    return Table(title, ("label", "precision", "recall", "F1", "texts"), rows)


def rank_table(run: RunFolder) -> Table:
    """A row for each rank, then for each reference: parameters, accuracy with its interval, macro-F1.

    With several seeds, accuracy and macro-F1 are means over them.

    Raises:
        UsageError: the run is not finished, or there are several seeds and its predictions cannot be read.
    """
    results = run.read_results()
    several, shown = len({row.seed for row in results.adapters}) > 1, splits(results)
    scores = ("accuracy", *(("spread",) if several else ()), "95 %", "macro-F1")
    named = [f"{split} {each}" if each[0] in "am" else each for split in shown for each in scores]
    seeds = len({row.seed for row in results.adapters})
    finished = {row.rank for row in results.adapters}
    lost = sorted({each.rank for each in results.diverged} - finished)
    dropped = [ScoreRow(f"{rank} (dropped)", rank, (), {}) for rank in lost]
    ranks = sorted([*rank_rows(run, results), *dropped], key=lambda row: row.rank or 0)
    rows = [*ranks, *baseline_rows(results)]
    return Table(
        title=f"{results.base}, {results.texts['train']:,} training texts",
        columns=(*RANK_COLUMNS, *named),
        rows=[_rank_row(row, shown, seeds) for row in rows],
        note=_rank_note(results, seeds),
    )


def _rank_row(row: ScoreRow, shown: Sequence[str], seeds: int) -> tuple[str, ...]:
    few = f" ({len(row.adapters)} of {seeds} seeds)" if row.adapters and len(row.adapters) < seeds else ""
    params = ("", "", "")
    if row.params:
        each = row.params
        params = (f"{each.trainable_params:,}", f"{each.total_params:,}", f"{each.trainable_percent:.4f}")
    cells = [cell for split in shown for cell in _scores(row.scores.get(split), seeds > 1)]
    return (row.name + few, *params, *cells)


def _scores(score: Score | None, several: bool) -> tuple[str, ...]:
    if score is None:
        return ("",) * (4 if several else 3)
    spread = "" if score.spread is None else f"{100 * score.spread:.2f}"
    return (
        percent(score.accuracy),
        *((spread,) if several else ()),
        interval(score),
        percent(score.macro_f1),
    )


def _rank_note(results: Results, seeds: int) -> str:
    note = "Accuracy and macro-F1 in percent; 95 %: the interval of the accuracy over texts (Wilson)."
    if seeds > 1:
        note = (
            f"Accuracy and macro-F1 in percent, means over {seeds} seeds; spread: standard deviation of the "
            "accuracy over seeds, in points; 95 %: the interval of the accuracy over texts and seeds."
        )
    dropped = [f"{each.name} diverged at step {each.step:,}" for each in results.diverged]
    return f"{note} Dropped: {'; '.join(dropped)}." if dropped else note


def percent(fraction: float) -> str:
    """A fraction in percent, as tables show it.

    >>> percent(0.9145)
    '91.45'
    """
    return f"{100 * fraction:.2f}"


def interval(score: Score) -> str:
    """The 95 % interval of an accuracy, in percent: `90.1-92.6`."""
    return f"{100 * score.low:.1f}-{100 * score.high:.1f}"


def rank_csv(run: RunFolder) -> str:
    """The figures behind the rank table as CSV, fractions unrounded: ranks, their adapters, references."""
    results = run.read_results()
    ranks, columns = rank_rows(run, results), [*CSV_COLUMNS]
    columns += [f"{split}_{each}" for split in splits(results) for each in SCORE_COLUMNS]
    rows = [_csv_row("rank", row) for row in ranks]
    rows += [_csv_row("adapter", alone(row, each)) for row in ranks for each in row.adapters]
    rows += [_csv_row("baseline", row) for row in baseline_rows(results)]
    lines = [csv_line(columns), *(csv_line([row.get(name) for name in columns]) for row in rows)]
    return "".join(lines)


def _csv_row(kind: str, row: ScoreRow) -> dict[str, Any]:
    cells: dict[str, Any] = {"kind": kind, "name": plain_cell(row.name), "rank": row.rank}
    if row.params:
        cells |= {name: getattr(row.params, name) for name in PARAMETER_COLUMNS}
        cells |= {"seed": row.params.seed if kind == "adapter" else None, "seeds": len(row.adapters)}
    for split, score in row.scores.items():
        cells |= {f"{split}_{name}": getattr(score, field) for name, field in SCORE_COLUMNS.items()}
    return cells


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
        adapter = best_adapter(results.adapters).name
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


def write(run: RunFolder) -> None:
    """Write table.md, table.csv and samples.md."""
    ranks, samples = rank_table(run), sample_table(run)
    files.write_text(run.table, f"{escape(ranks.title)}\n\n{ranks.markdown()}\n{ranks.note}\n")
    files.write_text(run.path / "table.csv", rank_csv(run))
    files.write_text(run.samples, f"{escape(samples.title)}\n\n{samples.markdown()}")


def printable(text: str) -> str:
    r"""Text from outside without anything that steers a terminal; line ends stay.

    >>> ascii(printable("\x1b[2J\n"))
    "'\\ufffd[2J\\n'"
    """
    return _STEERING.sub("\ufffd", text)


def one_line(text: str) -> str:
    """Text from the data as the cell of a table can show it."""
    return printable(" ".join(text.split()))


def plain_cell(text: str) -> str:
    """Text from outside as a cell of CSV that no spreadsheet takes for a formula.

    >>> plain_cell("=1+1"), plain_cell("-1"), plain_cell("so-so")
    ("'=1+1", '-1', 'so-so')
    """
    formula = _FORMULA.match(text) and not _NUMBER.fullmatch(text)
    return f"'{text}" if formula else text


def escape(cell: str) -> str:
    """Markdown and HTML signs made plain, and what GitHub turns into links, formulas and pictures."""
    cell = one_line(cell)
    for sign in "\\`*_{}[]<>#|&~:$@":
        cell = cell.replace(sign, f"\\{sign}")
    return cell.replace("www.", "www\\.")
