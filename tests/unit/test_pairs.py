"""Pairs of texts: joined alike in training, evaluation, files, Python and the server."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from typer.testing import CliRunner

from rankwise import Classifier, DataError, ModelError, Recipe, UsageError, evaluate, sweep
from rankwise.cli.app import app
from rankwise.commands.corrections import correct
from rankwise.commands.predict import predict_file
from rankwise.data import load as data
from rankwise.data import pairs
from rankwise.models import peft_format
from tests import tiny

NAMES = ("premise", "hypothesis")
SETTINGS: dict[str, Any] = {"text_columns": NAMES, "ranks": (1,), "epochs": 1, "baselines": False}
OPTIONS = ("--device", "cpu", "--precision", "float32")


def rows(number: int, seed: int) -> list[dict[str, str]]:
    """Pairs whose label says whether the second text is about the first one's feeling."""
    labels = tiny.rows(number, seed), tiny.rows(number, seed + 50, tiny.LABELS[::-1])
    return [
        {"id": str(i), "premise": one, "hypothesis": two, "label": "yes" if a == b else "no"}
        for i, ((one, a), (two, b)) in enumerate(zip(*labels, strict=True))
    ]


def write(path: Path, content: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(content[0]))
        writer.writeheader()
        writer.writerows(content)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pairs") / "data"
    for seed, (split, number) in enumerate({"train": 40, "validation": 16, "test": 8}.items()):
        write(made / f"{split}.csv", rows(number, seed))
    return made


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, llama_base: Path, folder: Path) -> Path:
    run = tmp_path_factory.mktemp("runs") / "pairs"
    sweep(tiny.recipe(llama_base, folder, **SETTINGS), run)
    return run / "adapters" / "r1-s110"


@pytest.fixture(scope="module")
def classifier(adapter: Path) -> Classifier:
    return Classifier.load(adapter, device="cpu", precision="float32")


def test_both_texts_are_joined_and_named(folder: Path) -> None:
    found = data.load(Recipe(data=str(folder), text_columns=NAMES))
    first = rows(40, 0)[0]
    assert found.train.texts[0] == f"{first['premise']}\n{first['hypothesis']}"
    source = found.sources[0]
    assert (source.text_column, source.unused_columns) == ("premise + hypothesis", ["id"])
    assert pairs.JOINER == peft_format.JOINER


def test_the_card_shows_how_to_give_a_pair(adapter: Path) -> None:
    card = (adapter / "README.md").read_text("utf-8")
    assert "Texts: pairs of premise and hypothesis, joined by a line break" in card
    assert 'classify([("some text", "another text")])[0].label' in card
    assert '"some text\\nanother text", truncation=True' in card


@pytest.mark.parametrize("kind", ["mapping", "dataset"])
def test_data_in_memory_and_as_stored(tmp_path: Path, llama_base: Path, folder: Path, kind: str) -> None:
    content = rows(40, 0)
    columns: Any = {name: [row[name] for row in content] for name in (*NAMES, "label")}
    given = datasets.Dataset.from_dict(columns) if kind == "dataset" else columns
    expected = data.load(Recipe(data=str(folder / "train.csv"), text_columns=NAMES))
    assert data.load(Recipe(data=given, text_columns=NAMES)).train.texts == expected.train.texts
    recipe = Recipe(data=given, text_columns=NAMES)
    again = data.load(data.store(recipe, tmp_path / "stored"))
    assert again.train.texts == expected.train.texts


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text_columns": ("a",)}, "give the names of two columns"),
        ({"text_columns": ("a", "a")}, "give the names of two columns"),
        ({"text_columns": ("a", "b"), "text_column": "a"}, "text_column a does not go with a pair"),
        ({"text_columns": ("a", "b"), "label_column": "b"}, "label_column b does not go with a pair"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Recipe(**settings)


def test_a_missing_column_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match="no column 'premiss', which is one of a pair"):
        data.load(Recipe(data=str(folder), text_columns=("premiss", "hypothesis")))


def test_an_empty_text_of_a_pair_is_named(tmp_path: Path) -> None:
    content = rows(6, 0)
    content[1]["hypothesis"] = " "
    path = write(tmp_path / "a.csv", content)
    with pytest.raises(DataError, match=r"a\.csv:3: the text is empty \(column 'hypothesis'\)"):
        data.load(Recipe(data=str(path), text_columns=NAMES))


def test_the_adapter_stores_its_columns(adapter: Path, classifier: Classifier) -> None:
    own = json.loads((adapter / "classifier.json").read_text("utf-8"))["rankwise"]
    assert (own["text_columns"], own["text_joiner"]) == (list(NAMES), "\n")
    assert classifier.text_columns == NAMES


def test_files_calls_and_strings_agree(classifier: Classifier, folder: Path, tmp_path: Path) -> None:
    content = rows(8, 2)
    given = [(row["premise"], row["hypothesis"]) for row in content]
    expected = classifier.predict(given)
    assert classifier.predict([list(pair) for pair in given]) == expected
    assert classifier.predict(["\n".join(pair) for pair in given]) == expected
    target = tmp_path / "out.csv"
    predict_file(classifier, folder / "test.csv", target)
    with target.open(encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["predicted_label"] for row in written] == expected
    assert list(written[0])[:4] == ["id", "premise", "hypothesis", "label"]
    assert "premise + hypothesis" not in written[0]


def test_columns_may_have_other_names(adapter: Path, folder: Path, tmp_path: Path) -> None:
    content = [{"a": row["premise"], "b": row["hypothesis"], "label": row["label"]} for row in rows(8, 2)]
    other = write(tmp_path / "other.csv", content)
    options: dict[str, Any] = {"device": "cpu", "precision": "float32"}
    found = evaluate(adapter, other, columns={"text_columns": ("a", "b")}, **options)
    same = evaluate(adapter, folder / "test.csv", **options)
    assert (found.accuracy, found.log_loss) == (same.accuracy, same.log_loss)
    done = CliRunner().invoke(app, ["evaluate", str(adapter), str(other), "--text-columns", "a,b", *OPTIONS])
    assert done.exit_code == 0, done.output


def test_rows_without_a_text_can_be_skipped(classifier: Classifier, tmp_path: Path) -> None:
    content = rows(4, 2)
    content[2]["premise"] = ""
    source = write(tmp_path / "in.csv", content)
    assert predict_file(classifier, source, tmp_path / "out.jsonl", skip_empty=True) == 3


@pytest.mark.parametrize("text", ["so glad", ("a",), ("a", "b", "c"), ("a", 1), 5])
def test_anything_but_a_pair_is_refused(classifier: Classifier, text: Any) -> None:
    with pytest.raises(DataError, match="this adapter takes pairs of premise and hypothesis"):
        classifier.predict([text])


def test_half_a_pair_is_refused(classifier: Classifier) -> None:
    with pytest.raises(DataError, match="text 1 has an empty hypothesis"):
        classifier.predict([("a", " ")])


def test_mistakes_of_columns_are_refused(adapter: Path, run: Any, folder: Path, tmp_path: Path) -> None:
    source, target = str(folder / "test.csv"), str(tmp_path / "out.csv")
    single = str(run.adapters / "r4-s110")
    for arguments, message in (
        ([str(adapter), "--text-column", "premise"], "takes pairs of premise and hypothesis"),
        ([single, "--text-columns", "premise,hypothesis"], "takes one text, not a pair"),
        ([str(adapter), "--text-columns", "premise"], "give the names of two columns"),
    ):
        words = ["predict", *arguments, "--input", source, "--output", target, *OPTIONS]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 2 and message in " ".join(done.stderr.split()), done.stderr


def test_a_pair_is_not_explained(classifier: Classifier) -> None:
    with pytest.raises(UsageError, match="the words of a pair"):
        classifier.explain("so glad\nso cross")


def test_labels_of_pairs_can_be_corrected(folder: Path, tmp_path: Path) -> None:
    first = rows(40, 0)[0]
    other = {"yes": "no", "no": "yes"}[first["label"]]
    row = {
        "source": "train.csv:2",
        "text": f"{first['premise']}\n{first['hypothesis']}",
        "label": first["label"],
        "corrected_label": other,
    }
    errors = write(tmp_path / "errors.csv", [row])
    correct(folder / "train.csv", errors, tmp_path / "fixed.csv", text_columns=NAMES)
    with (tmp_path / "fixed.csv").open(encoding="utf-8", newline="") as file:
        fixed = next(csv.DictReader(file))
    assert fixed == first | {"label": other}


@pytest.mark.parametrize("change", [{"text_columns": ["a"]}, {"text_columns": "ab"}, {"text_joiner": "|"}])
def test_damaged_settings_are_refused(adapter: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    for path in adapter.iterdir():
        if path.name not in ("sha256.json", "classifier.json"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    own = json.loads((adapter / "classifier.json").read_text("utf-8"))
    own["rankwise"] |= change
    (tmp_path / "classifier.json").write_text(json.dumps(own), "utf-8")
    with pytest.raises(ModelError, match=r"text_columns|joins pairs"):
        Classifier.load(tmp_path)
