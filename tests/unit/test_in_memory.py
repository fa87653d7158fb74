"""Data in memory gives the same run as the same data in files, and the run can be resumed without it."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from rankwise import Classifier, DataError, Recipe, UsageError, evaluate, search, sweep
from rankwise.data.load import load
from rankwise.in_memory import InMemory
from rankwise.schema import SearchResults
from rankwise.store.run_folder import RunFolder
from rankwise.training.callbacks import Callback
from tests import tiny

TEXTS, NAMES = (list(column) for column in zip(*tiny.rows(24, 0), strict=True))
COLUMNS = {"text": TEXTS, "label": NAMES}
FORMS: dict[str, Callable[[], Any]] = {
    "pair": lambda: (TEXTS, NAMES),
    "list of two": lambda: [TEXTS, NAMES],
    "arrays": lambda: (np.array(TEXTS), np.array(NAMES)),
    "series": lambda: (pd.Series(TEXTS), pl.Series(NAMES)),
    "columns": lambda: COLUMNS,
    "pandas": lambda: pd.DataFrame(COLUMNS),
    "pandas with an index": lambda: pd.DataFrame(COLUMNS, index=[7] * 24),
    "pandas categories": lambda: pd.DataFrame(COLUMNS).astype({"label": "category"}),
    "pandas strings": lambda: pd.DataFrame(COLUMNS, dtype="string"),
    "polars": lambda: pl.DataFrame(COLUMNS),
    "arrow": lambda: pa.table(COLUMNS),
    "dataset": lambda: Dataset.from_dict(COLUMNS),
    "formatted dataset": lambda: Dataset.from_dict(COLUMNS).with_format("numpy"),
    "splits": lambda: {"train": pd.DataFrame(COLUMNS)},
    "dataset dict": lambda: DatasetDict(train=Dataset.from_dict(COLUMNS)),
}


def memory(path: Path) -> dict[str, list[str]]:
    """A CSV file of tests.tiny as columns."""
    return {str(name): list(values) for name, values in pd.read_csv(path).to_dict("list").items()}


@pytest.fixture(scope="module")
def splits(data_folder: Path) -> dict[str, pd.DataFrame]:
    return {name: pd.DataFrame(memory(data_folder / f"{name}.csv")) for name in tiny.SIZES}


# Reading


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_alike(form: str) -> None:
    found, expected = load(Recipe(data=FORMS[form]())), load(Recipe(data=(TEXTS, NAMES)))
    (source,) = found.sources
    assert source.name in ("data", "data['train']")
    assert replace(found, sources=expected.sources) == expected
    assert sorted(found.train.texts + found.validation.texts) == sorted(TEXTS)


def test_a_path_object(data_folder: Path) -> None:
    recipe = Recipe(data=data_folder, validation=data_folder / "test.csv", base=Path("tiny"))
    assert recipe == Recipe(data=str(data_folder), validation=str(data_folder / "test.csv"), base="tiny")


def test_columns_are_chosen_as_in_files() -> None:
    frame = pd.DataFrame({"id": range(24), "review": TEXTS, "stars": [1, 2.0, 3] * 8, 0: ["x"] * 24})
    found = load(Recipe(data=frame, text_column="review", label_column="stars"))
    assert found.labels == ("1", "2", "3")
    with pytest.raises(DataError, match=r"data: no column 'score'; the columns are id, review, stars, 0"):
        load(Recipe(data=frame, label_column="score"))
    assert load(Recipe(data=frame)).labels == ("1", "2", "3")
    with pytest.raises(DataError, match="label_column='NAME'"):
        load(Recipe(data=frame.rename(columns={"stars": "points"}), text_column="review"))


def test_class_labels_give_names_and_order() -> None:
    features = Features(text=Value("string"), label=ClassLabel(names=["fear", "joy", "anger"]))
    found = load(Recipe(data=Dataset.from_dict(COLUMNS, features=features)))
    assert found.labels == ("fear", "joy", "anger")
    assert {found.labels[i] for i in found.train.labels} == set(NAMES)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pd.DataFrame({"text": ["a", None], "label": ["x", "y"]}), "data: row 2: the text is missing"),
        (pd.DataFrame({"text": ["a", "b"], "label": ["x", None]}), "row 2: the label is missing"),
        (pl.DataFrame({"text": ["a", "b"], "label": ["x", None]}), "row 2: the label is missing"),
        ({"text": ["a", "b"], "label": [1, float("nan")]}, "row 2: the label is missing"),
        ((["a", 7], ["x", "y"]), r"row 2: the text is of type int, not a string \(column 'text'\)"),
        ((["a", "b"], ["x"]), "data: 2 texts, but 1 labels"),
        (([], []), "data: there are no texts"),
        (pd.DataFrame([["a", "b", "x"]], columns=["text", "text", "label"]), "the same name"),
        ({"test": pd.DataFrame(COLUMNS)}, "no split 'train'; it has test"),
        ({"train": COLUMNS, "test": {"text": ["a"], "label": ["odd"]}}, r"data\['test'\]: row 1: the label"),
    ],
)
def test_bad_data_is_named_by_its_row(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(Recipe(data=data))


@pytest.mark.parametrize(
    "value", [7, object(), ("a", "b"), ["a", "b", "c"], [("a", "x"), ("b", "y"), ("c", "x")]]
)
def test_what_is_no_data_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="data: give a path, a Hub ID, or a pandas or polars DataFrame"):
        Recipe(data=value)
    with pytest.raises(UsageError, match="data in memory must be"):
        InMemory(value)


def test_settings_of_the_section_are_not_data() -> None:
    assert Recipe(data={"source": "a.csv", "labels": ("x", "y")}).data.source == "a.csv"
    assert Recipe(data={"labels": ("x", "y")}).data.source == "starter"
    with pytest.raises(UsageError, match="sorce: no such setting"):
        Recipe(data={"sorce": "a.csv"})


def test_an_unlabeled_test_split_is_left_out(splits: dict[str, pd.DataFrame]) -> None:
    found = load(Recipe(data={**splits, "test": splits["test"].assign(label=-1)}))
    assert found.test is None
    assert found.notes == ("data['test']: no test text has a label, so there is no test split",)


def test_a_recipe_holds_data_as_it_is() -> None:
    frame = pd.DataFrame(COLUMNS)
    recipe = Recipe(data=frame, test=frame)
    assert recipe == recipe.replace(epochs=3) == Recipe(data=frame, test=frame)
    assert recipe != Recipe(data=frame.copy(), test=frame)
    assert repr(recipe.data.source) == "<DataFrame in memory>"
    with pytest.raises(UsageError, match="cannot be written as TOML"):
        recipe.to_toml()


def test_no_library_is_imported() -> None:
    code = (
        "import sys\nfrom rankwise import Recipe\nfrom rankwise.data.load import load\n"
        "load(Recipe(data=(['a', 'b'] * 9, ['x', 'y'] * 9)))\n"
        "print({'pandas', 'polars', 'datasets', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "set()\n", done.stderr


# Training


def test_a_sweep_is_that_of_the_files(
    run: RunFolder, gpt2_base: Path, data_folder: Path, splits: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    results = sweep(tiny.recipe(gpt2_base, data_folder).replace(data=splits), tmp_path / "run")
    assert results == run.read_results()
    stored = RunFolder(tmp_path / "run")
    assert sorted(path.name for path in stored.tables.iterdir()) == [
        "test.parquet", "train.parquet", "validation.parquet",
    ]  # fmt: skip
    assert Recipe.load(stored.recipe).data.source == str(stored.tables)
    assert without_source(stored.predictions) == without_source(run.predictions)


def without_source(path: Path) -> list[dict[str, str]]:
    """Predictions without the place where a text was read."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{k: v for k, v in row.items() if k != "source"} for row in csv.DictReader(file)]


class Stop(Callback):
    """Interrupts training after some steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self, *event: Any) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_wherever_it_is(
    run: RunFolder, gpt2_base: Path, data_folder: Path, splits: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    recipe = tiny.recipe(gpt2_base, data_folder).replace(data=splits)
    with pytest.raises(KeyboardInterrupt):
        sweep(recipe, tmp_path / "cut", Stop(9))
    (tmp_path / "cut").rename(tmp_path / "moved")
    moved = tmp_path / "moved"
    results = sweep(Recipe.load(moved / "recipe.toml"), moved, resume=True)
    assert results == run.read_results()
    assert Recipe.load(moved / "recipe.toml").data.source == str(moved / "data")
    assert sweep(recipe, moved, resume=True) == results
    other = recipe.replace(data={**splits, "test": splits["test"][::-1]})
    with pytest.raises(UsageError, match="the data is not what this run was started with"):
        sweep(other, moved, resume=True)
    tiny.write_csv(tmp_path / "other.csv", tiny.rows(40, 7))
    with pytest.raises(UsageError, match="split is not what this run was started with"):
        sweep(recipe.replace(data=str(tmp_path / "other.csv")), moved, resume=True)


def test_held_out_texts_and_class_labels_survive_a_resume(gpt2_base: Path, tmp_path: Path) -> None:
    features = Features(body=Value("string"), kind=ClassLabel(names=["fear", "joy", "anger"]))
    data = Dataset.from_dict({"body": TEXTS, "kind": NAMES}, features=features)
    recipe = tiny.recipe(gpt2_base, tmp_path, ranks=(1,), epochs=1).replace(data=data, label_column="kind")
    first = sweep(recipe, tmp_path / "run")
    assert first.labels == ["fear", "joy", "anger"] and first.texts == {"train": 21, "validation": 3}
    more = sweep(recipe.replace(ranks=(1, 2)), tmp_path / "run", resume=True)
    assert [row.name for row in more.adapters] == ["r1-s110", "r2-s110"]
    assert more.fingerprint == first.fingerprint


def test_bad_data_leaves_no_folder(gpt2_base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only one class"):
        sweep(tiny.recipe(gpt2_base, tmp_path).replace(data=(TEXTS, ["joy"] * 24)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_search_takes_data_in_memory(
    gpt2_base: Path, data_folder: Path, splits: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    recipe = tiny.recipe(gpt2_base, data_folder, ranks=(1, 4), epochs=12)
    found = [
        search(recipe.replace(data=data), tmp_path / name)
        for name, data in (("files", str(data_folder)), ("memory", splits))
    ]
    assert [each.data for each in found] == [str(data_folder), str(tmp_path / "memory" / "data")]
    alike = [each.model_copy(update={"data": "", "command": ""}) for each in found]
    assert alike[0] == alike[1]
    again: SearchResults = search(recipe.replace(data=splits), tmp_path / "memory", resume=True)
    assert again == found[1]


def test_evaluate_takes_data_in_memory(
    classifier: Classifier, adapter: Path, data_folder: Path, splits: dict[str, pd.DataFrame]
) -> None:
    expected = evaluate(adapter, data_folder / "test.csv", device="cpu", precision="float32")
    renamed = splits["test"].rename(columns={"text": "a", "label": "b"})
    for data, columns in ((splits["test"], None), (renamed, {"text_column": "a", "label_column": "b"})):
        found = evaluate(classifier, data, columns=columns)
        assert found == expected.model_copy(update={"split": "data"})
    with pytest.raises(UsageError, match="data in memory must be"):
        evaluate(classifier, 7)
