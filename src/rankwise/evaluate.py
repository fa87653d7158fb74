"""Stage 4: predictions -> metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support

from rankwise import data
from rankwise.predict import Classifier, softmax
from rankwise.stats import accuracy_interval


class ClassMetrics(BaseModel):
    """How one class fares; fractions from 0 to 1."""

    label: str
    precision: float
    recall: float
    f1: float
    texts: int


class Metrics(BaseModel):
    """How an adapter fares on one split; fractions from 0 to 1."""

    split: str
    texts: int
    accuracy: float
    accuracy_low: float  # 95 % interval over texts
    accuracy_high: float
    macro_f1: float
    log_loss: float  # nats a text
    classes: list[ClassMetrics]
    confusion: list[list[int]]  # true label down, predicted label across


def metrics(
    split: str, targets: NDArray[np.int64], logits: NDArray[np.float32], labels: Sequence[str]
) -> Metrics:
    """The metrics of one adapter on one split.

    Args:
        split: its name, which every figure carries.
        targets: (texts,) label ids.
        logits: (texts, classes).
        labels: names in the model's order.

    Returns:
        macro-F1 is the mean over the classes that have texts or predictions in the split.
    """
    predicted = logits.argmax(axis=1)
    ids = range(len(labels))
    scores = precision_recall_fscore_support(targets, predicted, labels=ids, zero_division=0.0)
    precision, recall, f1, support = (np.asarray(score) for score in scores)
    right = int((predicted == targets).sum())
    low, high = accuracy_interval(right, len(targets))
    return Metrics(
        split=split,
        texts=len(targets),
        accuracy=right / len(targets),
        accuracy_low=low,
        accuracy_high=high,
        macro_f1=float(f1[np.union1d(targets, predicted)].mean()),
        log_loss=float(log_loss(targets, softmax(logits), labels=ids)),
        classes=[
            ClassMetrics(
                label=labels[i], precision=precision[i], recall=recall[i], f1=f1[i], texts=support[i]
            )
            for i in ids
        ],
        confusion=confusion_matrix(targets, predicted, labels=ids).tolist(),
    )


def evaluate(
    adapter: Path | str, path: Path | str, *, columns: dict[str, Any] | None = None, **load: Any
) -> Metrics:
    """The metrics of an adapter on a file of labelled texts.

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
    split = data.read_labelled(Path(path), classifier.labels, **(columns or {}))
    return metrics(Path(path).name, np.array(split.labels), classifier.logits(split.texts), classifier.labels)
