"""Checks of what a user gives to commands that predict."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from rankwise.data.readers import SUFFIXES, suffix_of
from rankwise.data.unlabeled import STDIN, is_piped
from rankwise.data.writers import require_writable
from rankwise.errors import UsageError, either, option
from rankwise.tasks.labels import Labels


def source_of(texts: Sequence[str], source: Path | None, target: Path | None) -> Path | None:
    """The file to classify, `-` for stdin, or None if the texts are given.

    If nothing is given, a pipe is read.

    Raises:
        UsageError: the arguments contradict each other, or a text is the name of a file.
    """
    if list(texts) == ["-"] and not source:
        return STDIN
    if not texts and not source and is_piped():
        return STDIN
    if bool(texts) == bool(source) or (source != STDIN and bool(source) != bool(target)):
        files_given = either("--input FILE and --output FILE", "source and target")
        raise UsageError(f"give either texts, or {files_given}")
    _require_texts(texts)
    return source


def require_target(target: Path, *, overwrite: bool, safe_csv: bool = False) -> None:
    """Raise a UsageError if a file of predictions cannot be written, or exists and must be kept."""
    require_writable(target, safe=safe_csv)
    if target.exists() and not target.is_file():
        raise UsageError(f"{target}: not a file")
    if target.exists() and not overwrite:
        hint = f"give another {either('--output', 'target')}, or {option('overwrite', True)} to replace it"
        raise UsageError(f"{target}: already exists", hint=hint)


def _require_texts(texts: Sequence[str]) -> None:
    """Raise a UsageError if a text is the name of a file, which the user meant to be read."""
    for text in texts:
        known = suffix_of(Path(text)) in SUFFIXES and len(text.split()) == 1
        if known or ("." in text and os.path.isfile(text)):
            files_given = either(
                f"--input {shlex.quote(text)} --output labeled.csv", f"source={text!r}, target='labeled.csv'"
            )
            hint = f"to classify the texts in it: {files_given}"
            raise UsageError(f"{text!r} is the name of a file, not a text", hint=hint)


def require_probability(abstain_below: float) -> float:
    """The threshold.

    Raises:
        UsageError: it is not a number from 0 to 1.
    """
    if not isinstance(abstain_below, int | float) or not 0 <= abstain_below <= 1:
        what = f"{option('abstain_below', abstain_below)}: not a probability"
        raise UsageError(what, hint="give a number from 0 to 1")
    return abstain_below


def require_abstaining(task: Labels, abstain_below: float) -> float:
    """The threshold, for a task whose classifiers can abstain.

    Raises:
        UsageError: it is not a number from 0 to 1, or the task is multi-label.
    """
    if task.several:
        what = f"{option('abstain_below', abstain_below)}: a multi-label classifier has thresholds of its own"
        raise UsageError(what, hint="leave it out; a text with no label above its threshold gets none")
    return require_probability(abstain_below)
