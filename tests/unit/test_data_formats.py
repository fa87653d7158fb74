"""Files in another format or arrangement than their name says are read rightly, said, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from rankwise.data import load as data
from rankwise.errors import DataError
from rankwise.recipe import Recipe


def written(path: Path, content: str) -> Path:
    path.write_text(content, "utf-8")
    return path


def load(path: Path, **settings: Any) -> data.Dataset:
    return data.load(Recipe(**{"data": path, **settings}))


def refused(path: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(path, **settings)
    return str(caught.value)


# Pieces


def pieces(folder: Path, *names: str) -> Path:
    for name in names:
        table = pyarrow.table({"text": [f"{name} a", f"{name} b"], "label": ["x", "y"]})
        pyarrow.parquet.write_table(table, folder / f"{name}.parquet")
    return folder


@pytest.mark.parametrize(
    "names",
    [
        ("train-1-of-3", "train-2-of-3", "train-3-of-3"),
        ("train-0-of-2", "train-1-of-2"),
        ("train-00001", "train-00002"),
        ("train-0", "train-1", "train-2"),
        ("train-2021", "train-2023"),  # years
        ("train-a", "train-c"),
    ],
)
def test_complete_pieces(tmp_path: Path, names: tuple[str, ...]) -> None:
    found = load(pieces(tmp_path, *names))
    assert len(found.train) + len(found.validation) == 2 * len(names)


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (("train-1-of-3", "train-3-of-3"), "2 of 3 pieces are here; missing are those with number 2"),
        (("train-0-of-3", "train-3-of-3"), "2 of 3 pieces are here; missing are those with number 1, 2"),
        (("train-00001", "train-00003"), "missing are those with number 2"),
        (("train-0", "train-3"), "missing are those with number 1, 2"),
        (("train-00002", "train-00003"), "missing are those with number 1"),
        (("train-1", "train-01"), "a piece is there twice: train-01.parquet, train-1.parquet"),
    ],
)
def test_missing_pieces(tmp_path: Path, names: tuple[str, ...], what: str) -> None:
    assert what in refused(pieces(tmp_path, *names))


def test_files_that_are_not_read_are_noted(tmp_path: Path) -> None:
    for name in ("train.csv", "train2.csv", "train (1).csv", "test_old.csv", "training.csv", "train3.log"):
        written(tmp_path / name, "text,label\na,x\nb,y\nc,x\nd,y\n")
    notes = load(tmp_path).notes
    assert f"{tmp_path.name}: not read: test_old.csv, train (1).csv, train2.csv" in notes[0]


def test_a_piece_that_is_named_is_noted(tmp_path: Path) -> None:
    train = written(tmp_path / "a.csv", "text,label\na,x\nb,y\n")
    piece = written(tmp_path / "v-00000-of-00002.csv", "text,label\na,x\nb,y\n")
    said = "v-00000-of-00002.csv: one of 2 pieces by its name; to read all of them, pass their folder"
    for split in ("validation", "test"):
        assert said in load(train, **{"validation": train, split: piece}).notes
    notes: list[str] = []
    data.read_labeled(piece, ("x", "y"), notes=notes)
    assert said in notes


# Text files for training


def lines(count: int, form: str) -> str:
    return "".join(form.format(text=f"text {at}", label="xy"[at % 2]) + "\n" for at in range(count))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (lines(4, '{{"text": "{text}; more", "label": "{label}"}}'), "a.txt:1: the line is JSON"),
        (lines(2, "{text};{label}") + '{"text": "a;b", "label": "x"}\n', "a.txt:3: the line is JSON"),
        ('[{"text": "a;b", "label": "x"},\n{"text": "b;", "label": "y"}]\n', "a.txt:1: the line is JSON"),
        ("# from us; 2024\n" + lines(4, "__label__{label} {text}; more"), "a.txt:1: not a fastText line"),
        ("# by us; 2024\n" + lines(4, "{text}; more __label__{label}"), "a.txt:1: not a fastText line"),
        (lines(4, "__class__{label} {text}; more"), "labels begin with __class__ instead of __label__"),
        (lines(12, "{label};{text}"), "the labels seem to come first"),
        (lines(12, "{label};more; {text}"), "the labels seem to come first"),
        ("label;text\nx;so glad\n", "the labels seem to come first"),
    ],
)
def test_a_text_file_of_another_format(tmp_path: Path, content: str, what: str) -> None:
    message = refused(written(tmp_path / "a.txt", content))
    assert what in message and "\nhint: " in message


@pytest.mark.parametrize(
    "content",
    [
        lines(30, "{{name}} {text};{label}"),
        lines(30, '{{"a": 1}} {text};{label}'),
        lines(30, "__init__ {text};{label}"),
        lines(30, "__user__: {text};{label}"),
        lines(30, "en;{text};{label}"),
        "text;label\n" + lines(30, "{text};{label}"),
        "".join(
            f"{'ab'[at % 2]};label {at % 6}\n" for at in range(30)
        ),  # few texts, each with several labels
        lines(30, "__label__{label} {text}; more"),
    ],
)
def test_a_text_file_of_its_own_format(tmp_path: Path, content: str) -> None:
    path = written(tmp_path / "a.txt", content)
    assert len(load(path, validation=path).train) == 30
