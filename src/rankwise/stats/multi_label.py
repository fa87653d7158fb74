"""Metrics and thresholds of a classifier that gives a text any number of labels.

Each label has its own threshold: the text has the label if its probability is at least that. The threshold
with the highest F1 on the validation texts is chosen (Yang 2001, "A study of thresholding strategies for text
categorization"). It suits these texts better than others. So a validation text is judged by thresholds that
were chosen on the other four fifths of the validation texts (cross-fitting), and the metrics on validation
are not optimistic for this reason. Test texts and new ones are judged by the thresholds of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import f1_score, precision_recall_fscore_support

from rankwise.schema import ClassMetrics, Metrics
from rankwise.stats.crossed import Floats
from rankwise.stats.intervals import accuracy_interval

DEFAULT = 0.5
"""Threshold of a label with fewer than `FEWEST` texts that have it, or that lack it."""
FEWEST = 10
FOLDS = 5
"""Parts of the validation texts in cross-fitting."""
Booleans = NDArray[np.bool_]


def best_thresholds(probabilities: Floats, targets: Booleans) -> Floats:
    """(classes,) the threshold of each label with the highest F1; of equal ones, the closest to 0.5.

    A threshold is halfway between two probabilities, so that none lies on it.

    Args:
        probabilities: (texts, classes).
        targets: (texts, classes) whether the text has the label.

    >>> best_thresholds(np.array([[0.1], [0.2], [0.4]] * 10), np.array([[False], [True], [True]] * 10))
    array([0.15])
    """
    found = np.full(targets.shape[1], DEFAULT)
    for label in np.flatnonzero(is_tunable(targets)):
        found[label] = _best_threshold(probabilities[:, label], targets[:, label])
    return found


def is_tunable(targets: Booleans) -> Booleans:
    """(classes,) whether enough texts have each label, and enough lack it, to choose its threshold."""
    positives = targets.sum(axis=0)
    return np.asarray((positives >= FEWEST) & (len(targets) - positives >= FEWEST))


def _best_threshold(probabilities: Floats, has: Booleans) -> float:
    order = np.argsort(-probabilities, kind="stable")
    falling = np.append(probabilities[order], 0.0)
    said = np.arange(1, len(order) + 1)  # texts above the threshold after each text
    f1 = 2 * np.cumsum(has[order]) / (said + has.sum())
    cuts = (falling[:-1] + falling[1:]) / 2
    f1[falling[:-1] == falling[1:]] = -1.0  # no threshold is between equal probabilities
    best = np.flatnonzero(f1 == f1.max())
    return float(min(cuts[best], key=lambda cut: abs(cut - DEFAULT)))


def decide(probabilities: Floats, thresholds: Floats | Sequence[float]) -> Booleans:
    """(..., texts, classes) whether each label is predicted."""
    return np.asarray(probabilities >= np.asarray(thresholds))


def cross_fitted(probabilities: Floats, targets: Booleans) -> Booleans:
    """(texts, classes) predictions, each by thresholds that were chosen on other texts.

    Labels whose thresholds cannot be chosen on all of the texts have the default one.

    Args:
        probabilities: (texts, classes).
        targets: (texts, classes).
    """
    texts, tunable = len(targets), is_tunable(targets)
    fold = np.random.default_rng(0).permutation(texts) % FOLDS
    said = decide(probabilities, np.full(targets.shape[1], DEFAULT))
    for part in range(min(FOLDS, texts)):
        inside = fold == part
        thresholds = best_thresholds(probabilities[~inside], targets[~inside])
        said[inside] = decide(probabilities[inside], np.where(tunable, thresholds, DEFAULT))
    return said


def text_log_losses(targets: Booleans, logits: NDArray[np.float32]) -> Floats:
    """(..., texts) the binary cross-entropy of each text, as a mean over labels, in nats.

    Args:
        targets: (texts, classes).
        logits: (..., texts, classes).
    """
    scores = logits.astype(np.float64)
    return np.asarray((np.logaddexp(0.0, scores) - targets * scores).mean(axis=-1))


def probability_of(probabilities: Floats, labels: Booleans) -> Floats:
    """(...) the probability of a set of labels, (..., classes), as if the labels were independent."""
    return np.asarray(np.where(labels, probabilities, 1.0 - probabilities).prod(axis=-1))


def metrics(
    split: str,
    targets: Booleans,
    predicted: Booleans,
    logits: NDArray[np.float32],
    labels: Sequence[str],
    *,
    thresholds: Sequence[float] | None = None,
    probabilistic: bool = True,
) -> Metrics:
    """The metrics of one classifier on one split.

    Args:
        split: name of the split, stored with the metrics.
        targets: (texts, classes).
        predicted: (texts, classes).
        logits: (texts, classes).
        labels: names in the model's order.
        thresholds: (classes,) stored with the metrics of each label.
        probabilistic: False if the logits are scores that do not define probabilities.

    Returns:
        The metrics. Accuracy is the share of texts whose labels are all right (subset accuracy). Macro-F1 is
        the mean over the labels with texts or predictions in the split.
    """
    scores = precision_recall_fscore_support(targets, predicted, zero_division=0.0)
    precision, recall, f1, support = (np.asarray(score) for score in scores)
    right = int((predicted == targets).all(axis=1).sum())
    low, high = accuracy_interval(right, len(targets))
    counted = (targets | predicted).any(axis=0)
    return Metrics(
        split=split,
        texts=len(targets),
        accuracy=right / len(targets),
        accuracy_low=low,
        accuracy_high=high,
        macro_f1=float(f1[counted].mean()) if counted.any() else 0.0,
        micro_f1=float(f1_score(targets, predicted, average="micro", zero_division=0.0)),
        log_loss=float(text_log_losses(targets, logits).mean()) if probabilistic else None,
        ece=None,
        reliability=[],
        classes=[
            ClassMetrics(
                label=label,
                precision=precision[i],
                recall=recall[i],
                f1=f1[i],
                texts=support[i],
                threshold=None if thresholds is None else thresholds[i],
            )
            for i, label in enumerate(labels)
        ],
        confusion=[],
    )


def sigmoid(logits: NDArray[np.float32]) -> Floats:
    """The probability of each label, in float64."""
    return np.asarray(expit(logits.astype(np.float64)))


def macro_f1_step(targets: Booleans) -> float:
    """`stats.paired.macro_f1_step` for texts with any number of labels.

    A wrong label for one of n texts that have it lowers its F1 by 1 / (2 n). A text may lose the rarest label
    and gain an average one.

    Args:
        targets: (texts, classes); every class has texts.
    """
    counts = targets.sum(axis=0)
    return float(len(targets) / len(counts) * (1 / counts.min() + 1 / counts.mean()) / 2)
