"""Files in another format or arrangement than their name says are read rightly, said, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from rankwise.data import load as data
from rankwise.data.unlabeled import TextRows, text_rows
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
        (("train-1", "train-01"), "a file of the split appears twice: train-01.parquet, train-1.parquet"),
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


# Texts to classify


def classified(folder: Path, content: str, **settings: Any) -> tuple[list[str], list[str | None], TextRows]:
    """(texts, labels kept, rows) of a text file for an adapter of these labels."""
    path = written(folder / "a.txt", content)
    rows = text_rows(path, **{"labels": ("joy", "anger"), **settings})
    found = [row for batch in rows.batches() for row in batch]
    return [row["text"] for row in found], [row.get("label") for row in found], rows


@pytest.mark.parametrize(
    ("content", "kept", "said"),
    [
        ("text;label\nso glad;joy\nso cross;anger\n", ["joy", "anger"], "end in ';' and a label"),
        ("Text\tLabel\nso glad\tjoy\nso cross\tanger\n", ["joy", "anger"], "end in a tab and a label"),
        ("so glad;joy|anger\nso cross;anger\n", ["joy|anger", "anger"], "end in ';' and a label"),
        ("so glad;Joy\nso cross; ANGER\n", ["Joy", "ANGER"], "end in ';' and a label"),
        ("joy\tso glad\nanger\tso cross\n", ["joy", "anger"], "begin with a label and a tab"),
        ("joy;so glad\nanger;so cross\n", ["joy", "anger"], "begin with a label and ';'"),
        ("label\ttext\njoy\tso glad\nanger\tso cross\n", ["joy", "anger"], "begin with a label and a tab"),
    ],
)
def test_labels_are_taken_out(tmp_path: Path, content: str, kept: list[str], said: str) -> None:
    texts, labels, rows = classified(tmp_path, content)
    assert texts == ["so glad", "so cross"] and labels == kept
    assert any(said in note for note in rows.notes)
    assert any("header" in note for note in rows.notes) == content.lower().startswith(("text", "label"))


def test_labels_joined_by_the_separator_of_the_adapter(tmp_path: Path) -> None:
    texts, labels, _ = classified(tmp_path, "so glad;joy+anger\nso cross;joy\n", separator="+")
    assert texts == ["so glad", "so cross"] and labels == ["joy+anger", "joy"]


def test_a_header_above_texts_without_labels(tmp_path: Path) -> None:
    assert classified(tmp_path, "text;label\nso glad\nso cross\n")[0] == ["so glad", "so cross"]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("id,review\n1,so glad\n2,so cross\n", "the first line is a CSV header: id, review"),
        ('text,label\n"so, glad",joy\nso cross,anger\n', "the first line is a CSV header: text, label"),
        ("text,label\n", "the first line is a CSV header: text, label"),
        ("id\ttext\n1\tso glad\n", "the first line is a CSV header: id, text"),
        ('{"text": "so glad"}\n{"text": "so cross"}\n', "the first line is JSON"),
        ('[{"text": "so glad"}]\n', "the first line is JSON"),
    ],
)
@pytest.mark.parametrize("piped", [False, True])
def test_another_format_is_not_classified_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, what: str, piped: bool
) -> None:
    path = written(tmp_path / "a.txt", content)
    with path.open() as file, pytest.raises(DataError) as caught:
        monkeypatch.setattr("sys.stdin", file)
        text_rows(Path("-") if piped else path, labels=("joy", "anger"))
    assert f"{'stdin' if piped else path}:1: {what}" in caught.value.message
    assert ("--input" in caught.value.written[1]) == piped


@pytest.mark.parametrize(
    "content",
    [
        "comment, thanks\nso glad\nso cross, too\n",
        "great review, buy it\nso, glad\n",
        "text\nso glad\n",
        "{so} glad\nso cross\n",
        "joy\nanger\n",
    ],
)
def test_texts_are_classified_line_by_line(tmp_path: Path, content: str) -> None:
    assert classified(tmp_path, content)[0] == content.splitlines()
