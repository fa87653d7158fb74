"""The `evaluate` command: from predictions to metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rankwise.commands.predict import Classifier
from rankwise.data import load as data
from rankwise.paths import expanded
from rankwise.schema import Metrics
from rankwise.stats.metrics import metrics


def evaluate(
    adapter: Path | str, path: Path | str, *, columns: dict[str, Any] | None = None, **load: Any
) -> Metrics:
    """Compute an adapter's metrics on a file of labeled texts.

    Args:
        adapter: folder of the adapter.
        path: the file.
        columns: `text_column` and `label_column`, if they cannot be detected.
        load: passed on to `Classifier.load`.

    Raises:
        DataError: the file cannot be used, or contains a label that the adapter does not know.
        ModelError: the adapter cannot be used.
    """
    classifier = Classifier.load(adapter, **load)
    path = expanded(path)
    split = data.read_labeled(path, classifier.labels, **(columns or {}))
    return metrics(path.name, np.array(split.labels), classifier.logits(split.texts), classifier.labels)
