"""The published table, and a run of the same recipe beside it."""

from __future__ import annotations

from rankwise.report.tables import Table
from rankwise.schema import AdapterResult, Results

PUBLISHED = {1: 91.45, 2: 91.30, 4: 91.70, 8: 91.50, 16: 91.40}
"""Rank -> validation accuracy in percent, of one run of GPT-2 on dair-ai/emotion."""
TOLERANCE = 1.2
"""Points: the half-width of one run's 95 % interval over 2,000 texts."""


def compare(results: Results) -> Table:
    """Our row beside the published one, for every published rank."""
    rows = []
    for row in results.adapters:
        if row.rank in PUBLISHED:
            cells = (f"{PUBLISHED[row.rank]:.2f}", f"{_accuracy(row):.2f}", f"{_difference(row):+.2f}")
            rows.append((str(row.rank), *cells, "pass" if _passes(row) else "fail"))
    columns = ("rank", "published accuracy", "accuracy", "difference", f"within {TOLERANCE} points")
    return Table(f"{results.base}, validation accuracy in percent", columns, rows)


def passed(results: Results) -> bool:
    """Whether every published rank was run and lies within the tolerance of its row, on either side."""
    ours = {row.rank: row for row in results.adapters}
    return all(rank in ours and _passes(ours[rank]) for rank in PUBLISHED)


def _accuracy(row: AdapterResult) -> float:
    return 100 * float(row.validation.accuracy)


def _difference(row: AdapterResult) -> float:
    return _accuracy(row) - PUBLISHED[row.rank]


def _passes(row: AdapterResult) -> bool:
    # Both are multiples of 0.05; the slack keeps a difference of just 1.2 from failing by rounding.
    return abs(_difference(row)) <= TOLERANCE + 1e-9
