"""The rank table and the sample table, as rows and as Markdown."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass

from rankwise.errors import UsageError
from rankwise.store import files
from rankwise.store.run import AdapterResult, Results, RunFolder

RANK_COLUMNS = ("rank", "trainable params", "total params", "% trainable")
SAMPLE_COLUMNS = ("text", "label", "emotion", "predicted label", "predicted emotion")


@dataclass(frozen=True)
class Table:
    """Cells as people read them."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        """As a Markdown table. Text from the data cannot become markup."""
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        return "".join(f"| {' | '.join(_escape(cell) for cell in line)} |\n" for line in lines)


def rank_table(results: Results) -> Table:
    """One row an adapter: rank, parameters, and accuracy with its 95 % interval over texts."""
    tested = any(row.test for row in results.adapters)
    seeded = len({row.seed for row in results.adapters}) > 1
    columns = (
        *(("seed",) if seeded else ()),
        *RANK_COLUMNS,
        "validation accuracy",
        "validation macro-F1",
        *(("test accuracy", "test macro-F1") if tested else ()),
    )
    rows = [_rank_row(row, tested, seeded) for row in results.adapters]
    return Table(f"{results.base}, {results.texts['train']:,} training texts", columns, rows)


def _rank_row(row: AdapterResult, tested: bool, seeded: bool) -> tuple[str, ...]:
    splits = [row.validation, row.test] if tested else [row.validation]
    scores = [
        cell for split in splits if split for cell in (_accuracy(split), f"{100 * split['macro_f1']:.2f}")
    ]
    return (
        *((str(row.seed),) if seeded else ()),
        str(row.rank),
        f"{row.trainable_params:,}",
        f"{row.total_params:,}",
        f"{row.trainable_percent:.4f}",
        *scores,
    )


def _accuracy(split: dict[str, float]) -> str:
    low, high = 100 * split["accuracy_low"], 100 * split["accuracy_high"]
    return f"{100 * split['accuracy']:.2f} ({low:.1f} to {high:.1f})"


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
    with run.predictions.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    split = "test" if "test" in results.texts else "validation"
    rows = []
    for label, name in enumerate(results.labels):
        mine = [line for line in lines if line["split"] == split and line["label"] == name]
        for line in random.Random(f"{seed} {name}").sample(mine, min(per_class, len(mine))):
            predicted = line[adapter]
            rows.append((line["text"], str(label), name, str(results.labels.index(predicted)), predicted))
    return Table(f"{split} texts, predicted by {adapter}", SAMPLE_COLUMNS, rows)


def write(run: RunFolder) -> None:
    """Write table.md and samples.md."""
    ranks, samples = rank_table(run.read_results()), sample_table(run)
    note = "Accuracy and macro-F1 in percent; in brackets the 95 % interval over texts (Wilson)."
    files.write_text(run.table, f"{ranks.title}\n\n{ranks.markdown()}\n{note}\n")
    files.write_text(run.samples, f"{samples.title}\n\n{samples.markdown()}")


def _escape(cell: str) -> str:
    """Markdown and HTML signs made plain."""
    for sign in "\\`*_{}[]<>#|&~":
        cell = cell.replace(sign, f"\\{sign}")
    return " ".join(cell.split())
