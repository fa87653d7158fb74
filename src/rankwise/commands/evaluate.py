"""The `evaluate` command: from predictions to metrics."""

from __future__ import annotations

import os
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

from rankwise.commands.predict import Classifier, cut_note, pair_columns
from rankwise.data.columns import Wanted
from rankwise.data.load import read_labeled
from rankwise.data.pairs import joined_name
from rankwise.in_memory import InMemory
from rankwise.paths import expanded
from rankwise.schema import Metrics


def evaluate(
    adapter: Classifier | PathLike[str] | str,
    data: Any,
    *,
    columns: dict[str, Any] | None = None,
    on_note: Callable[[str], None] | None = None,
    **load: Any,
) -> Metrics:
    """Compute an adapter's metrics on labeled texts.

    Args:
        adapter: a classifier, or the folder of an adapter.
        data: a file of labeled texts, or data in memory: a DataFrame, a Dataset, a pair
            (texts, labels), or a mapping of columns.
        columns: `text_column` or `text_columns`, and `label_column`, if they cannot be detected.
        on_note: called with notes on the adapter, on what was read, and how much of it was used.
        load: passed on to `Classifier.load`.

    Raises:
        DataError: the data cannot be used, or contains a label that the adapter does not know.
        ModelError: the adapter cannot be used.
        UsageError: this is neither a path nor data in memory.
    """
    classifier = adapter
    if not isinstance(classifier, Classifier):
        classifier = Classifier.load(classifier, on_note=on_note, **load)
    source = expanded(os.fspath(data)) if isinstance(data, str | PathLike) else InMemory(data)
    notes: list[str] = []
    named = columns or {}
    pair = pair_columns(classifier, named.get("text_column"), named.get("text_columns"))
    text = joined_name(pair) if pair else named.get("text_column")
    wanted = Wanted(text, named.get("label_column"), classifier.task, pair)
    split = read_labeled(source, classifier.labels, wanted=wanted, notes=notes)
    for note in [*notes, *cut_note(classifier, classifier.truncated(split.texts), len(split))]:
        if on_note:
            on_note(note)
    name = source.name if isinstance(source, Path) else split.name
    task, labels, logits = classifier.task, classifier.labels, classifier.logits(split.texts)
    targets = task.targets(split.labels, len(labels))
    return task.metrics(name, targets, logits, labels, task.decided(logits, classifier.thresholds))
