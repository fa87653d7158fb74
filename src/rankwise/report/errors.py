"""Misclassified texts. Those that all adapters get wrong come first, because their labels may be wrong.

Only validation texts are listed by default. Test labels that are corrected where a model disagrees, and only
there, make its test metrics too good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rankwise.data.readers import open_table
from rankwise.data.writers import csv_line
from rankwise.errors import UsageError
from rankwise.report.run import Run, SplitPredictions
from rankwise.report.samples import NO_LABEL
from rankwise.report.tables import Table

COLUMNS = (
    "split", "number", "source", "text", "label", "label_probability", "predicted", "confidence", "wrong",
    "predictions", "corrected_label",
)  # fmt: skip
CORRECTED = COLUMNS[-1]
FEWEST = 0.5
"""Fraction of the adapters that must be wrong for a text to be listed."""


@dataclass(frozen=True)
class WrongText:
    """A text that at least half of the adapters misclassify."""

    split: str
    number: int  # of the text in its split, from 1
    source: str  # where it was read, such as "train.csv:12"; empty if unknown
    text: str
    label: str
    label_probability: float | None  # mean over the adapters; None if logits cannot be read
    predicted: str  # the most frequent wrong label
    confidence: float  # mean probability of that label, over the adapters that predicted it
    wrong: float  # fraction of adapters that are wrong
    predictions: tuple[tuple[str, int], ...]  # (label, adapters that predicted it), most frequent first


def wrong_texts(run: Run, splits: Sequence[str] = ("validation",)) -> list[WrongText]:
    """Texts that at least half of the adapters get wrong: all-wrong first, then the most confident.

    Args:
        run: a finished run.
        splits: the splits to list; those that the run does not have are left out.
    """
    found = [each for split in splits if split in run.predictions for each in _of_split(run, split)]
    # Sorting is stable, so ties keep the order of the texts.
    return sorted(found, key=lambda each: (each.wrong < 1, -each.confidence))


def _of_split(run: Run, split: str) -> list[WrongText]:
    predictions = run.predictions[split]
    texts = np.flatnonzero((~predictions.correct).mean(axis=0) >= FEWEST)
    given = _label_probabilities(run, split) if len(texts) else None
    return [
        _wrong(
            split, predictions, int(text), run.results.labels, None if given is None else float(given[text])
        )
        for text in texts
    ]


def _label_probabilities(run: Run, split: str) -> NDArray[np.float64] | None:
    """(texts,): the probability of each text's labels, mean over the adapters; None without logits."""
    try:
        losses = run.log_losses([row.name for row in run.results.adapters], split)
    except UsageError:
        return None
    return np.asarray(run.task.label_probability(losses, len(run.results.labels)).mean(axis=0))


def _wrong(
    split: str,
    predictions: SplitPredictions,
    text: int,
    labels: Sequence[str],
    label_probability: float | None,
) -> WrongText:
    """The misclassified text at an index of the split."""
    task = predictions.task
    votes: dict[str, list[float]] = {}  # label -> probabilities of the adapters that predicted it
    pairs = zip(predictions.predicted[:, text], predictions.probability[:, text], strict=True)
    for said, probability in pairs:
        votes.setdefault(task.cell(said, labels), []).append(float(probability))
    target = task.cell(predictions.targets[text], labels)
    others = {label: given for label, given in votes.items() if label != target}
    predicted = max(others, key=lambda label: (len(others[label]), sum(others[label])))
    return WrongText(
        split=split,
        number=text + 1,
        source=predictions.places[text],
        text=predictions.texts[text],
        label=target,
        label_probability=label_probability,
        predicted=predicted,
        confidence=sum(others[predicted]) / len(others[predicted]),
        wrong=sum(map(len, others.values())) / len(predictions.predicted),
        predictions=tuple(
            (label, len(given)) for label, given in sorted(votes.items(), key=lambda each: -len(each[1]))
        ),
    )


def corrected_rows(path: Path) -> list[dict[str, str]]:
    """The rows of an errors.csv in which somebody has filled in `corrected_label`; none without a file.

    Raises:
        DataError: the file cannot be read.
    """
    if not path.exists():
        return []
    with open_table(path, labeled=False) as table:
        rows = [{name: str(row.get(name) or "") for name in COLUMNS} for _, row in table.rows]
    return [row for row in rows if row[CORRECTED]]


def errors_csv(found: Sequence[WrongText], corrected: Sequence[Mapping[str, str]] = ()) -> str:
    """CSV for correcting labels, with a column `corrected_label` to fill in.

    Args:
        found: the misclassified texts.
        corrected: rows that are corrected already. Their labels are kept, also those of texts that are not
            among the misclassified ones any more, whose rows come last.
    """
    kept = {(row["split"], row["number"]): row for row in corrected}
    rows = [
        (
            each.split,
            each.number,
            each.source,
            each.text,
            each.label,
            "" if each.label_probability is None else f"{each.label_probability:.4f}",
            each.predicted,
            f"{each.confidence:.4f}",
            f"{each.wrong:.4f}",
            _votes(each),
            kept.pop((each.split, str(each.number)), {}).get(CORRECTED, ""),
        )
        for each in found
    ]
    others = [tuple(row[name] for name in COLUMNS) for row in kept.values()]
    # Without a byte-order mark, Excel takes the file for one in a regional encoding.
    return "\ufeff" + "".join(csv_line(cells, safe=True) for cells in (COLUMNS, *rows, *others))


def errors_table(found: Sequence[WrongText], adapters: int, most: int = 20) -> Table:
    """A table of the first `most` texts."""
    rows = [
        (
            each.text,
            each.label or NO_LABEL,
            "" if each.label_probability is None else f"{100 * each.label_probability:.0f}",
            each.predicted or NO_LABEL,
            f"{100 * each.confidence:.0f}",
            f"{round(each.wrong * adapters)} of {adapters}",
            each.source or f"{each.split} {each.number:,}",
        )
        for each in found[:most]
    ]
    columns = (
        "text",
        "label",
        "its probability, %",
        "predicted",
        "its probability, %",
        "adapters wrong",
        "where",
    )
    return Table("", columns, rows, note="")


def _votes(found: WrongText) -> str:
    return ", ".join(f"{label or NO_LABEL} {number}" for label, number in found.predictions)
