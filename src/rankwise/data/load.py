"""Stage 1: files, folders or the Hub -> checked texts and labels.

Whatever they come from, texts and labels are checked in one place, and a fault is named by file
and line. Labels are strings throughout; their order, fixed here, is the order of the model's
outputs.
"""

from __future__ import annotations

import logging
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from itertools import chain
from pathlib import Path
from typing import Any
from unicodedata import category

from rankwise import hub
from rankwise.data.readers import (
    BATCH_ROWS,
    INCOMPLETE,
    SUFFIXES,
    NumberedRows,
    Origin,
    Row,
    Table,
    first_line,
    listed,
    open_table,
    short,
)
from rankwise.errors import DataError, RankwiseError, Unreachable
from rankwise.recipe import Recipe

STARTER_LABELS = ("sadness", "joy", "love", "anger", "fear", "surprise")
TEXT_COLUMNS = (
    "text", "sentence", "content", "body", "document", "tweet", "message", "review", "comment",
    "post", "utterance", "query", "question", "input", "title",
)  # fmt: skip
LABEL_COLUMNS = (
    "label", "labels", "emotion", "class", "category", "target", "sentiment", "intent", "topic",
)  # fmt: skip
SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "val", "valid", "dev"), "test": ("test",)}


@dataclass(frozen=True)
class Split:
    """Texts and their labels, as indices into `Dataset.labels`; `len()` is the number of texts."""

    name: str
    texts: list[str]
    labels: list[int]

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.texts)


@dataclass(frozen=True)
class Dataset:
    """Checked splits, the label names in the model's order, and lines worth saying to the user."""

    labels: tuple[str, ...]
    train: Split
    validation: Split
    test: Split | None
    notes: tuple[str, ...]

    @property
    def splits(self) -> list[Split]:
        """Train, validation, and test where there is one."""
        return [split for split in (self.train, self.validation, self.test) if split is not None]


def load(recipe: Recipe) -> Dataset:
    """The data that a recipe names: starter, a file, a folder or a Hub id.

    Label order: `recipe.data.labels`, else the dataset's ClassLabel, else first appearance in train.
    Without a validation split one is cut from train, stratified, by the recipe's first seed.

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
    """A file of texts and labels, to evaluate an adapter that knows `labels`, in that order.

    Raises:
        DataError: the file cannot be used, or holds a label that is not in `labels`.
    """
    part = _read(path, text_column, label_column)
    return _join(path.stem, [part], labels, "is not one of the adapter's")


def read_rows(path: Path, *, text_column: str | None = None) -> tuple[str, Iterator[list[Row]]]:
    """Any number of rows with a text in each: (name of the text column, batches of rows).

    Rows keep all their columns, and no more than `BATCH_ROWS` of them are in memory. A `.txt`
    file is one text a line, in the column `text`. The iterator reads the file from its start.

    Raises:
        DataError: the file cannot be used; from the iterator: a row or its text cannot be used.
    """
    with open_table(path, labeled=False) as table:
        column = _text_column(table.origin, table.columns, text_column)
    return column, _batches(path, column)


@dataclass(frozen=True)
class _Part:
    """One file or Hub split, read: labels are strings still, and lines are kept for messages."""

    origin: Origin
    texts: list[str]
    labels: list[str]
    lines: list[int]
    classes: Sequence[str]


# --- where the texts come from --------------------------------------------------------------


def _gather(recipe: Recipe, notes: list[str]) -> dict[str, list[_Part]]:
    """The parts of every split that the recipe's data has; train is always there."""
    on_hub = is_hub_id(recipe.data.source)
    if recipe.data.source == "starter":
        parts = _starter()
    elif on_hub:
        parts = _from_hub(recipe, notes)
    else:
        path = Path(recipe.data.source).expanduser()
        paths = _folder(path) if os.path.isdir(path) else {"train": [path]}
        columns = (recipe.data.text_column, recipe.data.label_column)
        parts = {name: [_read(file, *columns) for file in paths[name]] for name in paths}
    for name, given in (("validation", recipe.data.validation), ("test", recipe.data.test)):
        if given and (_is_path(given) or not on_hub):
            file = Path(given).expanduser()
            parts[name] = [_read(file, recipe.data.text_column, recipe.data.label_column)]
    return parts


def _is_path(value: str) -> bool:
    return value.startswith(("/", ".", "~")) or Path(value).suffix.lower() in SUFFIXES


def is_hub_id(value: str) -> bool:
    """Whether a value that is no existing path has the shape of a Hub id: name, or org/name."""
    if value == "starter" or _is_path(value) or os.path.exists(value):
        return False
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value) is not None


def _starter() -> dict[str, list[_Part]]:
    with as_file(files("rankwise") / "assets" / "starter.csv") as path, open_table(path) as table:
        rows = list(table.rows)
    parts = {}
    for name in SPLIT_NAMES:
        chosen = iter([(number, row) for number, row in rows if row["split"] == name])
        part = Table(table.origin, table.columns, chosen, {"label": STARTER_LABELS})
        parts[name] = [_collect(part, "text", "label")]
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
            hint = "leave one of them in the folder, or name the files themselves"
            several = listed(whole + shards)
            raise origin.error(f"more than one file could be the {split} split: {several}", hint=hint)
        if whole or shards:
            found[split] = [folder / name for name in whole or shards]
    if "train" not in found:
        hint = f"name the files train, validation and test, with one of {', '.join(SUFFIXES)}"
        raise origin.error(f"no training file in this folder; it holds {listed(names)}", hint=hint)
    return found


def _candidates(split: str, names: list[str]) -> tuple[list[str], list[str]]:
    """(whole files, Parquet shards) among these file names that could be this split."""
    stem = f"({'|'.join(SPLIT_NAMES[split])})"
    suffix = f"({'|'.join(map(re.escape, SUFFIXES))})"
    whole = [name for name in names if re.fullmatch(stem + suffix, name, re.IGNORECASE)]
    shards = [name for name in names if re.fullmatch(stem + r"-.+\.parquet", name, re.IGNORECASE)]
    return whole, shards


def _from_hub(recipe: Recipe, notes: list[str]) -> dict[str, list[_Part]]:
    """The splits of a Hub dataset: train, and validation and test where it has them."""
    splits = _download(recipe.data.source, recipe.data.data_config)
    given = {"train": None, "validation": recipe.data.validation, "test": recipe.data.test}
    parts = {}
    for name, wanted in given.items():
        found = None if wanted and _is_path(wanted) else _find_split(recipe.data.source, splits, name, wanted)
        if found is None:
            continue
        part = _read_hub_split(recipe, found, splits[found], optional=name == "test" and not wanted)
        if part is None:
            notes.append(
                f"the split {found} of {recipe.data.source} has no labels (all are -1) and was left out"
            )
        else:
            parts[name] = [part]
    return parts


def _find_split(data: str, splits: Mapping[str, Any], name: str, wanted: str | None) -> str | None:
    """What the Hub dataset calls this split; None where it has none and need not have one."""
    choices = (wanted,) if wanted else SPLIT_NAMES[name]
    found = next((choice for choice in choices if choice in splits), None)
    if found is None and (wanted or name == "train"):
        hint = "another configuration of it may have one (--data-config NAME)"
        raise Origin(data).error(f"no split {choices[0]!r}; it has {listed(list(splits))}", hint=hint)
    return found


def _read_hub_split(recipe: Recipe, name: str, split: Any, *, optional: bool) -> _Part | None:
    """One split, or None where it is optional and was published without its labels."""
    origin = Origin(f"{recipe.data.source}[{name}]", in_rows=True)
    text, label = _text_and_label(
        origin, split.column_names, recipe.data.text_column, recipe.data.label_column
    )
    split = split.select_columns([text, label])
    if optional and split.unique(label) == [-1]:
        return None
    names = getattr(split.features[label], "names", None) or []
    return _collect(Table(origin, [text, label], _hub_rows(split), {label: names}), text, label)


def _hub_rows(split: Any) -> NumberedRows:
    number = 0
    for batch in split.iter(BATCH_ROWS):
        for values in zip(*batch.values(), strict=True):
            number += 1
            yield number, dict(zip(batch, values, strict=True))


def _download(name: str, config: str | None) -> Mapping[str, Any]:
    """All splits of a Hub dataset, from the cache or the Hub. The library runs no dataset's own code."""
    import datasets

    logger = logging.getLogger("huggingface_hub")  # it warns of each of six attempts; we say it once
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        splits: Mapping[str, Any] = datasets.load_dataset(name, config)
    except Exception as error:  # the library's own, the Hub client's, the HTTP client's, ValueErrors
        raise _hub_error(name, error) from None
    finally:
        logger.setLevel(level)
    return splits


def _hub_error(name: str, error: BaseException) -> RankwiseError:
    from datasets import config
    from datasets.exceptions import DatasetNotFoundError

    if broken := hub.disk_error(name, error):
        return broken
    if hub.is_outage(error):
        why = "HF_HUB_OFFLINE is set, and it is not in the cache" if config.HF_HUB_OFFLINE else "no answer"
        hint = "try again with a connection, or give a file or folder as the data (--data PATH)"
        return Unreachable(f"{name}: no such path here, and the Hub cannot be reached: {why}", hint=hint)
    if isinstance(error, DatasetNotFoundError):
        hint = "check the name; for a private or gated dataset log in first (hf auth login)"
        return DataError("no such file or folder, and no such dataset on the Hub", path=name, hint=hint)
    hint = "name a configuration it has (--data-config NAME), or give a file or folder as the data"
    return DataError(f"the dataset cannot be loaded: {first_line(error)}", path=name, hint=hint)


# --- rows to texts and labels ---------------------------------------------------------------


def _read(path: Path, text_column: str | None, label_column: str | None) -> _Part:
    with open_table(path) as table:
        text, label = _text_and_label(table.origin, table.columns, text_column, label_column)
        return _collect(table, text, label)


def _text_and_label(
    origin: Origin, columns: list[str], text: str | None, label: str | None
) -> tuple[str, str]:
    """(text column, label column): as given, by their usual names, or the other one of two."""
    text = _given(origin, columns, text) or _usual(TEXT_COLUMNS, columns, besides=label)
    label = _given(origin, columns, label) or _usual(LABEL_COLUMNS, columns, besides=text)
    text = text or _other(columns, label)
    label = label or _other(columns, text)
    if text is None or label is None:
        raise _unnamed(origin, columns, "text" if text is None else "label")
    if text == label:
        raise origin.error(f"the column {short(text)} cannot be both text and label")
    return text, label


def _text_column(origin: Origin, columns: list[str], text: str | None) -> str:
    text = _given(origin, columns, text) or _usual(TEXT_COLUMNS, columns, besides=None)
    text = text or _other(columns, _usual(LABEL_COLUMNS, columns, besides=None))
    if text is None and len(columns) == 1:
        text = columns[0]
    if text is None:
        raise _unnamed(origin, columns, "text")
    return text


def _unnamed(origin: Origin, columns: list[str], what: str) -> DataError:
    message = f"no column for the {what} is known by its name; the columns are {listed(columns)}"
    hint = f"name it: --{what}-column NAME; the file's first line must hold the names"
    if len(columns) == 1 and (sign := next((sign for sign in ";\t|" if sign in columns[0]), None)):
        hint = f"the separator seems to be {sign!r}: .csv has commas, .tsv has tabs, .txt is text;label"
    return origin.error(message, hint=hint)


def _given(origin: Origin, columns: list[str], name: str | None) -> str | None:
    if name is not None and name not in columns:
        raise origin.error(f"no column {short(name)}; the columns are {listed(columns)}")
    return name


def _usual(names: tuple[str, ...], columns: list[str], *, besides: str | None) -> str | None:
    by_name = {column.lower(): column for column in reversed(columns) if column != besides}
    return next((by_name[name] for name in names if name in by_name), None)


def _other(columns: list[str], column: str | None) -> str | None:
    """The second of two columns, where the first is known."""
    if len(columns) != 2 or column is None:
        return None
    return columns[1] if columns[0] == column else columns[0]


def _collect(table: Table, text_column: str, label_column: str) -> _Part:
    """All rows of a table, each text and label checked."""
    origin, names = table.origin, table.classes.get(label_column, ())
    texts: list[str] = []
    labels: list[str] = []
    lines: list[int] = []
    once: dict[str, str] = {}  # of a million equal labels one string is kept
    for number, row in table.rows:
        texts.append(_text_of(origin, number, row, text_column))
        label = _label_of(origin, number, row, label_column, names)
        labels.append(once.setdefault(label, label))
        lines.append(number)
    if not texts:
        raise origin.error("there are no texts in it", hint=INCOMPLETE)
    return _Part(origin, texts, labels, lines, names)


def _batches(path: Path, column: str) -> Iterator[list[Row]]:
    with open_table(path, labeled=False) as table:
        batch: list[Row] = []
        number = 0
        for number, row in table.rows:
            _text_of(table.origin, number, row, column)
            batch.append(row)
            if len(batch) == BATCH_ROWS:
                yield batch
                batch = []
        if batch:
            yield batch
        if not number:
            raise table.origin.error("there are no texts in it", hint=INCOMPLETE)


def _text_of(origin: Origin, number: int, row: Row, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        what = "missing" if value is None else f"of type {type(value).__name__}, not a string"
        hint = "give it a text, or take the row out; the column of the texts is named by --text-column NAME"
        raise origin.error(f"the text is {what}", number, column=column, hint=hint)
    if not value.strip():
        hint = "give it a text, or take the line out"
        raise origin.error("the text is empty", number, column=column, hint=hint)
    return _encodable(origin, number, value, column)


def _label_of(origin: Origin, number: int, row: Row, column: str, names: Sequence[str]) -> str:
    """A label as a string: 1 and 1.0 -> '1', True -> 'true', the index of a ClassLabel -> its name."""
    value = row.get(column)
    if isinstance(value, str):
        label = value.strip()
    elif isinstance(value, bool):
        label = str(value).lower()
    elif isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        if names and not 0 <= value < len(names):
            what = f"the label {short(value)} is outside 0 to {len(names) - 1}"
            hint = "the data names its classes, and this is none of them; -1 stands for a row without label"
            raise origin.error(what, number, column=column, hint=hint)
        label = names[int(value)] if names else str(int(value))
    else:
        what = "missing" if value is None else f"{short(value)}, neither a string nor a whole number"
        hint = "give it a label, or take the row out; labels are strings, whole numbers, true or false"
        raise origin.error(f"the label is {what}", number, column=column, hint=hint)
    if not label:
        hint = "give it a label, or take the line out"
        raise origin.error("the label is empty", number, column=column, hint=hint)
    if not label.isprintable() and any(category(sign) == "Cc" for sign in label):
        hint = "is a quotation mark left open, or is this the column of the texts?"
        what = f"the label {short(label)} holds a control character"
        raise origin.error(what, number, column=column, hint=hint)
    return _encodable(origin, number, label, column)


def _encodable(origin: Origin, number: int, value: str, column: str) -> str:
    """The value, unless it holds a NUL or a lone surrogate: JSON allows both, other formats do not."""
    if "\0" in value:
        raise origin.error("a NUL, which no text holds", number, column=column, hint="take it out")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            what = f"\\u{ord(value[error.start]):04x}, half of a surrogate pair, is no character"
            hint = "the text was cut inside a character: write that character whole, or leave it out"
            raise origin.error(what, number, column=column, hint=hint) from None
    return value


# --- parts to splits ------------------------------------------------------------------------


def _label_order(train: list[_Part]) -> tuple[str, ...]:
    declared = next((part.classes for part in train if part.classes), ())
    return tuple(declared or dict.fromkeys(chain.from_iterable(part.labels for part in train)))


def _join(name: str, parts: list[_Part], labels: tuple[str, ...], why: str) -> Split:
    """Parts joined, labels turned into indices; `why` a label that is not in `labels` is refused."""
    index = {label: position for position, label in enumerate(labels)}
    for part in parts:
        if not index.keys() >= set(part.labels):
            at = next(at for at, label in enumerate(part.labels) if label not in index)
            what = f"the label {short(part.labels[at])} {why}; the labels are {listed(labels)}"
            hint = "labels are told apart by case and spelling"
            raise part.origin.error(what, part.lines[at], hint=hint)
    texts = list(chain.from_iterable(part.texts for part in parts))
    return Split(name, texts, [index[label] for part in parts for label in part.labels])


def _check_classes(train: Split, labels: tuple[str, ...], where: Origin) -> list[str]:
    """Notes on labels without a training text; an error where all texts share one label."""
    used = set(train.labels)
    if len(used) == 1:
        hint = "a classifier needs texts of at least two labels"
        raise where.error(f"one class only: every text has the label {short(labels[used.pop()])}", hint=hint)
    missing = [label for index, label in enumerate(labels) if index not in used]
    return [f"no training text has the label {listed(missing)}"] if missing else []


def _cut(train: Split, labels: tuple[str, ...], recipe: Recipe, where: Origin) -> tuple[Split, Split, str]:
    """(train, validation, note): a share of each class set aside, by that class and the seed alone."""
    fraction, seed = recipe.data.validation_fraction, recipe.train.seeds[0]
    aside: set[int] = set()
    members: list[list[int]] = [[] for _ in labels]
    for row, index in enumerate(train.labels):
        members[index].append(row)
    for label, rows in zip(labels, members, strict=True):
        if len(rows) == 1:
            hint = "add texts of this label, or give a validation file (--validation FILE)"
            what = f"only one text has the label {short(label)}: none can be set aside for validation"
            raise where.error(what, hint=hint)
        if rows:
            size = min(max(1, round(fraction * len(rows))), len(rows) - 1)
            aside.update(random.Random(f"{seed} {label}").sample(rows, size))
    note = (
        f"no validation split: {len(aside):,} of {len(train):,} training texts were set aside for it, "
        f"{fraction * 100:g} % of each class, seed {seed}"
    )
    kept = [row for row in range(len(train)) if row not in aside]
    return _pick(train, "train", kept), _pick(train, "validation", sorted(aside)), note


def _pick(split: Split, name: str, rows: list[int]) -> Split:
    return Split(name, [split.texts[row] for row in rows], [split.labels[row] for row in rows])
