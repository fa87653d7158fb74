"""predictions.csv, read back: what every adapter answered to every evaluated text."""

from __future__ import annotations

import csv
from collections.abc import Sequence

import numpy as np

from rankwise.errors import UsageError
from rankwise.stats.intervals import Answers
from rankwise.store.run import Results, RunFolder

Line = dict[str, str]
"""`split`, `text`, `label`; for each adapter its label under its name, and `NAME probability`."""


def read_predictions(run: RunFolder, adapters: Sequence[str]) -> list[Line]:
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


def answers_by_rank(lines: Sequence[Line], results: Results, split: str) -> dict[int, Answers]:
    """Rank -> (seeds, texts) whether a split's text was answered rightly; seeds in order."""
    asked = [line for line in lines if line["split"] == split]
    found: dict[int, Answers] = {}
    for rank in sorted({row.rank for row in results.adapters}):
        names = [row.name for row in sorted(results.adapters, key=lambda row: row.seed) if row.rank == rank]
        found[rank] = np.array([[line[name] == line["label"] for line in asked] for name in names])
    return found
