"""What is known of the data before anything is trained: sizes, classes, lengths, duplicates, leaks."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from rankwise.data import Dataset, Split
from rankwise.report.tables import Table
from rankwise.store import files
from rankwise.store.run import RunFolder

LISTED = 100
"""Contradictions that a report lists; the others are counted."""
EXAMPLES = 5
"""Texts that a report lists of each leak."""

Lengths = Callable[[Sequence[str]], NDArray[np.int64]]
"""Texts -> (texts,) their lengths."""


class ClassCount(BaseModel):
    """Texts of one class in a split."""

    label: str
    texts: int


class SplitReport(BaseModel):
    """One split. Lengths are in the report's unit, before anything is cut off."""

    name: str
    texts: int
    classes: list[ClassCount]
    tokens_mean: float
    tokens_p50: int
    tokens_p95: int
    tokens_max: int
    truncated: int | None  # texts longer than max_length; null where lengths are in words
    duplicates: int  # texts that repeat an earlier one of the split to the letter
    duplicates_normalised: int  # the same, but for case, spaces and Unicode form


class Contradiction(BaseModel):
    """A text that carries several labels, in one split or in several."""

    text: str  # as it first stands
    labels: list[str]  # in the model's order
    splits: list[str]


class Leak(BaseModel):
    """Texts of one split that stand in another split too."""

    splits: list[str]  # the two
    texts: int  # of the second split that stand in the first too
    same_label: int  # of these, with a label that they have in the first
    other_label: int  # of these, with none of the labels that they have in the first
    examples: list[str]


class DataReport(BaseModel):
    """data.json. Texts are the same where they differ by case, spaces and Unicode form alone."""

    unit: Literal["tokens", "words"]  # of the lengths
    max_length: int  # tokens
    splits: list[SplitReport]
    contradictions: list[Contradiction]  # the first of them
    contradictions_total: int
    leaks: list[Leak]  # pairs of splits without a leak are left out


def report(dataset: Dataset, max_length: int, lengths: Lengths | None = None) -> DataReport:
    """Everything that the texts and labels say by themselves.

    Args:
        dataset: checked splits.
        max_length: longest text in tokens, as in the recipe.
        lengths: counts tokens, special tokens included; None to count words instead.
    """
    splits = [split for split in (dataset.train, dataset.validation, dataset.test) if split is not None]
    found = _contradictions(splits, dataset.labels)
    return DataReport(
        unit="words" if lengths is None else "tokens",
        max_length=max_length,
        splits=[_split(split, dataset.labels, max_length, lengths) for split in splits],
        contradictions=found[:LISTED],
        contradictions_total=len(found),
        leaks=[leak for pair in combinations(splits, 2) if (leak := _leak(*pair)).texts],
    )


def write(run: RunFolder, dataset: Dataset, max_length: int, lengths: Lengths) -> DataReport:
    """Write data.json, and give what is in it."""
    found = report(dataset, max_length, lengths)
    files.write_text(run.data, found.model_dump_json(indent=1) + "\n")
    return found


def normalised(text: str) -> str:
    """A text without what seldom changes its meaning: case, runs of spaces, Unicode form (NFKC).

    >>> normalised("  So  Glad ")
    'so glad'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def split_table(found: DataReport) -> Table:
    """A row a split: texts, lengths, duplicates."""
    cut = all(split.truncated is not None for split in found.splits)
    columns = (
        *("split", "texts", f"mean {found.unit}", "median", "95th %", "longest"),
        *((f"over {found.max_length}",) if cut else ()),
        *("duplicates", "but for case and spaces"),
    )
    rows = [
        (
            split.name,
            f"{split.texts:,}",
            f"{split.tokens_mean:.1f}",
            f"{split.tokens_p50:,}",
            f"{split.tokens_p95:,}",
            f"{split.tokens_max:,}",
            *((f"{split.truncated:,}",) if cut else ()),
            f"{split.duplicates:,}",
            f"{split.duplicates_normalised:,}",
        )
        for split in found.splits
    ]
    note = "" if cut else "Lengths in words: the base's tokenizer is not on this machine."
    return Table("Splits", columns, rows, note=note)


def class_table(found: DataReport) -> Table:
    """A row a class: texts in each split, with their share in percent."""
    rows = [
        (
            classes[0].label,
            *(_share(each.texts, split.texts) for each, split in zip(classes, found.splits, strict=True)),
        )
        for classes in zip(*(split.classes for split in found.splits), strict=True)
    ]
    return Table(
        "Classes",
        ("label", *(split.name for split in found.splits)),
        rows,
        note="Texts, and percent of the split.",
    )


def leak_table(found: DataReport) -> Table:
    """A row for each two splits that share texts."""
    rows = [
        (
            *reversed(leak.splits),
            f"{leak.texts:,}",
            f"{leak.same_label:,}",
            f"{leak.other_label:,}",
            leak.examples[0],
        )
        for leak in found.leaks
    ]
    columns = ("split", "in", "texts", "same label", "another label", "such as")
    return Table("Texts of one split that stand in another", columns, rows, keys=2)


def contradiction_table(found: DataReport, shown: int = EXAMPLES) -> Table:
    """The first texts that carry several labels."""
    rows = [
        (each.text, ", ".join(each.labels), ", ".join(each.splits)) for each in found.contradictions[:shown]
    ]
    total = found.contradictions_total
    note = f"The first {shown} of {total:,}; --json lists up to {LISTED}." if total > shown else ""
    return Table(f"Texts with contradicting labels: {total:,}", ("text", "labels", "in"), rows, note=note)


def _share(texts: int, of: int) -> str:
    return f"{texts:,} ({100 * texts / of:.1f})"


def _split(split: Split, labels: Sequence[str], max_length: int, lengths: Lengths | None) -> SplitReport:
    sizes = np.array([len(text.split()) for text in split.texts]) if lengths is None else lengths(split.texts)
    counts = Counter(split.labels)
    return SplitReport(
        name=split.name,
        texts=len(split),
        classes=[ClassCount(label=label, texts=counts[i]) for i, label in enumerate(labels)],
        tokens_mean=round(float(sizes.mean()), 2),
        tokens_p50=int(np.percentile(sizes, 50, method="inverted_cdf")),
        tokens_p95=int(np.percentile(sizes, 95, method="inverted_cdf")),
        tokens_max=int(sizes.max()),
        truncated=None if lengths is None else int((sizes > max_length).sum()),
        duplicates=len(split) - len(set(split.texts)),
        duplicates_normalised=len(split) - len(set(map(normalised, split.texts))),
    )


def _contradictions(splits: Sequence[Split], names: Sequence[str]) -> list[Contradiction]:
    """In the order in which their texts first stand."""
    first: dict[str, str] = {}
    labels: dict[str, set[int]] = {}
    where: dict[str, dict[str, None]] = {}
    for split in splits:
        for text, label in zip(split.texts, split.labels, strict=True):
            key = normalised(text)
            first.setdefault(key, text)
            labels.setdefault(key, set()).add(label)
            where.setdefault(key, {})[split.name] = None
    return [
        Contradiction(text=first[key], labels=[names[i] for i in sorted(found)], splits=list(where[key]))
        for key, found in labels.items()
        if len(found) > 1
    ]


def _leak(one: Split, other: Split) -> Leak:
    known: dict[str, set[int]] = {}
    for text, label in zip(one.texts, one.labels, strict=True):
        known.setdefault(normalised(text), set()).add(label)
    found = [
        (text, label in known[key])
        for text, label in zip(other.texts, other.labels, strict=True)
        if (key := normalised(text)) in known
    ]
    same = sum(agrees for _, agrees in found)
    return Leak(
        splits=[one.name, other.name],
        texts=len(found),
        same_label=same,
        other_label=len(found) - same,
        examples=list(dict.fromkeys(text for text, _ in found))[:EXAMPLES],
    )
