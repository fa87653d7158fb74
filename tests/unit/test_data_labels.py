"""Labels as they are given, and their order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise import DataError, Recipe, UsageError
from rankwise.commands.corrections import correct
from rankwise.data import load as data
from rankwise.data.labels import alike
from rankwise.models.peft_format import SavedAdapter
from rankwise.nn.bank import AdapterSpec

WITHOUT_ORDER: list[Any] = [
    {"x", "y"},
    frozenset("xy"),
    {"x": 0, "y": 1},
    "xy",
    "x,y",
    {"x": 0}.keys(),
    b"xy",
    7,
]


@pytest.mark.parametrize("labels", WITHOUT_ORDER)
def test_labels_without_an_order_are_refused(labels: Any) -> None:
    with pytest.raises(UsageError, match="give the labels as a list or tuple, in the order of the outputs"):
        Recipe(labels=labels)
    with pytest.raises(UsageError, match="give the labels as a list or tuple, in the order of the outputs"):
        unnamed().named(labels)


@pytest.mark.parametrize("labels", [["x", "y"], ("x", "y"), iter("xy"), (each for each in "xy")])
def test_labels_in_an_order(labels: Any) -> None:
    assert Recipe(labels=labels).data.labels == ("x", "y")


def test_names_from_an_iterator() -> None:
    assert unnamed().named(iter(["x", "y"])).labels == ("x", "y")


def unnamed() -> SavedAdapter:
    spec = AdapterSpec(rank=1, alpha=1.0, scale=1.0, seed=1, dropout=0.0, modules=())
    return SavedAdapter(spec, {"score": torch.zeros(2, 3)}, ("LABEL_0", "LABEL_1"), "base", 8)


# Whole numbers and numbered names


def whole(path: Path, values: list[str], **settings: Any) -> data.Dataset:
    rows = "".join(f"t{at},{label}\n" for at, label in enumerate(values))
    path.write_text(f"text,label\n{rows}")
    return data.load(Recipe(**{"data": path, "validation": path, **settings}))


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        ("1.0 0.0 2.0", ("0", "1", "2")),
        ("10.0 -1.0 9", ("-1", "9", "10")),
        ("LABEL_1 LABEL_0 LABEL_10 LABEL_9", ("LABEL_0", "LABEL_1", "LABEL_9", "LABEL_10")),
        ("01 00 10", ("00", "01", "10")),
        ("class 2|class 1", ("class 1", "class 2")),
        ("1.0 0.5 2.0", ("1.0", "0.5", "2.0")),  # not all are whole
        ("1.0 x", ("1.0", "x")),
        ("LABEL_1 label_0", ("LABEL_1", "label_0")),  # not the same prefix
        ("01 1 00", ("01", "1", "00")),  # two with the same value
        ("b1a b0a", ("b1a", "b0a")),
    ],
)
def test_the_order_of_numbers(tmp_path: Path, labels: str, order: tuple[str, ...]) -> None:
    values = labels.split("|") if "|" in labels else labels.split()
    found = whole(tmp_path / "a.csv", values)
    assert found.labels == order
    numbers = dict(zip(values, (value.removesuffix(".0") for value in values), strict=True))
    read = numbers if order[0] not in values else {value: value for value in values}
    assert [found.labels[at] for at in found.train.labels] == [read[value] for value in values]


def test_whole_numbers_written_as_floats_are_said_and_stay_in_other_splits(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("text,label\na,1\nb,0.0\n")
    (tmp_path / "c.csv").write_text("text,label\nb,2.0\n")
    found = whole(tmp_path / "a.csv", ["1.0", "0.0"], validation=tmp_path / "b.csv")
    assert found.validation.labels == [1, 0]
    assert "labels such as 1.0 are read as whole numbers" in found.notes
    with pytest.raises(DataError, match=r"c\.csv:2: the label '2' has no training text"):
        whole(tmp_path / "a.csv", ["1.0", "0.0"], test=tmp_path / "c.csv")


def test_labels_that_are_given_decide(tmp_path: Path) -> None:
    assert whole(tmp_path / "a.csv", ["1.0", "0.0"], labels=("0", "1")).train.labels == [1, 0]
    found = whole(tmp_path / "a.csv", ["1.0", "0.0"], labels=("1.0", "0.0"))
    assert found.labels == ("1.0", "0.0") and found.train.labels == [0, 1]
    assert data.read_labeled(tmp_path / "a.csv", ("0", "1")).labels == [1, 0]
    assert data.read_labeled(tmp_path / "a.csv", ("1.0", "0.0")).labels == [0, 1]


def test_several_whole_numbers_written_as_floats(tmp_path: Path) -> None:
    found = whole(tmp_path / "a.csv", ["1.0|0.0", "2", "", "2.0"], task="multi-label")
    assert found.labels == ("0", "1", "2")
    assert found.train.labels == [(0, 1), (2,), (), (2,)]


def test_an_unlabeled_test_file_of_floats(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,1.0\nb,0.0\nc,1.0\nd,0.0\n")
    (tmp_path / "test.csv").write_text("text,label\na,-1.0\nb,-1.0\n")
    found = data.load(Recipe(data=tmp_path))
    assert found.labels == ("0", "1") and found.test is None


def test_corrected_labels_of_floats(tmp_path: Path) -> None:
    source, changes = tmp_path / "a.csv", tmp_path / "errors.csv"
    source.write_text("text,label\na,1.0\nb,0.0\n")
    changes.write_text("text,label,corrected_label\na,1,0\n")
    correct(source, changes, tmp_path / "b.csv")
    assert (tmp_path / "b.csv").read_text() == "text,label\na,0.0\nb,0.0\n"


# Labels that look alike


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("non-fiction", "non\u2011fiction"),
        ("a - b", "a \u2013 b"),
        ("-1 star", "\u22121 star"),
        ("don't", "don\u2019t"),
        ("don't", "don\u02bct"),
        ('"so" glad', "\u201cso\u201d glad"),
        ("\u2764", "\u2764\ufe0f"),
    ],
)
def test_labels_that_look_alike(tmp_path: Path, one: str, other: str) -> None:
    rows = [{"text": f"t{at}", "label": label} for at, label in enumerate((one, other))]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = data.load(Recipe(data=path, validation=path))
    assert found.notes[0].startswith("labels that look alike, but are separate classes")
    assert alike(one) == alike(other)


@pytest.mark.parametrize(
    ("one", "other"), [("a-b", "a b"), ("a'b", 'a"b'), ("e", "\xe9"), ("\u0915", "\u0915\u093f")]
)
def test_labels_that_do_not_look_alike(one: str, other: str) -> None:
    assert alike(one) != alike(other)
