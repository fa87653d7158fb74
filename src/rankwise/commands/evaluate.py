"""The `evaluate` command: from predictions to metrics."""

from __future__ import annotations

import os
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.commands.arguments import require_abstaining, require_probability
from rankwise.commands.classifier import Classifier
from rankwise.commands.predict import Counts, count_notes, wanted_by
from rankwise.data.load import read_labeled
from rankwise.in_memory import InMemory
from rankwise.paths import expanded
from rankwise.schema import Metrics
from rankwise.stats.metrics import abstaining


def evaluate(
    adapter: Classifier | PathLike[str] | str,
    data: Any,
    *,
    columns: dict[str, Any] | None = None,
    abstain_below: float | None = None,
    on_note: Callable[[str], None] | None = None,
    **load: Any,
) -> Metrics:
    """Compute an adapter's metrics on labeled texts, with its temperature.

    Args:
        adapter: a classifier, or the folder of an adapter.
        data: a file of labeled texts, or data in memory: a DataFrame, a Dataset, a pair
            (texts, labels), or a mapping of columns.
        columns: `text_column` or `text_columns`, and `label_column`, if they cannot be detected.
        abstain_below: also measure the labels that have at least this probability.
        on_note: called with notes on the adapter, on what was read, and how much of it was used.
        load: passed on to `Classifier.load`, such as `windows`.

    Raises:
        DataError: the data cannot be used, or contains a label that the adapter does not know.
        ModelError: the adapter cannot be used.
        UsageError: this is neither a path nor data in memory, or abstain_below is not a probability or the
            classifier is multi-label.
    """
    if abstain_below is not None:
        require_probability(abstain_below)
    classifier = adapter
    if not isinstance(classifier, Classifier):
        classifier = Classifier.load(classifier, on_note=on_note, **load)
    if abstain_below is not None:
        require_abstaining(classifier.task, abstain_below)
    source = expanded(os.fspath(data)) if isinstance(data, str | PathLike) else InMemory(data)
    notes: list[str] = []
    wanted = wanted_by(classifier, columns or {})
    split = read_labeled(source, classifier.labels, wanted=wanted, notes=notes)
    texts = classifier.encoded(split.texts)
    counts = Counts(len(split), long=classifier.long_texts(texts))
    in_windows = classifier.window_stride is not None
    for note in [*notes, *count_notes(counts, classifier.max_length, in_windows)]:
        if on_note:
            on_note(note)
    name = source.name if isinstance(source, Path) else split.name
    task, labels, logits = classifier.task, classifier.labels, classifier.logits(texts)
    targets, calibrated = task.targets(split.labels, len(labels)), logits / np.float32(classifier.temperature)
    found = task.metrics(name, targets, calibrated, labels, task.decided(logits, classifier.thresholds))
    if abstain_below is None:
        return found
    part = abstaining(targets, classifier.probabilities(logits), abstain_below)
    return found.model_copy(update={"abstaining": part})
