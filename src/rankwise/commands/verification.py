"""Texts on which an exported adapter is compared with the adapter itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.commands.predict import Classifier, wanted_by
from rankwise.data.columns import Wanted
from rankwise.data.load import load as load_data
from rankwise.data.load import read_labeled
from rankwise.data.pairs import JOINER
from rankwise.data.unlabeled import text_rows
from rankwise.errors import DataError, RankwiseError
from rankwise.in_memory import InMemory
from rankwise.paths import expanded
from rankwise.recipe import Recipe
from rankwise.store.run_folder import RunFolder
from rankwise.tasks.task import Targets

LEAST = 200
"""Number of texts that a comparison needs, and labeled texts that an accuracy needs."""
MOST = 1000
"""Number of texts that it uses of a longer file or split, spread evenly."""


@dataclass(frozen=True)
class Sample:
    """Texts to compare an export on."""

    texts: list[str]  # pairs are joined
    targets: Targets | None  # of each text; None if they are not known
    origin: str  # such as "1,000 validation texts of runs/first"


def sample(
    adapter: Path,
    data: Any,
    classifier: Classifier,
    *,
    columns: Mapping[str, Any],
    on_note: Callable[[str], None],
) -> Sample:
    """The texts that are given; else the validation texts of the adapter's run; else the starter texts.

    If there are fewer than 200, starter texts are added, in pairs for an adapter of pairs.

    Args:
        adapter: folder of the adapter.
        data: a file, with labels or without; data in memory; or None.
        classifier: the adapter, loaded.
        columns: `text_column` or `text_columns`, and `label_column`, if they cannot be detected.
        on_note: called with notes on what was read.

    Raises:
        DataError: the data cannot be used.
        UsageError: this is neither a path nor data in memory, or the columns do not suit the adapter.
    """
    if data is None:
        found = _of_run(adapter, classifier) or Sample([], None, "")
    else:
        found = _given(data, classifier, wanted_by(classifier, columns), on_note)
    return _enough(_spread(found), pairs=bool(classifier.text_columns))


def _given(data: Any, classifier: Classifier, wanted: Wanted, on_note: Callable[[str], None]) -> Sample:
    if not isinstance(data, str | PathLike):
        return _labeled(InMemory(data), "data in memory", classifier, wanted, on_note)
    path = expanded(os.fspath(data))
    try:
        return _labeled(path, path.name, classifier, wanted, on_note)
    except DataError as error:
        if wanted.label:
            raise
        rows = text_rows(path, text_column=wanted.text, pair=wanted.pair, labels=classifier.labels)
        texts = [row[rows.column] for batch in rows.batches() for row in batch]
        on_note(f"no labels are used: {error.message}")
        return Sample(texts, None, f"texts of {path.name}")


def _labeled(
    source: Path | InMemory,
    name: str,
    classifier: Classifier,
    wanted: Wanted,
    on_note: Callable[[str], None],
) -> Sample:
    notes: list[str] = []
    split = read_labeled(source, classifier.labels, wanted=wanted, notes=notes)
    for note in notes:
        on_note(note)
    targets = classifier.task.targets(split.labels, len(classifier.labels))
    return Sample(list(split.texts), targets, f"texts of {name}")


def _of_run(adapter: Path, classifier: Classifier) -> Sample | None:
    """The validation texts of the run that an adapter is in; None if it is in none that can be read."""
    from rankwise.report.run import load

    run = RunFolder(adapter.absolute().parent.parent)
    if adapter.absolute().parent != run.adapters.absolute() or not run.results.exists():
        return None
    try:
        finished = load(run)
    except RankwiseError:  # the run's own files are of no concern to an adapter
        return None
    found = finished.predictions["validation"]
    targets = found.targets if finished.results.labels == list(classifier.labels) else None
    return Sample(list(found.texts), targets, f"validation texts of {run.path.name}")


def _spread(found: Sample) -> Sample:
    """At most `MOST` texts, evenly spread."""
    if len(found.texts) <= MOST:
        return found
    chosen = np.linspace(0, len(found.texts) - 1, MOST).round().astype(int)
    targets = None if found.targets is None else found.targets[chosen]
    return replace(found, texts=[found.texts[i] for i in chosen], targets=targets)


def _enough(found: Sample, *, pairs: bool) -> Sample:
    """The texts with their number; if there are too few, starter texts are added, and no labels are used."""
    has, origin = len(found.texts), f"{len(found.texts):,} {found.origin}"
    if has >= LEAST:
        return replace(found, origin=origin)
    texts = load_data(Recipe()).train.texts
    added = [*map(JOINER.join, zip(texts[::2], texts[1::2], strict=False))] if pairs else list(texts)
    added = added[: LEAST - has]
    starter = f"{len(added):,} {'pairs of ' * pairs}starter texts"
    return Sample([*found.texts, *added], None, f"{origin} and {starter}" if has else starter)
