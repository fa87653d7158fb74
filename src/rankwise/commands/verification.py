"""Texts on which an exported adapter is compared with the adapter itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankwise.data.load import load as load_data
from rankwise.data.load import read_labeled
from rankwise.data.unlabeled import text_rows
from rankwise.errors import DataError, RankwiseError
from rankwise.in_memory import InMemory
from rankwise.paths import expanded
from rankwise.recipe import Recipe
from rankwise.store.run_folder import RunFolder

LEAST = 200
"""Number of texts that a comparison needs, and labeled texts that an accuracy needs."""
MOST = 1000
"""Number of texts that it uses of a longer file or split, spread evenly."""


@dataclass(frozen=True)
class Sample:
    """Texts to compare an export on."""

    texts: list[str]
    targets: NDArray[np.int64] | None  # label of each text; None if they are not known
    origin: str  # such as "1,000 validation texts of runs/first"


def sample(
    adapter: Path,
    data: Any,
    labels: Sequence[str],
    *,
    columns: dict[str, Any],
    on_note: Callable[[str], None],
) -> Sample:
    """The texts that are given; else the validation texts of the adapter's run; else the starter texts.

    If there are fewer than 200, starter texts are added.

    Args:
        adapter: folder of the adapter.
        data: a file, with labels or without; data in memory; or None.
        labels: the adapter's labels, in order.
        columns: `text_column` and `label_column`, if they cannot be detected.
        on_note: called with notes on what was read.

    Raises:
        DataError: the data cannot be used.
        UsageError: this is neither a path nor data in memory.
    """
    if data is None:
        found = _of_run(adapter, labels) or Sample([], None, "")
    else:
        found = _given(data, labels, columns, on_note)
    return _enough(_spread(found))


def _given(
    data: Any, labels: Sequence[str], columns: dict[str, Any], on_note: Callable[[str], None]
) -> Sample:
    if not isinstance(data, str | PathLike):
        return _labeled(InMemory(data), "data in memory", labels, columns, on_note)
    path = expanded(os.fspath(data))
    try:
        return _labeled(path, path.name, labels, columns, on_note)
    except DataError as error:
        if columns.get("label_column"):
            raise
        rows = text_rows(path, text_column=columns.get("text_column"), labels=labels)
        texts = [row[rows.column] for batch in rows.batches() for row in batch]
        on_note(f"no labels are used: {error.message}")
        return Sample(texts, None, f"texts of {path.name}")


def _labeled(
    source: Path | InMemory,
    name: str,
    labels: Sequence[str],
    columns: dict[str, Any],
    on_note: Callable[[str], None],
) -> Sample:
    notes: list[str] = []
    split = read_labeled(source, tuple(labels), notes=notes, **columns)
    for note in notes:
        on_note(note)
    return Sample(list(split.texts), np.array(split.labels), f"texts of {name}")


def _of_run(adapter: Path, labels: Sequence[str]) -> Sample | None:
    """The validation texts of the run that an adapter is in; None if it is in none that can be read."""
    from rankwise.report.run import load

    run = RunFolder(adapter.absolute().parent.parent)
    if adapter.absolute().parent != run.adapters.absolute() or not run.results.exists():
        return None
    try:
        finished = load(run)
    except RankwiseError:  # the run's own files are of no concern to an adapter
        return None
    found = finished.predictions["validation"]
    targets = found.targets if finished.results.labels == list(labels) else None
    return Sample(list(found.texts), targets, f"validation texts of {run.path.name}")


def _spread(found: Sample) -> Sample:
    """At most `MOST` texts, evenly spread."""
    if len(found.texts) <= MOST:
        return found
    chosen = np.linspace(0, len(found.texts) - 1, MOST).round().astype(int)
    targets = None if found.targets is None else found.targets[chosen]
    return Sample([found.texts[i] for i in chosen], targets, found.origin)


def _enough(found: Sample) -> Sample:
    """The texts with their number; if there are too few, starter texts are added, and no labels are used."""
    has, origin = len(found.texts), f"{len(found.texts):,} {found.origin}"
    if has >= LEAST:
        return Sample(found.texts, found.targets, origin)
    added = list(load_data(Recipe()).train.texts[: LEAST - has])
    starter = f"{len(added):,} starter texts"
    return Sample([*found.texts, *added], None, f"{origin} and {starter}" if has else starter)
