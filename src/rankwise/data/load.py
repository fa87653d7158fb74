"""Stage 1: load and validate texts and labels from files, folders or the Hub.

Texts and labels are validated in one place regardless of their source, and errors give the file
and line. Labels are strings throughout; their order, fixed here, is the order of the model's
outputs.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib.resources import as_file, files
from itertools import chain
from pathlib import Path

from rankwise.data.columns import (
    USUAL,
    LabeledRows,
    Wanted,
    collect,
    is_path,
    is_unlabeled,
    text_and_label,
    without_labels,
)
from rankwise.data.folders import files_of, piece_note, unread_note
from rankwise.data.hub import from_disk, from_hub, is_saved_dataset
from rankwise.data.labels import WHOLE, alike, in_order, joined_label, look_alikes, renamed, whole_numbers
from rankwise.data.memory import PAIR, from_memory, read_table, write_table
from rankwise.data.names import SPLIT_NAMES
from rankwise.data.pairs import joined_name, with_pairs
from rankwise.data.readers import open_table
from rankwise.data.tables import Origin, listed, short
from rankwise.errors import DataError, option
from rankwise.in_memory import InMemory
from rankwise.recipe import OTHER_TASKS, Recipe
from rankwise.schema import SourceReport
from rankwise.tasks.labels import FEWEST, ONE_LABEL, SEPARATOR, Label, LabelIds, Labels, labels_of

MOST_NUMBERS = 20
"""Largest number of classes that may be numbers with decimals."""
FEWEST_SHARING = 2
"""Smallest mean number of texts per class, if all classes are whole numbers."""
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
STARTER_LABELS = ("sadness", "joy", "love", "anger", "fear", "surprise")
Parts = dict[str, list[LabeledRows]]
"""Split -> the files or pieces that it was read from."""


@dataclass(frozen=True)
class Split:
    """Texts and their labels, as indices into `Dataset.labels`; `len()` is the number of texts.

    A text of a multi-label data set has a tuple of labels.
    """

    name: str
    texts: list[str]
    labels: list[LabelIds]
    places: list[str] = field(default_factory=list, compare=False)
    """Where each text was read, such as `train.csv:12`; empty if unknown."""

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.texts)


@dataclass(frozen=True)
class Dataset:
    """Validated splits, label names in model output order, notes for the user, and what was read."""

    labels: tuple[str, ...]
    train: Split
    validation: Split
    test: Split | None
    notes: tuple[str, ...]
    sources: tuple[SourceReport, ...] = ()
    task: Labels = ONE_LABEL

    @property
    def splits(self) -> list[Split]:
        """Train, validation and, if present, test."""
        return [split for split in (self.train, self.validation, self.test) if split is not None]


def load(recipe: Recipe) -> Dataset:
    """Load the data of a recipe: starter, a file, a folder or a Hub id.

    Label order: `recipe.data.labels`, else the dataset's ClassLabel, else numeric for whole numbers, else
    first appearance in train. If there is no validation split, a stratified sample of train is held out with
    the first seed.

    Raises:
        DataError: a file, split, column, text or label cannot be used.
        Unreachable: the data is on the Hub, and the Hub does not answer.
    """
    notes: list[str] = []
    parts = _parts(recipe, notes)
    task = wanted_of(recipe).task
    labels = recipe.data.labels or _label_order(parts["train"], task)
    if not recipe.data.labels:
        _refuse_numbers(labels, parts["train"])
    why = "is not among the labels given" if recipe.data.labels else "has no training text"
    splits = {name: _join(name, parts[name], labels, why, task) for name in SPLIT_NAMES if name in parts}
    train, where = splits["train"], parts["train"][0].origin
    notes += look_alikes(labels, chain.from_iterable(task.named(ids, labels) for ids in train.labels))
    notes += _check_classes(train, labels, where, task)
    notes += _joined(labels, task)
    validation = splits.get("validation")
    if validation is None:
        train, validation, note = _cut(train, labels, recipe, where, task)
        notes.append(note)
    notes += _default_thresholds(validation, labels, task)
    distinct = tuple(dict.fromkeys(notes))  # a file may be read for two splits
    return Dataset(labels, train, validation, splits.get("test"), distinct, tuple(_sources(parts)), task)


def _default_thresholds(validation: Split, labels: tuple[str, ...], task: Labels) -> list[str]:
    """A note on the labels whose thresholds cannot be chosen on the validation texts."""
    found = task.untunable(validation.labels, len(labels))
    if not found:
        return []
    few = listed([labels[i] for i in found])
    return [
        f"fewer than {FEWEST} validation texts have, or lack, these labels, so their threshold is 0.5: {few}"
    ]


def store(recipe: Recipe, folder: Path) -> Recipe:
    """Write a recipe's texts and labels to Parquet files, one for each split.

    Returns:
        The recipe that reads these files.
    """
    for name, parts in _parts(recipe, []).items():
        pair = recipe.data.text_columns
        write_table(folder / f"{name}.parquet", parts, joined_name(pair) if pair else PAIR[0])
    return reading(recipe, folder)


def reading(recipe: Recipe, folder: Path) -> Recipe:
    """A recipe that reads the files that `store` has written, and is otherwise the same."""
    elsewhere = ("validation", "test", "data_config", "text_column", "label_column")
    return recipe.replace(data=str(folder.absolute()), **dict.fromkeys(elsewhere))


def is_stored(recipe: Recipe, folder: Path) -> bool:
    """Whether the files that `store` has written contain a recipe's texts and labels."""
    given, stored = (_parts(each, []) for each in (recipe, reading(recipe, folder)))
    return _contents(given) == _contents(stored)


def _contents(splits: dict[str, list[LabeledRows]]) -> dict[str, list[tuple[str, Label]]]:
    return {
        name: [row for part in parts for row in zip(part.texts, part.labels, strict=True)]
        for name, parts in splits.items()
    }


def read_labeled(
    path: Path | InMemory,
    labels: tuple[str, ...],
    *,
    wanted: Wanted = USUAL,
    notes: list[str] | None = None,
) -> Split:
    """Read a labeled file or table to evaluate an adapter whose labels are `labels`, in that order.

    What was read, and notes on it, are added to `notes`.

    Raises:
        DataError: the file cannot be used, or contains a label that is not in `labels`.
    """
    found: list[str] = []
    part = _read(path, wanted, found)
    found += piece_note(part.origin)
    part = renamed(part, whole_numbers([part], wanted.task, [], labels))
    found[:0] = [said(_source("", part))]
    if part.splits:
        several = {name: part.splits.count(name) for name in SPLIT_NAMES if name in part.splits}
        shares = ", ".join(f"{rows:,} {name}" for name, rows in several.items())
        found.append(part.origin.note(f"all rows are used, whatever their split: {shares}"))
    if notes is not None:
        notes += found
    name = path.stem if isinstance(path, Path) else "data"
    return _join(name, [part], labels, "is not one of the adapter's", wanted.task)


def said(source: SourceReport) -> str:
    """What was read from a source, in a line."""
    use = f" for {source.split}" if source.split else ""
    line = f"{source.name}: {source.texts:,} texts{use}"
    if source.text_column is not None:
        line += f"; text: {source.text_column}, label: {source.label_column}"
    return line + (f"; not used: {listed(source.unused_columns)}" if source.unused_columns else "")


def _source(split: str, part: LabeledRows) -> SourceReport:
    columns = part.columns
    return SourceReport(
        name=part.origin.name,
        split=split,
        texts=len(part.texts),
        text_column=columns.text if columns else None,
        label_column=columns.label if columns else None,
        unused_columns=list(columns.unused) if columns else [],
    )


def _sources(parts: Parts) -> Iterable[SourceReport]:
    return (_source(split, part) for split in SPLIT_NAMES for part in parts.get(split, []))


def _parts(recipe: Recipe, notes: list[str]) -> Parts:
    """Split -> its rows, divided by a column `split`, without a test split that has no labels."""
    parts = _in_whole_numbers(_by_split_column(_gather(recipe, notes)), recipe, notes)
    _leave_out_unlabeled(parts, notes)
    return parts


def _gather(recipe: Recipe, notes: list[str]) -> Parts:
    """Split -> its files or pieces, for every split of the recipe's data; always includes train."""
    source, wanted = recipe.data.source, wanted_of(recipe)
    on_hub = isinstance(source, str) and is_hub_id(source)
    path = Path(recipe.data.name).expanduser()
    saved = not isinstance(source, InMemory) and is_saved_dataset(path)
    if isinstance(source, InMemory):
        parts = from_memory(source, wanted, notes)
    elif source == "starter":
        parts = _starter()
    elif on_hub:
        parts = from_hub(recipe, notes)
    elif saved:
        parts = from_disk(recipe, path, notes)
    else:
        parts = _from_files(recipe, path, notes)
    for name, given in (("validation", recipe.data.validation), ("test", recipe.data.test)):
        if isinstance(given, InMemory):
            parts[name] = [_read(given, wanted, notes)]
        elif given and (is_path(given) or not (on_hub or saved)):
            parts[name] = [_read(Path(given).expanduser(), wanted, notes)]
            notes += piece_note(parts[name][0].origin)
    return parts


def _from_files(recipe: Recipe, path: Path, notes: list[str]) -> Parts:
    """The splits of a file or a folder of files."""
    in_folder = os.path.isdir(path)
    wanted = wanted_of(recipe)
    parts: Parts = {}
    found = files_of(path) if in_folder else {"train": [path]}
    for split, paths in found.items():
        explicit = recipe.data.validation if split == "validation" else recipe.data.test
        if split != "train" and explicit:
            continue
        optional = split == "test"
        for each in paths:
            part = _read_test(each, wanted, parts, notes) if optional else _read(each, wanted, notes)
            parts.setdefault(split, []).extend([part] if part else [])
    if in_folder:
        given = (each for each in (recipe.data.validation, recipe.data.test) if isinstance(each, str))
        notes += unread_note(path, (*chain.from_iterable(found.values()), *map(Path, given)))
    else:
        notes += piece_note(parts["train"][0].origin)
    return parts


def is_hub_id(value: str) -> bool:
    """Whether a value is not an existing path and has the form of a Hub id: name or org/name."""
    if value == "starter" or is_path(value) or os.path.exists(value):
        return False
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value) is not None


def _starter() -> Parts:
    with as_file(files("rankwise") / "assets" / "starter.csv") as path:
        part = _read(path, Wanted("text", "label"), [])
    return {"train": [replace(part, classes=STARTER_LABELS)]}


def _read(path: Path | InMemory, wanted: Wanted, notes: list[str]) -> LabeledRows:
    if isinstance(path, InMemory):
        return read_table(path.value, "data", wanted)
    with open_table(path) as table:
        paired = with_pairs(table, wanted.pair)
        text, label = text_and_label(table.origin, paired.columns, wanted.text, wanted.label)
        part = collect(paired, text, label, wanted.task)
    notes += table.notes
    return part


def _read_test(path: Path, wanted: Wanted, parts: Parts, notes: list[str]) -> LabeledRows | None:
    """The test file of a folder; None if it has no label column. Labels may be missing."""
    with open_table(path) as table:
        origin = table.origin
        if none := without_labels(origin, table.columns, wanted, parts["train"][0]):
            notes += none
            return None
        paired = with_pairs(table, wanted.pair)
        text, label = text_and_label(origin, paired.columns, wanted.text, wanted.label)
        part = collect(paired, text, label, wanted.task, optional=True)
    notes += table.notes
    return part


def _by_split_column(parts: Parts) -> Parts:
    """Move rows to the splits that their column `split` names.

    Raises:
        DataError: a row of a file names another split than the file does, or no row is for training.
    """
    moved: Parts = {}
    for split, several in parts.items():
        for part in several:
            for named, piece in _divided(part, split).items():
                if named != split and (split != "train" or named in parts):
                    what = f"the column split says {named}, but this file is the {split} split"
                    hint = "rename the column, or move the row to another file"
                    raise piece.origin.error(what, piece.lines[0], hint=hint)
                moved.setdefault(named, []).append(piece)
    if "train" not in moved:
        hint = "rows of train have the value train in the column split"
        raise parts["train"][0].origin.error("no row is for training", hint=hint)
    return moved


def _divided(part: LabeledRows, split: str) -> dict[str, LabeledRows]:
    """The rows of a part for each split; all for `split` if there is no split column."""
    if not part.splits:
        return {split: part}
    members = {name: [at for at, row in enumerate(part.splits) if row == name] for name in set(part.splits)}
    return {
        name: replace(
            part,
            texts=[part.texts[at] for at in rows],
            labels=[part.labels[at] for at in rows],
            lines=[part.lines[at] for at in rows],
            splits=[name] * len(rows),
        )
        for name, rows in members.items()
    }


def wanted_of(recipe: Recipe) -> Wanted:
    """What a recipe reads of each table."""
    given = recipe.data
    task = labels_of(given.task, given.label_separator)
    pair = given.text_columns or ()
    return Wanted(joined_name(pair) if pair else given.text_column, given.label_column, task, pair)


def _in_whole_numbers(parts: Parts, recipe: Recipe, notes: list[str]) -> Parts:
    """Read labels such as 1.0 as 1 in all splits, if the labels are whole numbers."""
    everything = chain.from_iterable(parts.values())
    numbers = whole_numbers(everything, wanted_of(recipe).task, parts["train"], recipe.data.labels or ())
    if numbers:
        notes.append(f"labels such as {max(numbers)} are read as whole numbers")
    return {split: [renamed(part, numbers) for part in several] for split, several in parts.items()}


def _leave_out_unlabeled(parts: Parts, notes: list[str]) -> None:
    """Leave out a test split without labels: all of them are empty, or -1 without such a class in train.

    Raises:
        DataError: only some of them are, and each text must have a label.
    """
    test = parts.get("test", [])
    trained: set[Label] = {label for part in parts["train"] for label in part.labels}
    none = {label for part in test for label in part.labels if is_unlabeled(label) and label not in trained}
    unlabeled = [label in none or label == () for part in test for label in part.labels]
    if not any(unlabeled):
        return
    if all(unlabeled):
        notes.append(test[0].origin.note("no test text has a label, so there is no test split"))
        del parts["test"]
        return
    for part in test:
        for label, line in zip(part.labels, part.lines, strict=True):
            if label in none:
                hint = "give all test texts a label, or none of them"
                raise part.origin.error(
                    "the label is missing, but other test texts have one", line, hint=hint
                )


def _label_order(train: list[LabeledRows], task: Labels) -> tuple[str, ...]:
    declared = next((part.classes for part in train if part.classes), ())
    return tuple(declared) or in_order(
        name for part in train for label in part.labels for name in task.names(label)
    )


def _join(name: str, parts: list[LabeledRows], labels: tuple[str, ...], why: str, task: Labels) -> Split:
    """Concatenate parts and map labels to indices. `why` completes the error for an unknown label."""
    index = {label: position for position, label in enumerate(labels)}
    for part in parts:
        for label in dict.fromkeys(part.labels):
            if unknown := [each for each in task.names(label) if each not in index]:
                raise _unknown(part, part.labels.index(label), unknown[0], labels, why)
    texts = list(chain.from_iterable(part.texts for part in parts))
    places = [part.origin.place(line) for part in parts for line in part.lines]
    return Split(name, texts, [task.ids(label, index) for part in parts for label in part.labels], places)


def _unknown(part: LabeledRows, at: int, label: str, labels: tuple[str, ...], why: str) -> DataError:
    what = f"the label {short(label)} {why}; the labels are {listed(labels)}"
    twin = next((each for each in labels if alike(each) == alike(label)), None)
    hint = f"it looks like {twin!a}, but is {label!a}" if twin else "labels are case-sensitive"
    return part.origin.error(what, part.lines[at], hint=hint)


def _refuse_numbers(labels: tuple[str, ...], train: list[LabeledRows]) -> None:
    """Raise a DataError if the labels are numbers to predict rather than classes.

    They are if many are not whole, or if hardly two texts share one.
    """
    if len(labels) <= MOST_NUMBERS or not all(map(NUMBER.fullmatch, labels)):
        return
    whole = all(map(WHOLE.fullmatch, labels))
    if whole and sum(len(part.texts) for part in train) >= FEWEST_SHARING * len(labels):
        return
    what = f"the labels are {len(labels):,} different numbers, which looks like regression"
    raise train[0].origin.error(what, hint=OTHER_TASKS["regression"])


def _check_classes(train: Split, labels: tuple[str, ...], where: Origin, task: Labels) -> list[str]:
    """Notes on labels without training texts. Raises DataError if there is nothing to tell apart."""
    distinct = set(train.labels)
    used = {name for ids in distinct for name in task.named(ids, labels)}
    if len(distinct) == 1:
        hint = "a classifier needs texts with at least two labels"
        same = ", ".join(map(short, sorted(used)))
        what = f"has the label{'s' * (len(used) > 1)} {same}" if used else "has no label"
        raise where.error(f"only one class: every text {what}", hint=hint)
    missing = [label for label in labels if label not in used]
    return [f"no training text has the label {listed(missing)}"] if missing else []


def _joined(labels: tuple[str, ...], task: Labels) -> list[str]:
    """A note on a label that seems to be several labels of a text."""
    found = None if task.several else joined_label(labels)
    if found is None:
        return []
    label, sign = found
    way = option("task", "multi-label")
    if sign != SEPARATOR:
        way += f" and {option('label_separator', sign)}"
    return [f"the label {short(label)} joins other labels; if a text can have several: {way}"]


def _cut(
    train: Split, labels: tuple[str, ...], recipe: Recipe, where: Origin, task: Labels
) -> tuple[Split, Split, str]:
    """(train, validation, note). The sample of each class depends only on that class and the seed.

    A text with several labels is a text of the rarest of them.
    """
    fraction, seed = recipe.data.validation_fraction, recipe.train.seeds[0]
    aside: set[int] = set()
    members: list[list[int]] = [[] for _ in (*labels, "")]  # the last one: texts without a label
    for row, index in enumerate(task.strata(train.labels)):
        members[index].append(row)
    for label, rows in zip((*labels, ""), members, strict=True):
        if len(rows) == 1 and not task.several:
            usual = f"add texts with this label, or pass a validation file ({option('validation', 'FILE')})"
            hint = "; ".join(_joined(labels, task)) or usual
            what = f"only one text has the label {short(label)}: none can be held out for validation"
            raise where.error(what, hint=hint)
        if rows:
            size = min(max(1, round(fraction * len(rows))), len(rows) - 1)
            aside.update(random.Random(f"{seed} {label}").sample(rows, size))
    note = (
        f"no validation split: {len(aside):,} of {len(train):,} training texts were held out for it, "
        f"{fraction * 100:g} % of each class, seed {seed}"
    )
    kept = [row for row in range(len(train)) if row not in aside]
    return _pick(train, "train", kept), _pick(train, "validation", sorted(aside)), note


def _pick(split: Split, name: str, rows: list[int]) -> Split:
    places = [split.places[row] for row in rows] if split.places else []
    return Split(name, [split.texts[row] for row in rows], [split.labels[row] for row in rows], places)
