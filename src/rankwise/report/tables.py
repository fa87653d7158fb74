"""The rank table and the sample table, as rows and as Markdown."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankwise.data.writers import csv_line
from rankwise.errors import UsageError
from rankwise.report.run import Run
from rankwise.report.scores import (
    Score,
    ScoreRow,
    alone,
    baseline_rows,
    best_adapter,
    cut_rows,
    rank_rows,
    splits,
)
from rankwise.schema import ClassMetrics, Results
from rankwise.store import files
from rankwise.store.run_folder import RunFolder

RANK_COLUMNS = ("rank", "trainable params", "total params", "% trainable")
SAMPLE_COLUMNS = ("text", "label", "predicted label", "probability")
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


def class_figures(title: str, classes: Sequence[ClassMetrics]) -> Table:
    """A row for each class: precision, recall and F1 in percent, and its number of texts."""
    rows = [
        (each.label, percent(each.precision), percent(each.recall), percent(each.f1), f"{each.texts:,}")
        for each in classes
    ]
    return Table(title, ("label", "precision", "recall", "F1", "texts"), rows)


def rank_table(run: Run) -> Table:
    """One row per rank, per cut, then per baseline: parameters, accuracy with its interval, macro-F1.

    With several seeds, accuracy and macro-F1 are means over them. If the ranks were trained at different
    learning rates, there is a column for them.
    """
    results, seeds, shown, rates = run.results, run.seeds, splits(run.results), _own_rates(run)
    scores = ("accuracy", *(("spread",) if seeds > 1 else ()), "95 %", "macro-F1")
    named = [f"{split} {each}" if each[0] in "am" else each for split in shown for each in scores]
    finished = {row.rank for row in results.adapters}
    lost = sorted({each.rank for each in results.diverged} - finished)
    dropped = [ScoreRow(f"{rank} (dropped)", rank, (), {}) for rank in lost]
    ranks = sorted([*rank_rows(run), *dropped], key=lambda row: row.rank or 0)
    rows = [*ranks, *cut_rows(run), *baseline_rows(results)]
    return Table(
        title=f"{results.base}, {results.texts['train']:,} training texts",
        columns=(*RANK_COLUMNS, *(("learning rate",) if rates else ()), *named),
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
    if rates:
        cells.insert(0, f"{rates[row.trained_rank]:g}" if row.trained_rank in rates else "")
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
    if results.cuts:
        large, small = results.cuts[0].from_rank, results.cuts[0].rank
        note += f" {large} cut to {small}: trained at rank {large}, then cut to rank {small}."
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


def sample_table(run: Run, *, adapter: str | None = None, seed: int = 110, per_class: int = 2) -> Table:
    """Randomly sampled texts of each class, with an adapter's predictions.

    Args:
        run: a finished run. Test texts are used, or validation texts if there is no test split.
        adapter: by default the one with the best validation accuracy; ties go to the smallest rank.
        seed: random seed of the sample.
        per_class: number of texts per class.

    Raises:
        UsageError: the run has no such adapter.
    """
    names = [row.name for row in run.results.adapters]
    adapter = best_adapter(run.results.adapters).name if adapter is None else adapter
    if adapter not in names:
        raise UsageError(f"{run.path}: no adapter {adapter}", hint=f"it has {', '.join(names)}")
    split, number = "test" if "test" in run.predictions else "validation", names.index(adapter)
    labels, found = run.results.labels, run.predictions[split]
    rows = [
        (
            found.texts[text],
            label,
            labels[found.predicted[number, text]],
            f"{found.probability[number, text]:.3f}",
        )
        for target, label in enumerate(labels)
        for text in _draw(np.flatnonzero(found.targets == target).tolist(), per_class, f"{seed} {label}")
    ]
    return Table(f"{split} texts, predicted by {adapter}", SAMPLE_COLUMNS, rows)


def _draw(texts: Sequence[int], most: int, seed: str) -> list[int]:
    return random.Random(seed).sample(texts, min(most, len(texts)))


def write(folder: RunFolder, run: Run) -> None:
    """Write table.md, table.csv and samples.md."""
    samples = sample_table(run)
    write_ranks(folder, run)
    files.write_text(folder.path / "table.csv", rank_csv(run))
    files.write_text(folder.samples, f"{escape(samples.title)}\n\n{samples.markdown()}")


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
