"""Texts on which an exported adapter is compared with the adapter itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from rankwise.commands.classifier import Classifier
from rankwise.commands.known_texts import Sample, counted, of_run
from rankwise.commands.predict import wanted_by
from rankwise.data.columns import Wanted
from rankwise.data.load import read_labeled
from rankwise.data.unlabeled import text_rows
from rankwise.errors import DataError
from rankwise.in_memory import InMemory
from rankwise.paths import expanded

LEAST = 200
"""Number of texts that a comparison needs, and labeled texts that an accuracy needs."""
MOST = 1000
"""Number of texts that it uses of a longer file or split, spread evenly."""


def sample(
    adapter: Path,
    data: Any,
    classifier: Classifier,
    *,
    columns: Mapping[str, Any],
    on_note: Callable[[str], None],
) -> Sample:
    """The texts that are given; else the validation texts of the adapter's run; else the starter texts.

    If there are fewer than 200, starter texts are added, in pairs for an adapter of pairs.

    Args:
        adapter: folder of the adapter.
        data: a file, with labels or without; data in memory; or None.
        classifier: the adapter, loaded.
        columns: `text_column` or `text_columns`, and `label_column`, if they cannot be detected.
        on_note: called with notes on what was read.

    Raises:
        DataError: the data cannot be used.
        UsageError: this is neither a path nor data in memory, or the columns do not suit the adapter.
    """
    if data is None:
        found = of_run(adapter, classifier.labels)
    else:
        found = _given(data, classifier, wanted_by(classifier, columns), on_note)
    return counted(found, LEAST, MOST, pairs=bool(classifier.text_columns))


def _given(data: Any, classifier: Classifier, wanted: Wanted, on_note: Callable[[str], None]) -> Sample:
    if not isinstance(data, str | PathLike):
        return _labeled(InMemory(data), "data in memory", classifier, wanted, on_note)
    path = expanded(os.fspath(data))
    try:
        return _labeled(path, path.name, classifier, wanted, on_note)
    except DataError as error:
        if wanted.label:
            raise
        rows = text_rows(
            path,
            text_column=wanted.text,
            pair=wanted.pair,
            labels=classifier.labels,
            separator=classifier.task.separator,
        )
        texts = [row[rows.column] for batch in rows.batches() for row in batch]
        on_note(f"no labels are used: {error.message}")
        return Sample(texts, None, f"texts of {path.name}")


def _labeled(
    source: Path | InMemory,
    name: str,
    classifier: Classifier,
    wanted: Wanted,
    on_note: Callable[[str], None],
) -> Sample:
    notes: list[str] = []
    split = read_labeled(source, classifier.labels, wanted=wanted, notes=notes)
    for note in notes:
        on_note(note)
    targets = classifier.task.targets(split.labels, len(classifier.labels))
    return Sample(list(split.texts), targets, f"texts of {name}")
