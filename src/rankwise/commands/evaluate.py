"""The `evaluate` command: from predictions to metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.commands.predict import Classifier, cut_note, texts_cut
from rankwise.data import load as data
from rankwise.schema import Metrics
from rankwise.stats.metrics import metrics


def evaluate(
    adapter: Path | str,
    path: Path | str,
    *,
    columns: dict[str, Any] | None = None,
    on_note: Callable[[str], None] = lambda note: None,
    **load: Any,
) -> Metrics:
    """Compute an adapter's metrics on a file of labeled texts.

    Args:
        adapter: folder of the adapter.
        path: the file.
        columns: `text_column` and `label_column`, if they cannot be detected.
        on_note: called with notes on what was read, and how much of it was used.
        load: passed on to `Classifier.load`.

    Raises:
        DataError: the file cannot be used, or contains a label that the adapter does not know.
        ModelError: the adapter cannot be used.
    """
    classifier = Classifier.load(adapter, **load)
    notes: list[str] = []
    split = data.read_labeled(Path(path), classifier.labels, notes=notes, **(columns or {}))
    for note in [*notes, *cut_note(classifier, texts_cut(classifier, split.texts), len(split))]:
        on_note(note)
    return metrics(Path(path).name, np.array(split.labels), classifier.logits(split.texts), classifier.labels)
