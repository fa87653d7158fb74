"""Stage 1: load and validate texts and labels from files, folders or the Hub.

Texts and labels are validated in one place regardless of their source, and errors give the file
and line. Labels are strings throughout; their order, fixed here, is the order of the model's
outputs.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from itertools import chain
from pathlib import Path

from rankwise.data.columns import (
    SPLIT_NAMES,
    LabeledRows,
    collect,
    find_text_column,
    is_path,
    text_and_label,
    text_of,
)
from rankwise.data.hub import from_hub
from rankwise.data.readers import (
    BATCH_ROWS,
    INCOMPLETE,
    SUFFIXES,
    Origin,
    Row,
    Table,
    listed,
    open_table,
    short,
)
from rankwise.recipe import Recipe

STARTER_LABELS = ("sadness", "joy", "love", "anger", "fear", "surprise")


@dataclass(frozen=True)
class Split:
    """Texts and their labels, as indices into `Dataset.labels`; `len()` is the number of texts."""

    name: str
    texts: list[str]
    labels: list[int]
    places: list[str] = field(default_factory=list, compare=False)
    """Where each text was read, such as `train.csv:12`; empty if unknown."""

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.texts)


@dataclass(frozen=True)
class Dataset:
    """Validated splits, label names in model output order, and notes for the user."""

    labels: tuple[str, ...]
    train: Split
    validation: Split
    test: Split | None
    notes: tuple[str, ...]

    @property
    def splits(self) -> list[Split]:
        """Train, validation and, if present, test."""
        return [split for split in (self.train, self.validation, self.test) if split is not None]


def load(recipe: Recipe) -> Dataset:
    """Load the data of a recipe: starter, a file, a folder or a Hub id.

    Label order: `recipe.data.labels`, else the dataset's ClassLabel, else first appearance in train.
    If there is no validation split, a stratified sample of train is held out with the first seed.

    Raises:
        DataError: a file, split, column, text or label cannot be used.
        Unreachable: the data is on the Hub, and the Hub does not answer.
    """
    notes: list[str] = []
    parts = _gather(recipe, notes)
    labels = recipe.data.labels or _label_order(parts["train"])
    why = "is not among the labels given" if recipe.data.labels else "has no training text"
    splits = {name: _join(name, parts[name], labels, why) for name in SPLIT_NAMES if name in parts}
    train, where = splits["train"], parts["train"][0].origin
    notes += _check_classes(train, labels, where)
    validation = splits.get("validation")
    if validation is None:
        train, validation, note = _cut(train, labels, recipe, where)
        notes.append(note)
    return Dataset(labels, train, validation, splits.get("test"), tuple(notes))


def read_labeled(
    path: Path,
    labels: tuple[str, ...],
    *,
    text_column: str | None = None,
    label_column: str | None = None,
) -> Split:
    """Read a labeled file to evaluate an adapter whose labels are `labels`, in that order.

    Raises:
        DataError: the file cannot be used, or contains a label that is not in `labels`.
    """
    part = _read(path, text_column, label_column)
    return _join(path.stem, [part], labels, "is not one of the adapter's")


def read_rows(path: Path, *, text_column: str | None = None) -> tuple[str, Iterator[list[Row]]]:
    """Read rows lazily: (name of the text column, batches of rows).

    Rows keep all their columns, and at most `BATCH_ROWS` rows are in memory. A `.txt` file has one
    text per line, in the column `text`. The iterator reads the file from its start.

    Raises:
        DataError: the file cannot be used; while iterating, a row or its text cannot be used.
    """
    with open_table(path, labeled=False) as table:
        column = find_text_column(table.origin, table.columns, text_column)
    return column, _batches(path, column)


def _gather(recipe: Recipe, notes: list[str]) -> dict[str, list[LabeledRows]]:
    """Split -> its files or shards, for every split of the recipe's data; always includes train."""
    on_hub = is_hub_id(recipe.data.source)
    if recipe.data.source == "starter":
        parts = _starter()
    elif on_hub:
        parts = from_hub(recipe, notes)
    else:
        path = Path(recipe.data.source).expanduser()
        paths = _folder(path) if os.path.isdir(path) else {"train": [path]}
        columns = (recipe.data.text_column, recipe.data.label_column)
        parts = {name: [_read(file, *columns) for file in paths[name]] for name in paths}
    for name, given in (("validation", recipe.data.validation), ("test", recipe.data.test)):
        if given and (is_path(given) or not on_hub):
            file = Path(given).expanduser()
            parts[name] = [_read(file, recipe.data.text_column, recipe.data.label_column)]
    return parts


def is_hub_id(value: str) -> bool:
    """Whether a value is not an existing path and has the form of a Hub id: name or org/name."""
    if value == "starter" or is_path(value) or os.path.exists(value):
        return False
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value) is not None


def _starter() -> dict[str, list[LabeledRows]]:
    with as_file(files("rankwise") / "assets" / "starter.csv") as path, open_table(path) as table:
        rows = list(table.rows)
    parts = {}
    for name in SPLIT_NAMES:
        chosen = iter([(number, row) for number, row in rows if row["split"] == name])
        part = Table(table.origin, table.columns, chosen, {"label": STARTER_LABELS})
        parts[name] = [collect(part, "text", "label")]
    return parts


def _folder(folder: Path) -> dict[str, list[Path]]:
    """The files of each split in a folder: one file, or the Parquet shards that make it up."""
    origin = Origin(folder)
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise origin.error(f"the folder cannot be read: {error.strerror}") from None
    found: dict[str, list[Path]] = {}
    for split in SPLIT_NAMES:
        whole, shards = _candidates(split, names)
        if len(whole) > 1 or (whole and shards):
            hint = "keep only one of them in the folder, or pass the files explicitly"
            several = listed(whole + shards)
            raise origin.error(f"more than one file could be the {split} split: {several}", hint=hint)
        if whole or shards:
            found[split] = [folder / name for name in whole or shards]
    if "train" not in found:
        hint = f"name the files train, validation and test, with one of {', '.join(SUFFIXES)}"
        raise origin.error(f"no training file in this folder; it contains {listed(names)}", hint=hint)
    return found


def _candidates(split: str, names: list[str]) -> tuple[list[str], list[str]]:
    """(single files, Parquet shards) among these file names that match this split."""
    stem = f"({'|'.join(SPLIT_NAMES[split])})"
    suffix = f"({'|'.join(map(re.escape, SUFFIXES))})"
    whole = [name for name in names if re.fullmatch(stem + suffix, name, re.IGNORECASE)]
    shards = [name for name in names if re.fullmatch(stem + r"-.+\.parquet", name, re.IGNORECASE)]
    return whole, shards


def _read(path: Path, text_column: str | None, label_column: str | None) -> LabeledRows:
    with open_table(path) as table:
        text, label = text_and_label(table.origin, table.columns, text_column, label_column)
        return collect(table, text, label)


def _batches(path: Path, column: str) -> Iterator[list[Row]]:
    with open_table(path, labeled=False) as table:
        batch: list[Row] = []
        number = 0
        for number, row in table.rows:
            text_of(table.origin, number, row, column)
            batch.append(row)
            if len(batch) == BATCH_ROWS:
                yield batch
                batch = []
        if batch:
            yield batch
        if not number:
            raise table.origin.error("the file has no texts", hint=INCOMPLETE)


def _label_order(train: list[LabeledRows]) -> tuple[str, ...]:
    declared = next((part.classes for part in train if part.classes), ())
    return tuple(declared or dict.fromkeys(chain.from_iterable(part.labels for part in train)))


def _join(name: str, parts: list[LabeledRows], labels: tuple[str, ...], why: str) -> Split:
    """Concatenate parts and map labels to indices. `why` completes the error for an unknown label."""
    index = {label: position for position, label in enumerate(labels)}
    for part in parts:
        if not index.keys() >= set(part.labels):
            at = next(at for at, label in enumerate(part.labels) if label not in index)
            what = f"the label {short(part.labels[at])} {why}; the labels are {listed(labels)}"
            hint = "labels are case-sensitive"
            raise part.origin.error(what, part.lines[at], hint=hint)
    texts = list(chain.from_iterable(part.texts for part in parts))
    places = [part.origin.place(line) for part in parts for line in part.lines]
    return Split(name, texts, [index[label] for part in parts for label in part.labels], places)


def _check_classes(train: Split, labels: tuple[str, ...], where: Origin) -> list[str]:
    """Notes on labels without training texts. Raises DataError if all texts share one label."""
    used = set(train.labels)
    if len(used) == 1:
        hint = "a classifier needs texts with at least two labels"
        raise where.error(f"only one class: every text has the label {short(labels[used.pop()])}", hint=hint)
    missing = [label for index, label in enumerate(labels) if index not in used]
    return [f"no training text has the label {listed(missing)}"] if missing else []


def _cut(train: Split, labels: tuple[str, ...], recipe: Recipe, where: Origin) -> tuple[Split, Split, str]:
    """(train, validation, note). The sample of each class depends only on that class and the seed."""
    fraction, seed = recipe.data.validation_fraction, recipe.train.seeds[0]
    aside: set[int] = set()
    members: list[list[int]] = [[] for _ in labels]
    for row, index in enumerate(train.labels):
        members[index].append(row)
    for label, rows in zip(labels, members, strict=True):
        if len(rows) == 1:
            hint = "add texts with this label, or pass a validation file (--validation FILE)"
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
