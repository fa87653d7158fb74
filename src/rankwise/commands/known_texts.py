"""Texts at hand for an adapter: those of its run, or the starter texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rankwise.data.load import load as load_data
from rankwise.data.pairs import JOINER
from rankwise.errors import RankwiseError
from rankwise.recipe import Recipe
from rankwise.store.run_folder import RunFolder
from rankwise.tasks.task import Targets


@dataclass(frozen=True)
class Sample:
    """Texts, and their labels if they are known."""

    texts: list[str]  # pairs are joined
    targets: Targets | None  # of each text; None if they are not known
    origin: str  # such as "1,000 validation texts of runs/first"


def of_run(adapter: Path, labels: Sequence[str]) -> Sample | None:
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
    targets = found.targets if finished.results.labels == list(labels) else None
    return Sample(list(found.texts), targets, f"validation texts of {run.path.name}")


def counted(found: Sample | None, least: int, most: int, *, pairs: bool) -> Sample:
    """The texts with their number in the origin: at most so many, evenly spread.

    If there are too few, starter texts are added, and no labels are used.

    Args:
        found: the texts, or None.
        least: number of texts that are needed.
        most: number of texts that are used.
        pairs: whether the adapter takes pairs of texts.
    """
    found = _spread(found or Sample([], None, ""), most)
    has, origin = len(found.texts), f"{len(found.texts):,} {found.origin}"
    if has >= least:
        return replace(found, origin=origin)
    texts = load_data(Recipe()).train.texts
    added = [*map(JOINER.join, zip(texts[::2], texts[1::2], strict=False))] if pairs else list(texts)
    added = added[: least - has]
    starter = f"{len(added):,} {'pairs of ' * pairs}starter texts"
    return Sample([*found.texts, *added], None, f"{origin} and {starter}" if has else starter)


def _spread(found: Sample, most: int) -> Sample:
    if len(found.texts) <= most:
        return found
    chosen = np.linspace(0, len(found.texts) - 1, most).round().astype(int)
    targets = None if found.targets is None else found.targets[chosen]
    return replace(found, texts=[found.texts[i] for i in chosen], targets=targets)
