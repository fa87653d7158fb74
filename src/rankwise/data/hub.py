"""Datasets of the datasets library, from the Hub or a folder. Code in a dataset repository is never run."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankwise import hub
from rankwise.data.columns import LabeledRows, Wanted, collect, is_path, text_and_label, without_labels
from rankwise.data.memory import class_names_of, is_single
from rankwise.data.names import SPLIT_NAMES
from rankwise.data.pairs import joined_name, paired, with_pairs
from rankwise.data.tables import BATCH_ROWS, NumberedRows, Origin, Table, first_line, listed
from rankwise.errors import DataError, RankwiseError, Unreachable, option
from rankwise.in_memory import InMemory
from rankwise.recipe import Recipe
from rankwise.tasks.labels import labels_of


def from_hub(recipe: Recipe, notes: list[str]) -> dict[str, list[LabeledRows]]:
    """The splits of a Hub dataset: train, plus validation and test if it has them."""
    return _parts(recipe, _download(recipe.data.name, recipe.data.data_config), notes)


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of the datasets library."""
    files = ("dataset_dict.json",), ("state.json", "dataset_info.json")
    return any(all(os.path.isfile(folder / name) for name in names) for names in files)


def from_disk(recipe: Recipe, folder: Path, notes: list[str]) -> dict[str, list[LabeledRows]]:
    """The splits of a folder that `save_to_disk` wrote. A single dataset is train.

    Raises:
        DataError: the folder is damaged, or has no train split.
    """
    import datasets

    try:
        found = datasets.load_from_disk(folder)
    except Exception as error:  # of pyarrow, json or the file system; no common base class
        what = f"the saved dataset cannot be loaded: {first_line(error)}"
        raise DataError(what, path=folder, hint="save it again with save_to_disk") from None
    return _parts(recipe, {"train": found} if isinstance(found, datasets.Dataset) else found, notes)


def _parts(recipe: Recipe, splits: Mapping[str, Any], notes: list[str]) -> dict[str, list[LabeledRows]]:
    given = {"train": None, "validation": recipe.data.validation, "test": recipe.data.test}
    on_hub = {name: each for name, each in given.items() if not isinstance(each, InMemory)}
    parts: dict[str, list[LabeledRows]] = {}
    for name, wanted in on_hub.items():
        found = None if wanted and is_path(wanted) else _find_split(recipe.data.name, splits, name, wanted)
        if found is None:
            continue
        train = parts["train"][0] if name == "test" and not wanted else None
        part = _read_hub_split(recipe, found, splits[found], notes, train)
        parts |= {name: [part]} if part else {}
    return parts


def _find_split(data: str, splits: Mapping[str, Any], name: str, wanted: str | None) -> str | None:
    """The Hub dataset's name for this split; None if an optional split is missing."""
    choices = (wanted,) if wanted else SPLIT_NAMES[name]
    found = next((choice for choice in choices if choice in splits), None)
    if found is None and (wanted or name == "train"):
        hint = f"another configuration of the dataset may have it ({option('data_config', 'NAME')})"
        raise Origin(data).error(f"no split {choices[0]!r}; it has {listed(list(splits))}", hint=hint)
    return found


def _read_hub_split(
    recipe: Recipe, name: str, split: Any, notes: list[str], train: LabeledRows | None
) -> LabeledRows | None:
    """One split. If train is given, labels may be missing; without a column for them, the result is None."""
    origin = Origin(f"{recipe.data.name}[{name}]", in_rows=True)
    task = labels_of(recipe.data.task, recipe.data.label_separator)
    pair = recipe.data.text_columns or ()
    wanted = Wanted(joined_name(pair) if pair else recipe.data.text_column, recipe.data.label_column, task)
    if train and (none := without_labels(origin, split.column_names, wanted, train)):
        notes += none
        return None
    columns = paired(origin, split.column_names, pair)
    text, label = text_and_label(origin, columns, wanted.text, wanted.label)
    others = [name for name, feature in split.features.items() if is_single(feature)]
    read = dict.fromkeys((*(pair or (text,)), label, *others))
    classes = {name: class_names_of(split.features[name]) for name in read}
    table = Table(origin, split.column_names, _hub_rows(split.select_columns(list(read))), classes)
    return collect(with_pairs(table, pair), text, label, task, optional=train is not None)


def _hub_rows(split: Any) -> NumberedRows:
    number = 0
    for batch in split.iter(BATCH_ROWS):
        for values in zip(*batch.values(), strict=True):
            number += 1
            yield number, dict(zip(batch, values, strict=True))


def _download(name: str, config: str | None) -> Mapping[str, Any]:
    """All splits of a Hub dataset, from the cache or the Hub. `datasets` does not run repository code."""
    import datasets

    logger = logging.getLogger("huggingface_hub")  # it warns on each of six attempts; one error is enough
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        splits: Mapping[str, Any] = datasets.load_dataset(name, config)
    except Exception as error:  # from datasets, the Hub client or the HTTP client; no common base class
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
        hint = f"try again when online, or use a local file or folder ({option('data', 'PATH')})"
        return Unreachable(f"{name}: no such path here, and the Hub cannot be reached: {why}", hint=hint)
    if isinstance(error, DatasetNotFoundError):
        hint = "check the name; for a private or gated dataset, log in first (hf auth login)"
        return DataError("no such file or folder, and no such dataset on the Hub", path=name, hint=hint)
    hint = (
        f"select one of its configurations ({option('data_config', 'NAME')}), or use a local file or folder"
    )
    return DataError(f"the dataset cannot be loaded: {first_line(error)}", path=name, hint=hint)
