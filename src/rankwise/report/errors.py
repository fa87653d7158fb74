"""Texts that the adapters get wrong: those that all get wrong first, for their label may be what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rankwise.data.writers import csv_line
from rankwise.report.predictions import Line
from rankwise.report.tables import Table, plain_cell

COLUMNS = (
    "split", "number", "text", "label", "predicted", "confidence", "wrong", "predictions", "corrected_label",
)  # fmt: skip
FEWEST = 0.5
"""Share of the adapters that must be wrong for a text to be listed."""


@dataclass(frozen=True)
class WrongText:
    """A text that at least half of the adapters label otherwise than the data."""

    split: str
    number: int  # of the text in its split, from 1
    text: str
    label: str
    predicted: str  # the wrong label that most adapters gave
    confidence: float  # mean probability that these gave it
    wrong: float  # share of all adapters that were wrong
    predictions: tuple[tuple[str, int], ...]  # label -> adapters that gave it, most first


def wrong_texts(lines: Sequence[Line], adapters: Sequence[str]) -> list[WrongText]:
    """Texts that at least half of the adapters get wrong: all-wrong first, then the most confident.

    Args:
        lines: of predictions.csv.
        adapters: names of the adapters, of every rank and seed.

    Raises:
        ValueError: a probability is no number.
    """
    found: list[WrongText] = []
    numbers: Counter[str] = Counter()
    for line in lines:
        numbers[line["split"]] += 1
        if wrong := _wrong(line, adapters, numbers[line["split"]]):
            found.append(wrong)
    # Sorting keeps the order of the texts among equals.
    return sorted(found, key=lambda each: (each.wrong < 1, -each.confidence))


def _wrong(line: Line, adapters: Sequence[str], number: int) -> WrongText | None:
    votes: dict[str, list[float]] = {}
    for name in adapters:
        votes.setdefault(line[name], []).append(float(line[f"{name} probability"]))
    others = {label: sure for label, sure in votes.items() if label != line["label"]}
    wrong = sum(map(len, others.values())) / len(adapters)
    if not others or wrong < FEWEST:
        return None
    predicted = max(others, key=lambda label: (len(others[label]), sum(others[label])))
    return WrongText(
        split=line["split"],
        number=number,
        text=line["text"],
        label=line["label"],
        predicted=predicted,
        confidence=sum(others[predicted]) / len(others[predicted]),
        wrong=wrong,
        predictions=tuple(sorted(((k, len(v)) for k, v in votes.items()), key=lambda each: -each[1])),
    )


def errors_csv(found: Sequence[WrongText]) -> str:
    """A list to hand to a labeler, who fills in the empty column `corrected_label`."""
    rows = [
        (
            each.split,
            each.number,
            plain_cell(each.text),
            plain_cell(each.label),
            plain_cell(each.predicted),
            f"{each.confidence:.4f}",
            f"{each.wrong:.4f}",
            plain_cell(_votes(each)),
            "",
        )
        for each in found
    ]
    return "".join(map(csv_line, (COLUMNS, *rows)))


def errors_table(found: Sequence[WrongText], adapters: int, most: int = 20) -> Table:
    """The first of them, for people."""
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
