"""Data report before training: sizes, classes, lengths, duplicates, contradictions and leaks."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from rankwise.data.load import Dataset, Split
from rankwise.data.tables import counted
from rankwise.models import windows
from rankwise.schema import ClassCount, Contradiction, DataReport, Leak, SplitReport
from rankwise.store import files
from rankwise.store.run_folder import RunFolder
from rankwise.tasks.labels import LabelIds

LISTED = 100
"""Maximum number of contradictions listed in a report; all are counted."""
EXAMPLES = 5
"""Maximum number of example texts per leak."""
Lengths = Callable[[Sequence[str]], NDArray[np.int64]]
"""Texts -> (texts,) lengths."""


def report(
    dataset: Dataset, max_length: int, lengths: Lengths | None = None, longest: int | None = None
) -> DataReport:
    """Sizes, classes, lengths, duplicates, contradictions and leaks of a dataset.

    Args:
        dataset: validated splits.
        max_length: maximum tokens per text, as in the recipe.
        lengths: counts tokens, including special tokens; None counts words instead.
        longest: tokens of the longest text that is read as a whole, in windows; None if long texts are cut.
    """
    splits = [split for split in (dataset.train, dataset.validation, dataset.test) if split is not None]
    found = _contradictions(splits, dataset)
    return DataReport(
        unit="words" if lengths is None else "tokens",
        max_length=max_length,
        sources=list(dataset.sources),
        splits=[_split(split, dataset, max_length, lengths, longest) for split in splits],
        contradictions=found[:LISTED],
        contradictions_total=len(found),
        leaks=[leak for pair in combinations(splits, 2) if (leak := _leak(*pair)).texts],
    )


def write(
    run: RunFolder, dataset: Dataset, max_length: int, lengths: Lengths, longest: int | None = None
) -> DataReport:
    """Write data.json and return the report. The arguments are those of `report`."""
    found = report(dataset, max_length, lengths, longest)
    files.write_text(run.data, found.model_dump_json(indent=1) + "\n")
    return found


def long_texts(
    texts: Mapping[str, int],
    cut: Mapping[str, int],
    windowed: Mapping[str, int],
    max_length: int,
    *,
    in_windows: bool,
) -> list[str]:
    """How many texts are too long, and how they are read, in lines; empty if none is.

    Args:
        texts: split -> number of texts.
        cut: split -> texts of which only a part is read.
        windowed: split -> texts that are read in several windows.
        max_length: maximum tokens per text, or per window.
        in_windows: whether long texts are read in windows.

    >>> long_texts({"train": 48, "validation": 18}, {"train": 3}, {}, 32, in_windows=False)
    ['3 of 48 texts of train cut at 32 tokens']
    """
    tokens = counted(max_length, "token")
    limit = f"cut at {windows.MOST:,} windows" if in_windows else f"cut at {tokens}"
    told = ((windowed, f"read in windows of {tokens}"), (cut, limit))
    found = (
        (", ".join(f"{n:,} of {texts[split]:,} texts of {split}" for split, n in counts.items() if n), how)
        for counts, how in told
    )
    return [f"{which} {how}" for which, how in found if which]


def normalized(text: str) -> str:
    """A text with case, runs of whitespace and Unicode form (NFKC) normalized.

    >>> normalized("  So  Glad ")
    'so glad'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _split(
    split: Split, dataset: Dataset, max_length: int, lengths: Lengths | None, longest: int | None
) -> SplitReport:
    sizes = np.array([len(text.split()) for text in split.texts]) if lengths is None else lengths(split.texts)
    counts = Counter(name for ids in split.labels for name in dataset.task.named(ids, dataset.labels))
    return SplitReport(
        name=split.name,
        texts=len(split),
        classes=[ClassCount(label=label, texts=counts[label]) for label in dataset.labels],
        tokens_mean=round(float(sizes.mean()), 2),
        tokens_p50=int(np.percentile(sizes, 50, method="inverted_cdf")),
        tokens_p95=int(np.percentile(sizes, 95, method="inverted_cdf")),
        tokens_max=int(sizes.max()),
        truncated=None if lengths is None else int((sizes > (longest or max_length)).sum()),
        windowed=None if lengths is None or longest is None else int((sizes > max_length).sum()),
        duplicates=len(split) - len(set(split.texts)),
        duplicates_normalized=len(split) - len(set(map(normalized, split.texts))),
    )


def _contradictions(splits: Sequence[Split], dataset: Dataset) -> list[Contradiction]:
    """Contradictions, in order of first appearance of their texts."""
    named, names = dataset.task.named, dataset.labels
    first: dict[str, str] = {}
    labels: dict[str, set[LabelIds]] = {}
    where: dict[str, dict[str, None]] = {}
    for split in splits:
        for text, label in zip(split.texts, split.labels, strict=True):
            key = normalized(text)
            first.setdefault(key, text)
            labels.setdefault(key, set()).add(label)
            where.setdefault(key, {})[split.name] = None
    return [
        Contradiction(
            text=first[key],
            labels=[" + ".join(named(ids, names)) or "none" for ids in sorted(found, key=_in_order)],
            splits=list(where[key]),
        )
        for key, found in labels.items()
        if len(found) > 1
    ]


def _leak(one: Split, other: Split) -> Leak:
    known: dict[str, set[LabelIds]] = {}
    for text, label in zip(one.texts, one.labels, strict=True):
        known.setdefault(normalized(text), set()).add(label)
    found = [
        (text, label in known[key])
        for text, label in zip(other.texts, other.labels, strict=True)
        if (key := normalized(text)) in known
    ]
    same = sum(agrees for _, agrees in found)
    return Leak(
        splits=[one.name, other.name],
        texts=len(found),
        same_label=same,
        other_label=len(found) - same,
        examples=list(dict.fromkeys(text for text, _ in found))[:EXAMPLES],
    )


def _in_order(ids: LabelIds) -> tuple[int, ...]:
    """A key that sorts labels in the model's order."""
    return ids if isinstance(ids, tuple) else (ids,)
