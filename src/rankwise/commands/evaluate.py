"""Stage 4: predictions -> metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rankwise.commands.predict import Classifier
from rankwise.data import load as data
from rankwise.schema import Metrics
from rankwise.stats.metrics import metrics


def evaluate(
    adapter: Path | str, path: Path | str, *, columns: dict[str, Any] | None = None, **load: Any
) -> Metrics:
    """The metrics of an adapter on a file of labeled texts.

    Args:
        adapter: its folder.
        path: the file.
        columns: `text_column` and `label_column`, where they are not found by themselves.
        load: passed on to `Classifier.load`.

    Raises:
        DataError: the file cannot be used, or holds a label that the adapter does not know.
        ModelError: the adapter cannot be used.
    """
    classifier = Classifier.load(adapter, **load)
    split = data.read_labeled(Path(path), classifier.labels, **(columns or {}))
    return metrics(Path(path).name, np.array(split.labels), classifier.logits(split.texts), classifier.labels)
