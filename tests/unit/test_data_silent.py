"""What used to go wrong without a word: now it is read rightly, said, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rankwise.data import load as data
from rankwise.errors import DataError
from rankwise.recipe import Recipe


def load(path: Path, **settings: Any) -> data.Dataset:
    return data.load(Recipe(**{"data": str(path), **settings}))


def refused(path: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(path, **settings)
    return str(caught.value)


def written(path: Path, content: str) -> Path:
    path.write_text(content, "utf-8")
    return path


def whole(path: Path, **settings: Any) -> data.Dataset:
    """The file as train, and as validation so that nothing is held out."""
    return load(path, validation=str(path), **settings)


def pairs(split: data.Split | None, labels: tuple[str, ...]) -> list[tuple[str, str]]:
    assert split is not None
    return [(text, labels[label]) for text, label in zip(split.texts, split.labels, strict=True)]


# Quotes


def test_a_tsv_whose_quotes_are_part_of_the_texts(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tsv", 'text\tlabel\n"so glad\t1\nso cross\t0\nmerry "\t1\n')
    found = whole(path)
    assert pairs(found.train, found.labels) == [('"so glad', "1"), ("so cross", "0"), ('merry "', "1")]
    assert found.notes[0].startswith(
        "a.tsv: read without quoting, because each line is a whole row only then"
    )


def test_a_tsv_with_an_open_quote(tmp_path: Path) -> None:
    found = whole(written(tmp_path / "a.tsv", 'text\tlabel\n"so glad\t1\nso "cross" or "not"\t0\n'))
    assert found.train.texts == ['"so glad', 'so "cross" or "not"']


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('text\tlabel\n"so ""glad"""\tx\nb\ty\n', ['so "glad"', "b"]),  # each line is a row with quotes too
        ('text\tlabel\n"a\nb"\tx\nb\ty\n', ["a\nb", "b"]),  # the lines are no rows without quotes
        ('"text"\t"label"\n"a\tb\nc"\tx\n"d"\t"y"\n', ["a\tb\nc", "d"]),  # the header shows that quotes quote
    ],
)
def test_a_tsv_that_quotes(tmp_path: Path, content: str, texts: list[str]) -> None:
    found = whole(written(tmp_path / "a.tsv", content))
    assert found.train.texts == texts
    assert not any("without quoting" in note for note in found.notes)


def test_fields_that_contain_line_ends_are_counted(tmp_path: Path) -> None:
    found = whole(written(tmp_path / "a.csv", 'text,label\na,x\n"b\nc",y\n"d\n\n\ne",x\n'))
    assert found.train.texts == ["a", "b\nc", "d\n\n\ne"]
    assert found.notes[0] == (
        "a.csv: 2 rows span several lines, because a quoted field contains line ends; the first begins in "
        "line 3, and the longest has 4 lines"
    )


# Splits


SPLIT = "text,label,split\na,x,train\nb,y,train\nc,x,dev\nd,y,Test\ne,x,train\n"


def test_a_split_column_divides_the_rows(tmp_path: Path) -> None:
    found = load(written(tmp_path / "a.csv", SPLIT))
    assert [(split.name, split.texts) for split in found.splits] == [
        ("train", ["a", "b", "e"]),
        ("validation", ["c"]),
        ("test", ["d"]),
    ]
    assert [(source.split, source.texts, source.unused_columns) for source in found.sources] == [
        ("train", 3, []),
        ("validation", 1, []),
        ("test", 1, []),
    ]


def test_an_unknown_split_is_refused_with_its_row(tmp_path: Path) -> None:
    message = refused(written(tmp_path / "a.csv", SPLIT.replace("e,x,train", "e,x,holdout")))
    assert "a.csv:6: unknown split 'holdout' (column 'split')" in message


def test_splits_that_contradict_the_files(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", SPLIT)
    other = written(tmp_path / "b.csv", "text,label\na,x\nb,y\n")
    assert "a.csv:4: the column split says validation, but" in refused(path, validation=str(other))
    (tmp_path / "folder").mkdir()
    written(tmp_path / "folder" / "train.csv", "text,label,split\na,x,train\nb,y,train\n")
    written(tmp_path / "folder" / "test.csv", "text,label,split\na,x,test\nb,y,train\n")
    assert "test.csv:3: the column split says train, but this file is the test split" in refused(
        tmp_path / "folder"
    )


def test_no_row_for_training(tmp_path: Path) -> None:
    assert "no row is for training" in refused(written(tmp_path / "a.csv", "text,label,split\na,x,test\n"))


def test_a_column_of_another_name_that_names_splits(tmp_path: Path) -> None:
    lines = [f"t{i},{'ab'[i % 2]},{('train', 'val', 'test')[i % 3]}" for i in range(12)]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["text,label,subset", *lines]))
    with pytest.raises(DataError) as caught:
        data.load(Recipe(data=path))
    assert "every row names a split: test, train, validation (column 'subset')" in str(caught.value)
    assert "rename it to split" in caught.value.hint
    lines = [line.replace("train", "other").replace("val", "more") for line in lines]  # about something else
    path.write_text("\n".join(["text,label,subset", *lines]))
    found = data.load(Recipe(data=path))
    assert len(found.train) + len(found.validation) == 12 and found.test is None


def test_a_split_column_in_memory() -> None:
    columns = {
        "text": [f"t{i}" for i in range(12)],
        "label": ["a", "b"] * 6,
        "split": ["train"] * 8 + ["val"] * 2 + ["test"] * 2,
    }
    found = data.load(Recipe(data=columns))
    assert found.test is not None
    assert (len(found.train), len(found.validation), len(found.test)) == (8, 2, 2)


def test_the_split_column_may_be_the_label(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "text,split\na,left\nb,right\n")
    assert whole(path).labels == ("left", "right")


def test_evaluation_of_a_file_with_splits_says_so(tmp_path: Path) -> None:
    notes: list[str] = []
    data.read_labeled(written(tmp_path / "a.csv", SPLIT), ("x", "y"), notes=notes)
    assert notes == [
        "a.csv: 5 texts; text: text, label: label",
        "a.csv: all rows are used, whatever their split: 3 train, 1 validation, 1 test",
    ]


# Pieces


def piece(folder: Path, name: str) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": ["x", "y"]}), folder / name)


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (
            ["train-00000-of-00003", "train-00002-of-00003"],
            "2 of 3 pieces are here; missing are those with number 1",
        ),
        (
            ["train-00000-of-00002-aa", "train-00000-of-00002-bb", "train-00001-of-00002-cc"],
            "a file of the split appears twice: "
            "train-00000-of-00002-aa.parquet, train-00000-of-00002-bb.parquet",
        ),
        (
            ["train-00000-of-00001", "train-00000-of-00002"],
            "the pieces are of several data sets, with 1, 2 pieces",
        ),
    ],
)
def test_pieces_that_do_not_add_up(tmp_path: Path, names: list[str], what: str) -> None:
    for name in names:
        piece(tmp_path, f"{name}.parquet")
    assert what in refused(tmp_path)


def test_pieces_with_hashes_and_of_other_formats(tmp_path: Path) -> None:
    for number in range(2):
        piece(tmp_path, f"train-0000{number}-of-00002-{number}f3a.parquet")
        written(tmp_path / f"test-{number}-of-2.csv", f"text,label\nt{number},x\n")
    found = load(tmp_path)
    assert len(found.train) + len(found.validation) == 4
    assert found.test is not None and found.test.texts == ["t0", "t1"]


def test_a_piece_alone_is_noted(tmp_path: Path) -> None:
    piece(tmp_path, "train-00000-of-00003.parquet")
    found = whole(tmp_path / "train-00000-of-00003.parquet")
    assert found.notes[0].endswith("one of 3 pieces by its name; to read all of them, pass their folder")


# Columns


@pytest.mark.parametrize(
    "header", ["question,sentence,label", "title,content,label", "Title,Review Text,label"]
)
def test_two_texts_are_asked_about(tmp_path: Path, header: str) -> None:
    path = written(tmp_path / "a.csv", f"{header}\na,b,x\nc,d,y\n")
    one, other, _ = header.split(",")
    message = refused(path)
    assert "2 columns could be the text: " in message and one in message and other in message
    assert "hint: choose one: text_column=" in message
    assert whole(path, text_column=one).train.texts == ["a", "c"]
    assert whole(path, text_column=other).train.texts == ["b", "d"]


def test_two_labels_are_asked_about(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "review,stars,category\na,1,x\nb,2,y\n")
    assert "2 columns could be the label: category, stars\nhint: choose one: label_column=" in refused(path)
    assert whole(path, label_column="stars").labels == ("1", "2")


@pytest.mark.parametrize(
    "header",
    [
        "text,label", "Review Text,Star Rating", "review_text,rating", "comment,stars", "message,intent",
        "utterance,category", "tweet,sentiment", "question,topic", "title,class", "body,target", "text,y",
        "content,score", "sentence,emotion",
    ],
)  # fmt: skip
def test_usual_names(tmp_path: Path, header: str) -> None:
    found = whole(written(tmp_path / "a.csv", f"id,{header},more\n1,a,x,p\n2,b,y,q\n"))
    assert pairs(found.train, found.labels) == [("a", "x"), ("b", "y")]
    text, label = header.split(",")
    (source, _) = found.sources
    assert (source.text_column, source.label_column, source.unused_columns) == (text, label, ["id", "more"])
    assert data.said(source) == f"a.csv: 2 texts for train; text: {text}, label: {label}; not used: id, more"


# Labels


def test_labels_that_look_alike(tmp_path: Path) -> None:
    labels = ["caf\xe9", "cafe\u0301", "joy", "joy\u200b", "Joy", "fear ", "fear"]
    content = "text,label\n" + "".join(f"t{at},{label}\n" for at, label in enumerate(labels))
    assert whole(written(tmp_path / "a.csv", content)).notes == (
        "labels that look alike, but are separate classes: 'caf\\xe9' (1 texts), 'cafe\\u0301' (1 texts)",
        "labels that look alike, but are separate classes: 'joy' (1 texts), 'joy\\u200b' (1 texts), "
        "'Joy' (1 texts)",
    )


def test_an_unknown_label_that_looks_like_a_known_one(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "text,label\na,joy\nb,fear\n")
    other = written(tmp_path / "b.csv", "text,label\na,joy\nb,fear\u200b\n")
    assert "hint: it looks like 'fear', but is 'fear\\u200b'" in refused(path, validation=str(other))


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        ("1 0 2 1", ("0", "1", "2")),
        ("10 9 0", ("0", "9", "10")),
        ("1 -1 0", ("-1", "0", "1")),
        ("2 01 1", ("2", "01", "1")),
        ("1 x 0", ("1", "x", "0")),
    ],
)
def test_whole_numbers_keep_their_order(tmp_path: Path, labels: str, order: tuple[str, ...]) -> None:
    content = "text,label\n" + "".join(f"t{at},{label}\n" for at, label in enumerate(labels.split()))
    assert whole(written(tmp_path / "a.csv", content)).labels == order


# Test splits without labels


@pytest.mark.parametrize("test", ["text,label\nc,-1\nd,-1\n", "text,label\nc,\nd,\n", "id,text\n1,c\n2,d\n"])
def test_an_unlabeled_test_file_is_left_out(tmp_path: Path, test: str) -> None:
    written(tmp_path / "train.csv", "text,label\na,x\nb,y\ne,x\nf,y\n")
    written(tmp_path / "test.csv", test)
    found = load(tmp_path)
    assert found.test is None
    assert "so there is no test split" in found.notes[0]


def test_unlabeled_test_rows_of_one_file_are_left_out(tmp_path: Path) -> None:
    found = load(written(tmp_path / "a.csv", SPLIT.replace("d,y,Test", "d,,Test")))
    assert found.test is None and "a.csv: no test text has a label" in found.notes[0]


def test_some_labels_are_missing(tmp_path: Path) -> None:
    written(tmp_path / "train.csv", "text,label\na,x\nb,y\n")
    written(tmp_path / "test.csv", "text,label\nc,x\nd,-1\n")
    assert "test.csv:3: the label is missing, but other test texts have one" in refused(tmp_path)


def test_minus_one_may_be_a_class(tmp_path: Path) -> None:
    written(tmp_path / "train.csv", "text,label\na,-1\nb,1\nc,-1\nd,1\n")
    written(tmp_path / "test.csv", "text,label\nc,-1\nd,-1\n")
    found = load(tmp_path)
    assert found.test is not None and pairs(found.test, found.labels) == [("c", "-1"), ("d", "-1")]


def test_a_test_file_that_is_named_needs_labels(tmp_path: Path) -> None:
    path = written(tmp_path / "train.csv", "text,label\na,x\nb,y\n")
    test = written(tmp_path / "test.csv", "text,label\nc,\n")
    assert "test.csv:2: the label is empty" in refused(path, validation=str(path), test=str(test))
