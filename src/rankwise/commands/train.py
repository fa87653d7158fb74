"""The `train` function: from texts and labels to a classifier, in one call."""

from __future__ import annotations

from os import PathLike
from typing import Any

from rankwise.commands.classifier import Classifier
from rankwise.commands.sweep import sweep
from rankwise.recipe import Recipe
from rankwise.training.callbacks import Callback


def train(
    data: Any,
    *,
    text: str | None = None,
    label: str | None = None,
    folder: PathLike[str] | str | None = None,
    callback: Callback | None = None,
    resume: bool = False,
    **settings: Any,
) -> Classifier:
    """Train a classifier at the rank that a sweep recommends.

    Args:
        data: texts and labels: a DataFrame, a Dataset or DatasetDict, a pair (texts, labels), a mapping of
            columns or of splits, a path, or a Hub ID.
        text: name of the text column, if it cannot be detected.
        label: name of the label column, if it cannot be detected.
        folder: run folder to write; by default `runs/DATA-BASE-TIME`.
        callback: notified of progress.
        resume: resume the run in `folder`.
        settings: other settings of a `Recipe`, such as `base`, `ranks` or `epochs`.

    Returns:
        The classifier of the recommended adapter. Its `results` are those of the sweep.

    Raises:
        UsageError: a setting is invalid, or the folder is in use.
        DataError: the data cannot be used.
        ModelError: the base model cannot be used.
        Unreachable: data or base must be downloaded, and the Hub does not answer.
        TrainingError: every adapter has diverged.
        ResourceError: out of memory or disk space.
    """
    recipe = Recipe(data=data, text_column=text, label_column=label, **settings)
    results = sweep(recipe, folder, callback, resume=resume)
    machine = recipe.machine
    made = Classifier.load(results.recommended.folder, device=machine.device, precision=machine.precision)
    return made.of_sweep(results)
