"""Misclassified texts. Those that all adapters get wrong come first, because their labels may be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankwise.data.writers import csv_line
from rankwise.report.run import Run, SplitPredictions
from rankwise.report.tables import Table

COLUMNS = (
    "split", "number", "text", "label", "predicted", "confidence", "wrong", "predictions", "corrected_label",
)  # fmt: skip
FEWEST = 0.5
"""Fraction of the adapters that must be wrong for a text to be listed."""


@dataclass(frozen=True)
class WrongText:
    """A text that at least half of the adapters misclassify."""

    split: str
    number: int  # of the text in its split, from 1
    text: str
    label: str
    predicted: str  # the most frequent wrong label
    confidence: float  # mean probability of that label, over the adapters that predicted it
    wrong: float  # fraction of adapters that are wrong
    predictions: tuple[tuple[str, int], ...]  # (label, adapters that predicted it), most frequent first


def wrong_texts(run: Run) -> list[WrongText]:
    """Texts that at least half of the adapters get wrong: all-wrong first, then the most confident."""
    found = [
        _wrong(split, predictions, int(text), run.results.labels)
        for split, predictions in run.predictions.items()
        for text in np.flatnonzero((~predictions.correct).mean(axis=0) >= FEWEST)
    ]
    # Sorting is stable, so ties keep the order of the texts.
    return sorted(found, key=lambda each: (each.wrong < 1, -each.confidence))


def _wrong(split: str, predictions: SplitPredictions, text: int, labels: Sequence[str]) -> WrongText:
    """The misclassified text at an index of the split."""
    votes: dict[int, list[float]] = {}  # label -> probabilities of the adapters that predicted it
    pairs = zip(predictions.predicted[:, text], predictions.probability[:, text], strict=True)
    for label, probability in pairs:
        votes.setdefault(int(label), []).append(float(probability))
    target = int(predictions.targets[text])
    others = {label: given for label, given in votes.items() if label != target}
    predicted = max(others, key=lambda label: (len(others[label]), sum(others[label])))
    return WrongText(
        split=split,
        number=text + 1,
        text=predictions.texts[text],
        label=labels[target],
        predicted=labels[predicted],
        confidence=sum(others[predicted]) / len(others[predicted]),
        wrong=sum(map(len, others.values())) / len(predictions.predicted),
        predictions=tuple(
            (labels[label], len(given))
            for label, given in sorted(votes.items(), key=lambda each: -len(each[1]))
        ),
    )


def errors_csv(found: Sequence[WrongText]) -> str:
    """CSV for correcting labels, with an empty column `corrected_label` to fill in."""
    rows = [
        (
            each.split,
            each.number,
            each.text,
            each.label,
            each.predicted,
            f"{each.confidence:.4f}",
            f"{each.wrong:.4f}",
            _votes(each),
            "",
        )
        for each in found
    ]
    return "".join(csv_line(cells, safe=True) for cells in (COLUMNS, *rows))


def errors_table(found: Sequence[WrongText], adapters: int, most: int = 20) -> Table:
    """A table of the first `most` texts."""
    rows = [
        (
            each.text,
            each.label,
            each.predicted,
            f"{100 * each.confidence:.0f}",
            f"{round(each.wrong * adapters)} of {adapters}",
            f"{each.split} {each.number:,}",
        )
        for each in found[:most]
    ]
    columns = ("text", "label", "predicted", "confidence, %", "adapters wrong", "where")
    return Table("", columns, rows, note="")


def _votes(found: WrongText) -> str:
    return ", ".join(f"{label} {number}" for label, number in found.predictions)
