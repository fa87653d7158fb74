"""Which rows are for what: one rule for files, folders, saved datasets, the Hub, and data in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from rankwise.data import load as data
from rankwise.errors import DataError
from rankwise.recipe import Recipe

Columns = Mapping[str, list[Any]]


def in_csv(columns: Columns, folder: Path, _: pytest.MonkeyPatch) -> str:
    pd.DataFrame(columns).to_csv(folder / "a.csv", index=False)
    return str(folder / "a.csv")


def in_json(columns: Columns, folder: Path, _: pytest.MonkeyPatch) -> str:
    pd.DataFrame(columns).to_json(folder / "a.jsonl", orient="records", lines=True)
    return str(folder / "a.jsonl")


def in_parquet(columns: Columns, folder: Path, _: pytest.MonkeyPatch) -> str:
    pyarrow.parquet.write_table(pyarrow.table(dict(columns)), folder / "train.parquet")
    return str(folder)


def saved(columns: Columns, folder: Path, _: pytest.MonkeyPatch) -> str:
    Dataset.from_dict(dict(columns)).save_to_disk(folder / "saved")
    return str(folder / "saved")


def on_hub(columns: Columns, _: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    found = DatasetDict(train=Dataset.from_dict(dict(columns)))
    monkeypatch.setattr("datasets.load_dataset", lambda *_: found)
    return "org/data"


def in_memory(columns: Columns, *_: Any) -> Any:
    return pd.DataFrame(columns)


def in_dataset(columns: Columns, *_: Any) -> Any:
    return Dataset.from_dict(dict(columns))


Form = Callable[[Columns, Path, pytest.MonkeyPatch], Any]
FORMS: list[Form] = [in_csv, in_json, in_parquet, saved, on_hub, in_memory, in_dataset]
ROLES = ["train"] * 8 + ["dev"] * 2 + ["test"] * 2


def columns(**others: list[Any]) -> dict[str, list[Any]]:
    return {"text": [f"t{at}" for at in range(12)], "label": ["x", "y"] * 6, **others}


def refused(source: Any, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        data.load(Recipe(**{"data": source, **settings}))
    return str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_a_split_column_divides_the_rows(form: Form, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = data.load(Recipe(data=form(columns(split=ROLES, n=list(range(12))), tmp_path, monkeypatch)))
    assert [len(split) for split in found.splits] == [8, 2, 2]
    assert found.test is not None and found.test.texts == ["t10", "t11"]
    assert {tuple(source.unused_columns) for source in found.sources} == {("n",)}


def test_a_split_column_with_class_names(tmp_path: Path) -> None:
    features = Features(
        text=Value("string"), label=Value("string"), split=ClassLabel(names=["train", "dev", "test"])
    )
    whole = Dataset.from_dict(columns(split=ROLES), features=features)
    whole.save_to_disk(tmp_path / "saved")
    whole.to_parquet(tmp_path / "a.parquet")
    for source in (whole, tmp_path / "saved", tmp_path / "a.parquet"):
        assert [len(split) for split in data.load(Recipe(data=source)).splits] == [8, 2, 2]


@pytest.mark.parametrize("form", FORMS)
def test_a_column_of_another_name_with_splits(
    form: Form, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refused(form(columns(set=ROLES), tmp_path, monkeypatch))
    assert "every row names a split: test, train, validation (column 'set')" in message


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("odd", ["unlabeled", "heldout", "eval"])
def test_one_unknown_value_among_the_splits(
    form: Form, odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refused(form(columns(set=[*ROLES[:11], odd]), tmp_path, monkeypatch))
    assert "11 of 12 rows name a split: test, train, validation (column 'set')" in message


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("name", "values", "split"),
    [
        ("is_test", [0] * 9 + [1] * 3, "test"),
        ("is_valid", [False] * 9 + [True] * 3, "validation"),
        ("IsTrain", ["True"] * 3 + ["False"] * 9, "train"),
        ("is validation", ["0"] * 9 + ["1"] * 3, "validation"),
    ],
)
def test_a_column_that_says_which_rows_are_for_a_split(
    form: Form, name: str, values: list[Any], split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refused(form(columns(**{name: values}), tmp_path, monkeypatch))
    assert f"3 of 12 rows are marked as {split} (column '{name}')\nhint: " in message


def test_a_missing_mark_is_none() -> None:
    marks = [None] * 9 + [True] * 3
    assert "3 of 12 rows are marked as test" in refused(columns(is_test=marks))


@pytest.mark.parametrize(
    "others",
    [
        {"is_test": [0] * 12},
        {"is_train": [1] * 12},
        {"is_test": [0, 1, 2] * 4},
        {"is_long": [0, 1] * 6},
        {"set": ["train"] * 12},
        {"set": ["train"] * 5 + ["bus"] * 7},
        {"set": ["train"] * 3 + ["test"] * 2 + ["other"] * 7},
        {"n": [[1, 2]] * 12},
        {"date": [pd.Timestamp(2024, 1, 1)] * 12},
    ],
)
def test_columns_about_something_else(others: dict[str, list[Any]]) -> None:
    for source in (columns(**others), pd.DataFrame(columns(**others))):
        found = data.load(Recipe(data=source))
        assert len(found.train) + len(found.validation) == 12
        assert found.sources[0].unused_columns == list(others)


def test_an_unused_column_in_memory_may_have_any_form() -> None:
    found = data.load(Recipe(data=columns(more=["train", "test"])))
    assert found.sources[0].unused_columns == ["more"]
    frame = pd.DataFrame(columns(a=[1] * 12, b=[2] * 12)).rename(columns={"b": "a"})
    assert data.load(Recipe(data=frame)).sources[0].unused_columns == ["a", "a"]
    assert "data: 12 texts, but 2 values (column 'split')" in refused(columns(split=["train", "test"]))


# Test splits without labels


def divided(test: Columns | None) -> dict[str, dict[str, list[Any]]]:
    train: dict[str, list[Any]] = {
        "id": list(range(8)),
        "text": [f"t{at}" for at in range(8)],
        "label": ["x", "y"] * 4,
    }
    return {"train": train, "test": {"id": [1, 2], "text": ["c", "d"], **(test or {})}}


def split_folder(splits: Mapping[str, Columns], folder: Path, _: pytest.MonkeyPatch) -> Any:
    for name, each in splits.items():
        pyarrow.parquet.write_table(pyarrow.table(dict(each)), folder / f"{name}.parquet")
    return folder


def split_saved(splits: Mapping[str, Columns], folder: Path, _: pytest.MonkeyPatch) -> Any:
    found = {name: Dataset.from_dict(dict(each)) for name, each in splits.items()}
    DatasetDict(found).save_to_disk(folder / "saved")
    return folder / "saved"


def split_hub(splits: Mapping[str, Columns], _: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    found = DatasetDict({name: Dataset.from_dict(dict(each)) for name, each in splits.items()})
    monkeypatch.setattr("datasets.load_dataset", lambda *_: found)
    return "org/data"


def split_mapping(splits: Mapping[str, Columns], *_: Any) -> Any:
    return splits


def split_frames(splits: Mapping[str, Columns], *_: Any) -> Any:
    return {name: pd.DataFrame(each) for name, each in splits.items()}


SPLIT_FORMS = [split_folder, split_saved, split_hub, split_mapping, split_frames]


@pytest.mark.parametrize("form", SPLIT_FORMS)
@pytest.mark.parametrize(
    "test",
    [
        None,
        {"label": [None, None]},
        {"label": ["", " "]},
        {"label": [-1, -1]},
        {"label": [-1.0, float("nan")]},
        {"label": ["-1.0", ""]},
    ],
)
def test_a_test_split_without_labels_is_left_out(
    form: Any, test: Columns | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = data.load(Recipe(data=form(divided(test), tmp_path, monkeypatch)))
    assert found.test is None and "so there is no test split" in found.notes[0]
    assert len(found.train) + len(found.validation) == 8


@pytest.mark.parametrize("form", SPLIT_FORMS)
def test_a_test_split_with_some_labels_is_refused(
    form: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refused(form(divided({"label": ["x", None]}), tmp_path, monkeypatch))
    assert "row 2: the label is missing, but other test texts have one" in message


# Data in memory, stored for resume


@pytest.mark.parametrize("last", ["x", ""])
def test_stored_data_gives_the_same_splits(last: str, tmp_path: Path) -> None:
    frame = pd.DataFrame(columns(split=ROLES))
    frame.loc[frame.split == "test", "label"] = last
    recipe = Recipe(data=frame)
    again = data.store(recipe, tmp_path / "data")
    for found, expected in zip(data.load(again).splits, data.load(recipe).splits, strict=True):
        assert (found.name, found.texts, found.labels) == (expected.name, expected.texts, expected.labels)
    assert data.is_stored(recipe, tmp_path / "data")
    other = frame.assign(split=["train"] * 7 + ["dev"] * 3 + ["test"] * 2)
    assert not data.is_stored(Recipe(data=other), tmp_path / "data")
