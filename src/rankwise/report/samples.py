"""The sample table: random texts of each class, with the predictions of an adapter."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from rankwise.errors import UsageError
from rankwise.report.run import Run
from rankwise.report.tables import Table, escape
from rankwise.report.verdict import recommend
from rankwise.store import files
from rankwise.store.run_folder import RunFolder

NO_LABEL = "no label"
"""What a table shows for a text without labels."""
SAMPLE_COLUMNS = ("text", "label", "predicted label", "probability")
MOST_CLASSES = 30
"""Maximum number of classes with samples; if there are more, these are drawn."""


def sample_table(run: Run, *, adapter: str | None = None, seed: int = 110, per_class: int = 2) -> Table:
    """Randomly sampled texts of each class, or of 30 random classes, with an adapter's predictions.

    Each text appears once. If texts have any number of labels, texts without labels are sampled like a class.

    Args:
        run: a finished run. Test texts are used, or validation texts if there is no test split.
        adapter: by default the recommended one.
        seed: random seed of the sample.
        per_class: number of texts per class.

    Raises:
        UsageError: the run has no such adapter.
    """
    names = [row.name for row in run.results.adapters]
    adapter = recommend(run).best.name if adapter is None else adapter
    if adapter not in names:
        raise UsageError(f"{run.path}: no adapter {adapter}", hint=f"it has {', '.join(names)}")
    split, number = "test" if "test" in run.predictions else "validation", names.index(adapter)
    labels, found = run.results.labels, run.predictions[split]
    shown = sorted(_draw(range(len(labels)), MOST_CLASSES, f"{seed}"))
    groups = {labels[target]: run.task.has(found.targets, target) for target in shown}
    if run.task.several:
        groups[""] = ~np.any([run.task.has(found.targets, target) for target in range(len(labels))], axis=0)
    drawn = [
        text
        for label, members in groups.items()
        for text in _draw(np.flatnonzero(members).tolist(), per_class, f"{seed} {label}")
    ]
    rows = [
        (
            found.texts[text],
            run.task.cell(found.targets[text], labels) or NO_LABEL,
            run.task.cell(found.predicted[number, text], labels) or NO_LABEL,
            f"{found.probability[number, text]:.3f}",
        )
        for text in dict.fromkeys(drawn)
    ]
    some = f"{split} texts of {len(shown)} of {len(labels):,} classes"
    which = some if len(shown) < len(labels) else f"{split} texts"
    return Table(f"{which}, predicted by {adapter}", SAMPLE_COLUMNS, rows)


def _draw(texts: Sequence[int], most: int, seed: str) -> list[int]:
    return random.Random(seed).sample(texts, min(most, len(texts)))


def write(folder: RunFolder, samples: Table) -> None:
    """Write samples.md."""
    files.write_text(folder.samples, f"{escape(samples.title)}\n\n{samples.markdown()}")
