"""Metrics of a classifier's logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.metrics import log_loss, precision_recall_fscore_support

from rankwise.schema import Abstaining, Bin, ClassMetrics, Metrics
from rankwise.stats.intervals import accuracy_interval

BINS = 15
"""Bins of equal width for the calibration error, as is usual."""
MOST_DENSE = 100
"""Maximum number of classes for a confusion matrix with its zeros."""


def metrics(
    split: str,
    targets: NDArray[np.int64],
    logits: NDArray[np.float32],
    labels: Sequence[str],
    *,
    probabilistic: bool = True,
) -> Metrics:
    """The metrics of one classifier on one split.

    Args:
        split: name of the split, stored with the metrics.
        targets: (texts,) label ids.
        logits: (texts, classes).
        labels: names in the model's order.
        probabilistic: False if the logits are scores that do not define probabilities.

    Returns:
        The metrics. Macro-F1 is the mean over the classes with texts or predictions in the split.
    """
    predicted = logits.argmax(axis=1)
    ids = range(len(labels))
    scores = precision_recall_fscore_support(targets, predicted, labels=ids, zero_division=0.0)
    precision, recall, f1, support = (np.asarray(score) for score in scores)
    right = int((predicted == targets).sum())
    low, high = accuracy_interval(right, len(targets))
    cells = confusion_cells(targets, predicted)
    is_dense = len(labels) <= MOST_DENSE
    probabilities = softmax(logits.astype(np.float64), axis=-1) if probabilistic else None
    bins = [] if probabilities is None else reliability(targets, probabilities)
    return Metrics(
        split=split,
        texts=len(targets),
        accuracy=right / len(targets),
        accuracy_low=low,
        accuracy_high=high,
        macro_f1=float(f1[np.union1d(targets, predicted)].mean()),
        log_loss=None if probabilities is None else float(log_loss(targets, probabilities, labels=ids)),
        ece=None if probabilities is None else calibration_error(bins),
        reliability=bins,
        classes=[
            ClassMetrics(
                label=labels[i], precision=precision[i], recall=recall[i], f1=f1[i], texts=support[i]
            )
            for i in ids
        ],
        confusion=confusion_matrix(cells, len(labels)).tolist() if is_dense else [],
        confusion_cells=[] if is_dense else cells,
    )


def abstaining(targets: NDArray[np.int64], probabilities: NDArray[np.float64], below: float) -> Abstaining:
    """Coverage and accuracy of a classifier that gives no label if its probability is below a threshold.

    Args:
        targets: (texts,) label ids.
        probabilities: (texts, classes).
        below: the threshold.
    """
    given = probabilities.max(axis=1) >= below
    answered, right = int(given.sum()), int((probabilities.argmax(axis=1) == targets)[given].sum())
    low, high = accuracy_interval(right, answered) if answered else (None, None)
    return Abstaining(
        below=below,
        answered=answered,
        coverage=answered / len(targets),
        accuracy=right / answered if answered else None,
        accuracy_low=low,
        accuracy_high=high,
    )


def confusion_cells(targets: NDArray[np.int64], predicted: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """The non-zero cells of a confusion matrix: true label, predicted label, texts; in that order.

    Args:
        targets: (texts,) label ids.
        predicted: (texts,) label ids.

    >>> confusion_cells(np.array([0, 2, 2, 2]), np.array([0, 1, 1, 2]))
    [(0, 0, 1), (2, 1, 2), (2, 2, 1)]
    """
    pairs, counts = np.unique(np.stack([targets, predicted], axis=1), axis=0, return_counts=True)
    return [(int(true), int(found), int(n)) for (true, found), n in zip(pairs, counts, strict=True)]


def confusion_matrix(cells: Sequence[tuple[int, int, int]], classes: int) -> NDArray[np.int64]:
    """(classes, classes) the matrix with these cells, which are summed if one is given twice."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    for true, predicted, texts in cells:
        matrix[true, predicted] += texts
    return matrix


def text_log_losses(
    targets: NDArray[np.int64], logits: NDArray[np.float32] | NDArray[np.float64]
) -> NDArray[np.float64]:
    """The log loss of each text: minus the natural logarithm of its label's probability, in nats.

    The mean is scikit-learn's `log_loss`, which treats a probability below 2.2e-16 as 2.2e-16.

    Args:
        targets: (texts,) label ids.
        logits: (..., texts, classes).

    Returns:
        (..., texts).
    """
    probabilities = softmax(logits.astype(np.float64), axis=-1)
    of_label = probabilities[..., np.arange(len(targets)), targets]
    return np.asarray(-np.log(np.maximum(of_label, np.finfo(np.float64).eps)))


def bin_of(confidence: NDArray[np.float64], bins: int = BINS) -> NDArray[np.int64]:
    """The bin of each confidence, from 0; bins have equal width and are closed on the right."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def reliability(
    targets: NDArray[np.int64], probabilities: NDArray[np.float64], bins: int = BINS
) -> list[Bin]:
    """The reliability diagram (Guo et al. 2017, arXiv 1706.04599): predictions binned by confidence.

    Args:
        targets: (texts,) label ids.
        probabilities: (texts, classes).
        bins: number of bins of equal width, closed on the right; empty bins are omitted.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    place = bin_of(confidence, bins)  # (texts,)
    return [
        Bin(
            low=i / bins,
            high=(i + 1) / bins,
            texts=int(inside.sum()),
            confidence=float(confidence[inside].mean()),
            accuracy=float(right[inside].mean()),
        )
        for i in range(bins)
        if (inside := place == i).any()
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: the mean of |accuracy - confidence|, weighted by the bins' texts.

    >>> calibration_error([Bin(low=0.8, high=0.9, texts=10, confidence=0.85, accuracy=0.75)])
    0.1
    """
    texts = sum(b.texts for b in bins)
    return round(sum(b.texts * abs(b.accuracy - b.confidence) for b in bins) / texts, 12)
