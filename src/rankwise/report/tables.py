"""The rank table, and tables as Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rankwise.data.writers import csv_line
from rankwise.report.run import Run
from rankwise.report.scores import (
    Score,
    ScoreRow,
    alone,
    baseline_rows,
    cut_rows,
    rank_rows,
    splits,
)
from rankwise.schema import ClassMetrics, Results
from rankwise.store import files
from rankwise.store.run_folder import RunFolder

PARAMETERS = ("trainable params", "total params", "% trainable")
PARAMETER_COLUMNS = ("trainable_params", "total_params", "trainable_percent", "adapter_bytes")
CSV_COLUMNS = ("kind", "name", "rank", "seed", "seeds", *PARAMETER_COLUMNS, "kept")
RATE_COLUMN = "learning_rate"
"""Column of table.csv, if the ranks differ in it."""
SCORE_COLUMNS = {
    "accuracy": "accuracy", "accuracy_low": "low", "accuracy_high": "high", "accuracy_spread": "spread",
    "macro_f1": "macro_f1", "log_loss": "log_loss",
}  # fmt: skip
"""Column of table.csv, after the split -> field of `Score`."""
_STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, bidirectional formatting characters, and unpaired surrogates."""


@dataclass(frozen=True)
class Table:
    """A table with formatted cells."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    keys: int = 1
    """Number of leading columns that identify the row."""
    note: str = ""
    """One line that explains the columns."""

    def markdown(self) -> str:
        """The table as Markdown, with all cells escaped."""
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        return "".join(f"| {' | '.join(escape(cell) for cell in line)} |\n" for line in lines)


def class_figures(title: str, classes: Sequence[ClassMetrics], most: int | None = None) -> Table:
    """A row for each class: precision, recall and F1 in percent, and its number of texts.

    Args:
        title: title of the table.
        classes: metrics of each class.
        most: if there are more classes, the table has this many, weakest first.
    """
    note = ""
    if most is not None and len(classes) > most:
        note = f"The {most} classes with the lowest F1 of {len(classes):,}; results.json has all."
        classes = sorted(classes, key=lambda each: each.f1)[:most]
    rows: list[tuple[str, ...]] = [
        (each.label, percent(each.precision), percent(each.recall), percent(each.f1), f"{each.texts:,}")
        for each in classes
    ]
    columns: tuple[str, ...] = ("label", "precision", "recall", "F1", "texts")
    thresholds = [each.threshold for each in classes]
    if any(each is not None for each in thresholds):
        columns = (*columns, "threshold")
        rows = [
            (*row, "" if each is None else percent(each)) for row, each in zip(rows, thresholds, strict=True)
        ]
    return Table(title, columns, rows, note=note)


def rank_table(run: Run) -> Table:
    """One row per rank, per cut, then per baseline: accuracy with its interval, macro-F1, parameters.

    With several seeds, accuracy and macro-F1 are means over them. If the ranks were trained at different
    learning rates, there is a column for them.
    """
    results, seeds, shown, rates = run.results, run.seeds, splits(run.results), _own_rates(run)
    scores = ("accuracy", "95 %", "macro-F1", *(("spread",) if seeds > 1 else ()))
    named = [f"{split} {each}" if each[0] in "am" else each for split in shown for each in scores]
    finished = {row.rank for row in results.adapters}
    lost = sorted({each.rank for each in results.diverged} - finished)
    dropped = [ScoreRow(f"{rank} (dropped)", rank, (), {}) for rank in lost]
    ranks = sorted([*rank_rows(run), *dropped], key=lambda row: row.rank or 0)
    rows = [*ranks, *cut_rows(run), *baseline_rows(results)]
    return Table(
        title=f"{results.base}, {results.texts['train']:,} training texts",
        columns=("rank", *named, *PARAMETERS, *(("learning rate",) if rates else ())),
        rows=[_rank_row(row, shown, seeds, rates) for row in rows],
        note=_rank_note(results, seeds),
    )


def _own_rates(run: Run) -> dict[int | None, float]:
    """Rank -> learning rate; empty if all ranks have the same."""
    rates: dict[int | None, float] = dict(run.learning_rates.items())
    return rates if len(set(rates.values())) > 1 else {}


def _rank_row(
    row: ScoreRow, shown: Sequence[str], seeds: int, rates: Mapping[int | None, float]
) -> tuple[str, ...]:
    tried = 0 if row.rank is None else max((len(score.by_seed) for score in row.scores.values()), default=0)
    few = f" ({tried} of {seeds} seeds)" if 0 < tried < seeds else ""
    params = ("", "", "")
    if row.params:
        each = row.params
        params = (f"{each.trainable_params:,}", f"{each.total_params:,}", f"{each.trainable_percent:.4f}")
    cells = [cell for split in shown for cell in _scores(row.scores.get(split), seeds > 1)]
    rate = (f"{rates[row.trained_rank]:g}" if row.trained_rank in rates else "",) if rates else ()
    return (row.name + few, *cells, *params, *rate)


def _scores(score: Score | None, several: bool) -> tuple[str, ...]:
    if score is None:
        return ("",) * (4 if several else 3)
    spread = "" if score.spread is None else f"{100 * score.spread:.2f}"
    return (
        percent(score.accuracy),
        interval(score),
        percent(score.macro_f1),
        *((spread,) if several else ()),
    )


def _rank_note(results: Results, seeds: int) -> str:
    note = (
        "Accuracy and macro-F1 in percent; 95 %: the interval of the accuracy over texts (Wilson), "
        "of each row by itself and not adjusted for the number of rows."
    )
    if seeds > 1:
        note = (
            f"Accuracy and macro-F1 in percent, means over {seeds} seeds; 95 %: the interval of the accuracy "
            "over texts and seeds, of each row by itself and not adjusted for the number of rows; spread: "
            "standard deviation of the accuracy over seeds, in points."
        )
    if results.cuts:
        large, small = results.cuts[0].from_rank, results.cuts[0].rank
        note += f" {large} cut to {small}: trained at rank {large}, then cut to rank {small}."
    dropped = [f"{each.name} diverged at step {each.step:,}" for each in results.diverged]
    if results.task == "multi-label":
        note += " Accuracy: the share of texts whose labels are all right (subset accuracy)."
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


def rank_csv(run: Run) -> str:
    """The rank table as CSV with unrounded fractions: ranks, their adapters, cuts, and baselines."""
    ranks, rates = rank_rows(run), _own_rates(run)
    columns = [*CSV_COLUMNS, *([RATE_COLUMN] if rates else [])]
    columns += [f"{split}_{each}" for split in splits(run.results) for each in SCORE_COLUMNS]
    kinds = [("rank", row) for row in ranks]
    kinds += [("adapter", alone(row, each)) for row in ranks for each in row.adapters]
    kinds += [("cut", row) for row in cut_rows(run)]
    kinds += [("baseline", row) for row in baseline_rows(run.results)]
    rows = [_csv_row(kind, row) | {RATE_COLUMN: rates.get(row.trained_rank)} for kind, row in kinds]
    lines: list[list[Any]] = [columns, *([row.get(name) for name in columns] for row in rows)]
    return "".join(csv_line(cells, safe=True) for cells in lines)


def _csv_row(kind: str, row: ScoreRow) -> dict[str, Any]:
    cells: dict[str, Any] = {"kind": kind, "name": row.name, "rank": row.rank}
    if row.params:
        cells |= {name: getattr(row.params, name) for name in PARAMETER_COLUMNS}
        cells |= {"seed": row.params.seed if kind == "adapter" else None, "seeds": len(row.adapters)}
    if row.kept is not None:
        cells |= {"seeds": len(row.scores["validation"].by_seed), "kept": row.kept}
    for split, score in row.scores.items():
        cells |= {f"{split}_{name}": getattr(score, field) for name, field in SCORE_COLUMNS.items()}
    return cells


def write(folder: RunFolder, run: Run) -> None:
    """Write table.md and table.csv."""
    write_ranks(folder, run)
    files.write_text(folder.path / "table.csv", rank_csv(run))


def write_ranks(folder: RunFolder, run: Run, more: str = "") -> None:
    """Write table.md, with more Markdown at its end."""
    ranks = rank_table(run)
    text = f"{escape(ranks.title)}\n\n{ranks.markdown()}\n{ranks.note}\n"
    files.write_text(folder.table, f"{text}\n{more}" if more else text)


def printable(text: str) -> str:
    r"""Replace characters in untrusted text that control a terminal; newlines are kept.

    >>> ascii(printable("\x1b[2J\n"))
    "'\\ufffd[2J\\n'"
    """
    return _STEERING.sub("\ufffd", text)


def one_line(text: str) -> str:
    """Untrusted text on one line, for a table cell."""
    return printable(" ".join(text.split()))


def escape(cell: str) -> str:
    """Escape Markdown and HTML, and what GitHub turns into links, formulas and images."""
    cell = one_line(cell)
    for sign in "\\`*_{}[]<>#|&~:$@":
        cell = cell.replace(sign, f"\\{sign}")
    return cell.replace("www.", "www\\.")
