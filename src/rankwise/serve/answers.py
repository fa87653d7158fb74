"""Logits -> the responses of the API."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rankwise.serve.lineup import Group
from rankwise.serve.messages import Answer, LabelProbability, Prediction, TeiScore
from rankwise.serve.queue import Logits

Probabilities = NDArray[np.float64]


def mean_probabilities(group: Group, logits: Sequence[Logits]) -> Probabilities:
    """(texts, classes) probabilities of a group, averaged over its adapters, each at its own temperature.

    Args:
        group: an adapter, or a rank.
        logits: for each of its adapters (texts, classes).
    """
    temperatures = [each.saved.temperature or 1.0 for each in group.members]
    pairs = zip(logits, temperatures, strict=True)
    calibrated = [each.astype(np.float64) / temperature for each, temperature in pairs]
    found = [group.task.probabilities(each) for each in calibrated]
    return np.asarray(np.mean(found, axis=0)) if len(found) > 1 else found[0]


def predictions(
    groups: Sequence[Group],
    probabilities: Sequence[Probabilities],
    *,
    top_k: int | None = None,
    listed: bool = True,
    abstain_below: float | None = None,
) -> list[Prediction]:
    """A prediction for each text, with an answer of each group.

    Args:
        groups: adapters, or ranks.
        probabilities: for each group (texts, classes).
        top_k: number of labels to list; None for all.
        listed: whether to list labels at all.
        abstain_below: an answer whose best label has a lower probability gives no label.
            A multi-label adapter gives its labels, and this does not apply.
    """
    columns = [
        _answers(group, found, top_k if listed else 0, abstain_below or 0.0)
        for group, found in zip(groups, probabilities, strict=True)
    ]
    return [Prediction.model_construct(answers=list(row)) for row in zip(*columns, strict=True)]


def _answers(group: Group, found: Probabilities, top_k: int | None, least: float) -> list[Answer]:
    return [_answer(group, row, top_k, least) for row in found]


def _answer(group: Group, row: NDArray[np.float64], top_k: int | None, least: float) -> Answer:
    best = int(row.argmax())
    ranked = np.argsort(-row, kind="stable")[:top_k].tolist() if top_k != 0 else []
    listed = [
        LabelProbability.model_construct(label=group.labels[i], probability=float(row[i])) for i in ranked
    ]
    labels = None
    if (thresholds := group.thresholds) is not None:
        labels = [label for label, p, least in zip(group.labels, row, thresholds, strict=True) if p >= least]
    return Answer.model_construct(
        adapter=group.name,
        label=group.labels[best] if labels is None and row[best] >= least else None,
        labels=labels,
        probability=float(row[best]),
        probabilities=None if top_k == 0 else listed,
    )


def tei_scores(labels: Sequence[str], scores: NDArray[np.float64]) -> list[list[TeiScore]]:
    """For each text, every label with its score (texts, classes), the highest first."""
    return [
        [
            TeiScore.model_construct(score=float(row[i]), label=labels[i])
            for i in np.argsort(-row, kind="stable").tolist()
        ]
        for row in scores
    ]
