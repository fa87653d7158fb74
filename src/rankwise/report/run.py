"""A finished run, loaded once. The rest of `report` works on this object and reads no files of the run.

Usage::

    run = load(RunFolder("runs/first"))
    run.results.adapters[0].validation.accuracy     # a fraction
    run.predictions["validation"].correct           # (adapters, texts)
    run.log_losses(["r4-s110"])                     # (adapters, validation texts)
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import ValidationError

from rankwise.data.delimited import LONGEST_FIELD
from rankwise.data.writers import plain
from rankwise.errors import UsageError
from rankwise.recipe import Recipe
from rankwise.report.history import Curve, parse_curves
from rankwise.schema import AdapterResult, CutResult, DataReport, MetricName, Results, Timing
from rankwise.stats.crossed import Floats
from rankwise.stats.intervals import Answers
from rankwise.store.run_folder import RunFolder
from rankwise.tasks.registry import task_of
from rankwise.tasks.single import SINGLE
from rankwise.tasks.task import Predicted, Targets, Task

D = TypeVar("D", bound=np.generic)
NO_LOGITS = "the log loss needs the files in the run's folder logits; accuracy and macro-F1 do not"


@dataclass(frozen=True)
class SplitPredictions:
    """The predictions of every adapter for the texts of one split.

    Labels are indices into `Results.labels`. Adapters are in the order of `Results.adapters`.
    """

    texts: tuple[str, ...]
    places: tuple[str, ...]  # where each text was read, such as "train.csv:12"; empty strings if unknown
    targets: Targets  # (texts,) label of each text, or (texts, classes) 0 and 1
    predicted: Predicted  # (adapters, texts) label, or (adapters, texts, classes) whether each is predicted
    probability: NDArray[np.float64]  # (adapters, texts) probability of what is predicted
    baselines: Mapping[str, Predicted]  # baseline -> (texts, ...) prediction
    cuts: Mapping[str, Predicted]  # cut adapter -> (texts, ...) prediction
    task: Task = SINGLE

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(adapters, texts): whether the predicted label is correct."""
        return self.task.correct(self.predicted, self.targets)


@dataclass(frozen=True)
class Run:
    """A finished run: the contents of its folder, without weights; logits are read on demand."""

    path: Path  # the folder
    results: Results
    recipe: Recipe
    timing: Timing | None
    predictions: Mapping[str, SplitPredictions]  # split -> predictions
    curves: Mapping[str, Curve]  # adapter -> curve; empty without history.jsonl
    data: DataReport | None
    _losses: dict[tuple[str, str], Floats] = field(default_factory=dict, compare=False, repr=False)
    """(adapter, split) -> (texts,) log losses that were already computed."""
    _logits: dict[str, Mapping[str, NDArray[np.float32]]] = field(
        default_factory=dict, compare=False, repr=False
    )
    """Adapter -> split -> logits that were already read, so that each file is read once."""

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.resolve().name

    @property
    def task(self) -> Task:
        """What labels a text has."""
        return task_of(self.results.task, self.recipe.data.label_separator)

    @property
    def metric(self) -> MetricName:
        """The metric that ranks are compared by, if no other is asked for."""
        return metric_of(self.recipe)

    @property
    def seeds(self) -> int:
        """Number of distinct seeds over all adapters."""
        return len({row.seed for row in self.results.adapters})

    @property
    def learning_rates(self) -> dict[int, float]:
        """Rank -> learning rate of its adapters, which does not depend on the seed."""
        shared = self.recipe.train.learning_rate
        adapters = sorted(self.results.adapters, key=lambda row: row.rank)
        return {row.rank: float(row.settings.get("learning_rate", shared)) for row in adapters}

    def answers(self, split: str, adapters: Sequence[AdapterResult]) -> Answers:
        """(adapters, texts): whether these adapters predicted each text correctly."""
        places = {row.name: i for i, row in enumerate(self.results.adapters)}
        return self.predictions[split].correct[[places[row.name] for row in adapters]]

    def cut_answers(self, split: str, cuts: Sequence[CutResult]) -> Answers:
        """(cuts, texts): whether these cut adapters predicted each text correctly."""
        found = self.predictions[split]
        return np.stack([self.task.correct(found.cuts[row.name], found.targets) for row in cuts])

    def log_losses(self, names: Sequence[str], split: str = "validation") -> Floats:
        """(adapters, texts): the log loss of each text of a split under the adapters of these names, in nats.

        predictions.csv is not enough: it has the probability of the predicted label, not of the true one.

        Raises:
            UsageError: an adapter's file in the folder logits cannot be read, or is not of these texts.
        """
        return np.stack([self._log_loss(name, split) for name in names])

    def logits(self, name: str, split: str = "validation") -> NDArray[np.float32]:
        """(texts, classes) logits of the adapter of this name, read from its file.

        Raises:
            UsageError: the file in the folder logits cannot be read, or is not of these texts.
        """
        path = RunFolder(self.path).logits / f"{name}.safetensors"
        if name not in self._logits:
            self._logits[name] = _read_logits(path)
        logits, texts = self._logits[name].get(split), len(self.predictions[split].texts)
        shape = (texts, len(self.results.labels))
        if logits is None or logits.shape != shape or not np.isfinite(logits).all():
            raise UsageError(f"{path}: not the logits of the run's {split} texts", hint=NO_LOGITS)
        return logits

    def _log_loss(self, name: str, split: str) -> Floats:
        if (name, split) not in self._losses:
            targets = self.predictions[split].targets
            self._losses[name, split] = _fixed(self.task.text_log_losses(targets, self.logits(name, split)))
        return self._losses[name, split]


def load(folder: RunFolder) -> Run:
    """Read a finished run, each file once.

    Raises:
        UsageError: the run is not finished, has another schema version, or a file cannot be read.
    """
    results, recipe = folder.read_results(), Recipe.load(folder.recipe)
    task = task_of(results.task, recipe.data.label_separator)
    return Run(
        path=folder.path,
        results=results,
        recipe=recipe,
        timing=folder.read_timing() if folder.timing.exists() else None,
        predictions=_read_predictions(folder.predictions, results, task),
        curves=_read_curves(folder.history),
        data=read_data_report(folder.data),
    )


def metric_of(recipe: Recipe) -> MetricName:
    """The metric that the ranks of a recipe are compared by, if no other is asked for."""
    return recipe.train.metric or task_of(recipe.data.task).metric


def read_data_report(path: Path) -> DataReport | None:
    """Read data.json; None if it cannot be read, because it is optional for a report."""
    try:
        return DataReport.model_validate_json(path.read_text("utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        return None


def _read_curves(path: Path) -> dict[str, Curve]:
    try:
        return parse_curves(path.read_text("utf-8", errors="replace").splitlines())
    except OSError:
        return {}


def _read_logits(path: Path) -> dict[str, NDArray[np.float32]]:
    """Split -> (texts, classes) logits."""
    try:
        return safetensors.numpy.load(path.read_bytes())
    except (OSError, ValueError, KeyError, RecursionError, safetensors.SafetensorError) as error:
        raise UsageError(f"{path}: cannot be read: {error}", hint=NO_LOGITS) from None


def _read_predictions(path: Path, results: Results, task: Task) -> dict[str, SplitPredictions]:
    """Split -> its predictions from predictions.csv, whose cells `plain` restores."""
    csv.field_size_limit(LONGEST_FIELD)  # csv's default limit is 131,072 characters, and texts can be longer
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = csv.reader(file, strict=True)
        return _predictions(header, lines, results, task)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    except (ValueError, KeyError, IndexError):
        raise UsageError(f"{path}: not as the sweep wrote it", hint="run the sweep again") from None


def _predictions(
    header: Sequence[str], lines: Sequence[Sequence[str]], results: Results, task: Task
) -> dict[str, SplitPredictions]:
    """Raises ValueError, KeyError or IndexError if a column, a label or all validation texts are missing."""
    place = {name: i for i, name in enumerate(header)}
    by_split: dict[str, list[Sequence[str]]] = {"validation": []}
    for line in lines:
        by_split.setdefault(line[place["split"]], []).append(line)
    if not by_split["validation"]:
        raise ValueError("no validation texts")
    return {split: _split(place, found, results, task) for split, found in by_split.items()}


def _split(
    place: Mapping[str, int], lines: Sequence[Sequence[str]], results: Results, task: Task
) -> SplitPredictions:
    label = {name: i for i, name in enumerate(results.labels)}
    names = [row.name for row in results.adapters]

    def column(name: str) -> Iterable[str]:
        number = place[name]
        return (plain(line[number]) for line in lines)

    def predicted_by(name: str) -> Predicted:
        return _fixed(np.array([task.row(cell, label) for cell in column(name)]))

    targets = predicted_by("label")
    predicted = [predicted_by(name) for name in names]
    probability = [[float(cell) for cell in column(f"{name} probability")] for name in names]
    return SplitPredictions(
        texts=tuple(column("text")),
        places=tuple(column("source")) if "source" in place else ("",) * len(lines),
        targets=targets,
        predicted=_fixed(np.array(predicted, dtype=targets.dtype).reshape(len(names), *targets.shape)),
        probability=_fixed(np.array(probability, dtype=np.float64).reshape(len(names), len(lines))),
        baselines={row.name: predicted_by(row.name) for row in results.baselines if row.name in place},
        cuts={row.name: predicted_by(row.name) for row in results.cuts},
        task=task,
    )


def _fixed(array: NDArray[D]) -> NDArray[D]:
    """Make the array read-only."""
    array.flags.writeable = False
    return array
