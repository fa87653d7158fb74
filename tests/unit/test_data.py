"""Texts and labels, from files, folders, the starter data and the Hub."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlparse

import pyarrow
import pyarrow.parquet
import pytest

from rankwise.data import load as data
from rankwise.data.columns import Wanted
from rankwise.data.tables import BATCH_ROWS
from rankwise.data.unlabeled import text_rows
from rankwise.errors import DataError
from rankwise.recipe import Recipe

REPOSITORY = Path(__file__).parents[2]
EMOTION = Path(os.environ.get("RANKWISE_TEST_DATA", REPOSITORY.parent / "shared")) / "data" / "emotion"
LABELS = ("sadness", "joy", "love", "anger", "fear", "surprise")


def write(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content, "utf-8")
    return path


def pairs(*labels: str) -> str:
    return "".join(f"text {number};{label}\n" for number, label in enumerate(labels))


def load(path: Path | str, **settings: Any) -> data.Dataset:
    return data.load(Recipe(**{"data": str(path), **settings}))


def refused(path: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(path, **settings)
    return str(caught.value)


def labeled(folder: Path, content: str, name: str = "a.csv", **columns: Any) -> data.Split:
    wanted = Wanted(columns.get("text_column"), columns.get("label_column"))
    return data.read_labeled(write(folder, name, content), ("joy", "sad"), wanted=wanted)


class TestStarter:
    def test_it_is_complete_and_balanced(self) -> None:
        starter = load("starter")
        assert starter.labels == LABELS
        assert starter.test is not None
        splits = (starter.train, starter.validation, starter.test)
        assert [len(split) for split in splits] == [600, 150, 150]
        for split, each in zip(splits, (100, 25, 25), strict=True):
            assert Counter(split.labels) == dict.fromkeys(range(6), each)
        texts = [text.strip().lower() for split in splits for text in split.texts]
        assert len(set(texts)) == 900
        assert starter.notes == ()

    def test_labels_given_set_the_order(self) -> None:
        order = tuple(reversed(LABELS))
        starter, usual = load("starter", labels=order), load("starter")
        assert starter.labels == order
        assert starter.train.labels == [5 - label for label in usual.train.labels]


@pytest.mark.skipif(
    not EMOTION.is_dir(), reason=f"no emotion files in {EMOTION} (RANKWISE_TEST_DATA names it)"
)
class TestRealEmotionFiles:
    def test_the_folder(self) -> None:
        emotion = load(EMOTION, labels=LABELS)
        assert (len(emotion.train), len(emotion.validation), emotion.test) == (16_000, 2_000, None)
        assert emotion.labels == LABELS
        assert (emotion.train.texts[0], emotion.train.labels[0]) == ("i didnt feel humiliated", 0)
        assert [Counter(emotion.train.labels)[n] for n in range(6)] == [4666, 5362, 1304, 2159, 1937, 572]

    def test_the_training_file_alone_is_cut(self) -> None:
        emotion = load(EMOTION / "train.txt", labels=LABELS)
        assert (len(emotion.train), len(emotion.validation)) == (14_400, 1_600)
        assert emotion.notes == (
            "no validation split: 1,600 of 16,000 training texts were held out for it, "
            "10 % of each class, seed 110",
        )
        assert [Counter(emotion.validation.labels)[n] for n in range(6)] == [467, 536, 130, 216, 194, 57]


class TestLabels:
    def test_order_of_first_appearance_in_train(self, tmp_path: Path) -> None:
        write(tmp_path, "train.txt", pairs("b", "c", "a", "c"))
        write(tmp_path, "val.txt", pairs("a", "b"))
        loaded = load(tmp_path)
        assert loaded.labels == ("b", "c", "a")
        assert loaded.train.labels == [0, 1, 2, 1] and loaded.validation.labels == [2, 0]

    def test_strings_numbers_and_truths(self, tmp_path: Path) -> None:
        values = [1, 1.0, "1", True, "true", 0, " x "]
        lines = "".join(json.dumps({"text": f"t{n}", "label": v}) + "\n" for n, v in enumerate(values))
        split = data.read_labeled(write(tmp_path, "a.jsonl", lines), ("1", "true", "0", "x"))
        assert split.labels == [0, 0, 0, 1, 1, 2, 3]

    @pytest.mark.parametrize("value", ["0.5", "NaN", "{}", "1e400"])
    def test_other_values(self, tmp_path: Path, value: str) -> None:
        with pytest.raises(DataError, match=r"a\.jsonl:1: the label is .*neither a string nor an integer"):
            labeled(tmp_path, f'{{"text": "a", "label": {value}}}\n', "a.jsonl")

    @pytest.mark.parametrize("line", ['{"text": "a", "label": null}', '{"text": "a"}'])
    def test_a_missing_label(self, tmp_path: Path, line: str) -> None:
        with pytest.raises(DataError, match=r"a\.jsonl:2: the label is missing"):
            labeled(tmp_path, '{"text": "a", "label": "joy"}\n' + line, "a.jsonl")

    def test_an_empty_label(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"a\.csv:3: the label is empty"):
            labeled(tmp_path, "text,label\na,joy\nb, \n")

    def test_a_label_that_train_never_has(self, tmp_path: Path) -> None:
        write(tmp_path, "train.txt", pairs("a", "b", "a", "b"))
        write(tmp_path, "dev.txt", pairs("a", "z"))
        message = refused(tmp_path)
        assert f"{tmp_path}/dev.txt:2: the label 'z' has no training text; the labels are a, b\n" in message

    def test_a_label_that_was_not_given(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.txt", pairs("a", "b", "A"))
        message = refused(path, labels=("a", "b"))
        assert "a.txt:3: the label 'A' is not among the labels given; the labels are a, b" in message

    def test_a_label_given_without_training_text_is_said(self, tmp_path: Path) -> None:
        write(tmp_path, "train.txt", pairs("a", "b"))
        write(tmp_path, "val.txt", pairs("c", "b"))
        loaded = load(tmp_path, labels=("c", "b", "a"))
        assert loaded.notes == ("no training text has the label c",)
        assert loaded.validation.labels == [0, 1]

    def test_one_class_only(self, tmp_path: Path) -> None:
        message = refused(write(tmp_path, "a.txt", pairs("a", "a")))
        assert "a.txt: only one class: every text has the label 'a'\nhint: " in message
        write(tmp_path, "train.txt", pairs("a", "a"))
        write(tmp_path, "val.txt", pairs("b", "a"))
        assert "only one class" in refused(tmp_path, labels=("a", "b"))

    def test_class_names_noted_in_a_parquet_file(self, tmp_path: Path) -> None:
        note = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["neg", "pos"]}}}}
        table = pyarrow.table({"text": ["a", "b", "c", "d"], "label": [1, 0, 1, 0]})
        table = table.replace_schema_metadata({"huggingface": json.dumps(note)})
        pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
        write(tmp_path, "val.csv", "text,label\na,pos\n")
        loaded = load(tmp_path)
        assert loaded.labels == ("neg", "pos")
        assert loaded.train.labels == [1, 0, 1, 0] and loaded.validation.labels == [1]

    def test_a_class_index_out_of_range(self, tmp_path: Path) -> None:
        note = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["neg", "pos"]}}}}
        table = pyarrow.table({"text": ["a", "b"], "label": [1, 2]})
        table = table.replace_schema_metadata({"huggingface": json.dumps(note)})
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
        assert "a.parquet: row 2: the label 2 is outside 0 to 1" in refused(tmp_path / "a.parquet")


class TestTexts:
    @pytest.mark.parametrize(
        ("line", "what"),
        [
            ('{"text": "", "label": "joy"}', "the text is empty"),
            ('{"text": " \\t\\u3000", "label": "joy"}', "the text is empty"),
            ('{"text": null, "label": "joy"}', "the text is missing"),
            ('{"label": "joy"}', "the text is missing"),
            ('{"text": 5, "label": "joy"}', "the text is of type int, not a string"),
            ('{"text": "a\\ud83d b", "label": "joy"}', r"the value contains \ud83d, a lone surrogate"),
            ('{"text": "a", "label": "\\udc00"}', r"the value contains \udc00, a lone surrogate"),
        ],
    )
    def test_what_is_no_text_is_named(self, tmp_path: Path, line: str, what: str) -> None:
        with pytest.raises(DataError) as caught:
            labeled(tmp_path, f'{{"text": "😀", "label": "joy"}}\n{line}\n', "a.jsonl")
        assert caught.value.line == 2
        assert caught.value.message.startswith(f"{tmp_path}/a.jsonl:2: {what}")

    def test_texts_are_kept_as_they_are(self, tmp_path: Path) -> None:
        texts = [" null", "NA ", "a\u2028b", "<|endoftext|>", "😀"]
        lines = "".join(json.dumps({"text": text, "label": "joy"}) + "\n" for text in texts)
        assert labeled(tmp_path, lines, "a.jsonl").texts == texts

    @pytest.mark.parametrize(
        ("name", "content"), [("a.csv", "text,label\n"), ("a.jsonl", "\n\n"), ("a.txt", "\n")]
    )
    def test_no_texts(self, tmp_path: Path, name: str, content: str) -> None:
        message = refused(write(tmp_path, name, content))
        assert message.startswith(f"{tmp_path}/{name}: ") and ("no texts" in message or "no rows" in message)


class TestColumns:
    @pytest.mark.parametrize(
        ("header", "row"),
        [
            ("text,label", "yes,joy"),
            ("Emotion,Sentence,id", "joy,yes,1"),
            ("label,anything", "joy,yes"),
            ("content,anything", "yes,joy"),
            ("anything,category", "yes,joy"),
            ("id,text,title,label,class", "1,yes,no,joy,no"),
        ],
    )
    def test_they_are_found_by_name(self, tmp_path: Path, header: str, row: str) -> None:
        split = labeled(tmp_path, f"{header}\n{row}\n")
        assert (split.texts, split.labels) == (["yes"], [0])

    def test_they_are_found_as_given(self, tmp_path: Path) -> None:
        content = "text,label,a,b\nno,no,yes,joy\n"
        assert labeled(tmp_path, content, text_column="a", label_column="b").texts == ["yes"]
        assert labeled(tmp_path, "label,text\nyes,joy\n", text_column="label").texts == ["yes"]

    def test_a_missing_column(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.csv", "text,label,x\na,b,c\n")
        assert "no column 'y'; the columns are text, label, x" in refused(path, text_column="y")
        assert "no column 'y'; the columns are text, label, x" in refused(path, label_column="y")
        assert "cannot be both" in refused(path, text_column="x", label_column="x")

    def test_no_column_is_known(self, tmp_path: Path) -> None:
        message = refused(write(tmp_path, "a.csv", "i feel fine,joy,3\nso sad,sad,4\n"))
        assert (
            "a.csv: no column for the text is known by its name; the columns are i feel fine, joy, 3"
            in message
        )
        assert "hint: use text_column='NAME'" in message
        assert "label_column='NAME'" in refused(write(tmp_path, "b.csv", "text,x,z\na,b,c\n"))


class TestFolder:
    @pytest.mark.parametrize("name", ["val", "validation", "valid", "dev", "Val"])
    def test_names_of_the_splits(self, tmp_path: Path, name: str) -> None:
        write(tmp_path, "train.txt", pairs("a", "b"))
        write(tmp_path, f"{name}.tsv", "text\tlabel\nc\ta\n")
        write(tmp_path, "test.jsonl", '{"text": "d", "label": "b"}\n')
        for other in ("train.log", "README.md", "training.txt", "test.txt.bak"):
            write(tmp_path, other, "not data")
        loaded = load(tmp_path)
        assert loaded.validation == data.Split("validation", ["c"], [0])
        assert loaded.test == data.Split("test", ["d"], [1])

    def test_shards_are_joined_in_order(self, tmp_path: Path) -> None:
        for shard in range(3):
            table = pyarrow.table({"text": [f"{shard}a", f"{shard}b"], "label": ["x", "y"]})
            pyarrow.parquet.write_table(table, tmp_path / f"train-0000{shard}-of-00003.parquet")
        pyarrow.parquet.write_table(table, tmp_path / "validation-00000-of-00001.parquet")
        loaded = load(tmp_path)
        assert loaded.train.texts == ["0a", "0b", "1a", "1b", "2a", "2b"]
        assert loaded.validation.labels == [0, 1]

    def test_a_fault_names_its_shard(self, tmp_path: Path) -> None:
        for shard, label in enumerate(("y", "z")):
            table = pyarrow.table({"text": ["a", "b"], "label": ["x", label]})
            pyarrow.parquet.write_table(table, tmp_path / f"train-{shard}.parquet")
        assert "train-1.parquet: row 2: the label 'z'" in refused(tmp_path, labels=("x", "y"))

    @pytest.mark.parametrize(
        ("split", "names"),
        [
            ("train", ["train.csv", "train.txt"]),
            ("validation", ["dev.csv", "val.csv"]),
            ("test", ["test.csv", "test-0.parquet"]),
        ],
    )
    def test_more_than_one_candidate(self, tmp_path: Path, split: str, names: list[str]) -> None:
        for name in ["train.csv", *names]:
            write(tmp_path, name, "text,label\na,b\n")
        assert f"more than one file could be the {split} split: {', '.join(names)}\n" in refused(tmp_path)

    def test_no_training_file(self, tmp_path: Path) -> None:
        write(tmp_path, "test.csv", "text,label\na,b\n")
        write(tmp_path, "train.csv.zip", "")
        message = refused(tmp_path)
        assert "no training file in this folder; it contains test.csv, train.csv.zip\n" in message
        assert "hint: name the files train," in message

    def test_files_named_beside_it(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        write(tmp_path / "folder", "train.txt", pairs("a", "b"))
        write(tmp_path / "folder", "val.txt", pairs("a"))
        validation = write(tmp_path, "other.txt", pairs("b", "b"))
        test = write(tmp_path, "more.txt", pairs("a"))
        loaded = load(tmp_path / "folder", validation=str(validation), test=str(test))
        assert loaded.validation.labels == [1, 1]
        assert loaded.test is not None and loaded.test.labels == [0]
        assert "none.txt: no such file" in refused(tmp_path / "folder", test=str(tmp_path / "none.txt"))


class TestCut:
    LABELS = tuple(random.Random(1).choices("aaaabbbc", k=400))

    def test_it_is_stratified_and_loses_nothing(self, tmp_path: Path) -> None:
        loaded = load(write(tmp_path, "a.txt", pairs(*self.LABELS)), validation_fraction=0.25, seeds=(7, 8))
        whole = Counter(self.LABELS)
        aside = Counter(loaded.labels[label] for label in loaded.validation.labels)
        assert aside == {label: round(whole[label] / 4) for label in "abc"}
        assert sorted(loaded.train.texts + loaded.validation.texts) == sorted(f"text {n}" for n in range(400))
        for split in (loaded.train, loaded.validation):
            numbers = [int(text.split()[1]) for text in split.texts]
            assert numbers == sorted(numbers)
            assert [loaded.labels[label] for label in split.labels] == [self.LABELS[n] for n in numbers]
        assert loaded.notes[0].endswith("25 % of each class, seed 7")

    def test_it_depends_on_the_first_seed_only(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.txt", pairs(*self.LABELS))
        first = load(path, seeds=(1,))
        random.seed(5)
        assert load(path, seeds=(1, 2)) == first
        assert load(path, seeds=(2,)).validation.texts != first.validation.texts
        assert load(path, seeds=(1,), labels=("c", "b", "a")).validation.texts == first.validation.texts

    @pytest.mark.parametrize("fraction", [0.01, 0.99])
    def test_each_class_keeps_a_text_on_both_sides(self, tmp_path: Path, fraction: float) -> None:
        loaded = load(write(tmp_path, "a.txt", pairs(*"aabb")), validation_fraction=fraction)
        assert Counter(loaded.train.labels) == Counter(loaded.validation.labels) == {0: 1, 1: 1}

    def test_a_class_of_one_text_cannot_be_cut(self, tmp_path: Path) -> None:
        message = refused(write(tmp_path, "a.txt", pairs(*"aabc", "b")))
        assert "a.txt: only one text has the label 'c'" in message and "validation='FILE'" in message


class TestNames:
    @pytest.mark.parametrize("name", ["none.csv", "./none", "/none/at/all", "~/none.txt", "a/b/c"])
    def test_what_is_no_hub_id_is_a_missing_file(self, name: str) -> None:
        with pytest.raises(DataError, match="no such file"):
            load(name)

    def test_a_folder_that_has_the_shape_of_a_hub_id(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "org" / "name").mkdir(parents=True)
        write(tmp_path / "org" / "name", "train.txt", pairs(*"abab"))
        monkeypatch.chdir(tmp_path)
        assert len(load("org/name").train) == 2

    @pytest.mark.parametrize("path", ["/etc/passwd/train.csv", "a" * 300 + ".csv"])
    def test_a_path_that_cannot_be(self, path: str) -> None:
        with pytest.raises(DataError, match="cannot be read"):
            load(path)


class TestRows:
    def test_all_columns_in_batches(self, tmp_path: Path) -> None:
        size = 2 * BATCH_ROWS + 1
        path = write(tmp_path, "a.csv", "id,sentence\n" + "".join(f"{n},t {n}\n" for n in range(size)))
        rows = text_rows(path)
        found = list(rows.batches())
        assert (rows.column, rows.notes) == ("sentence", ("a.csv: text: sentence; kept as they are: id",))
        assert [len(batch) for batch in found] == [BATCH_ROWS, BATCH_ROWS, 1]
        assert found[2] == [{"id": str(size - 1), "sentence": f"t {size - 1}"}]
        assert sum(map(len, rows.batches())) == size, "a second pass reads the file again"

    @pytest.mark.parametrize(
        ("name", "content", "column"),
        [
            ("a.txt", "a;b\nc\n", "text"),
            ("a.csv", "anything\na;b\nc\n", "anything"),
            ("a.tsv", "label\tanything\nx\ta;b\ny\tc\n", "anything"),
            ("a.jsonl", '{"text": "a;b", "n": 1}\n{"text": "c", "m": [2]}\n', "text"),
        ],
    )
    def test_the_text_column(self, tmp_path: Path, name: str, content: str, column: str) -> None:
        rows = text_rows(write(tmp_path, name, content))
        assert rows.column == column
        assert [row[column] for batch in rows.batches() for row in batch] == ["a;b", "c"]

    def test_parquet_keeps_values_of_any_type(self, tmp_path: Path) -> None:
        rows = [{"text": "a", "n": 1, "more": [1.5]}, {"text": "b", "n": None, "more": []}]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
        assert list(text_rows(tmp_path / "a.parquet").batches()) == [rows]

    def test_faults_come_at_once_or_with_their_row(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no such file"):
            text_rows(tmp_path / "a.csv")
        with pytest.raises(DataError, match="no column 'x'; the columns are text"):
            text_rows(write(tmp_path, "a.txt", "a\n"), text_column="x")
        with pytest.raises(DataError, match="text_column"):
            text_rows(write(tmp_path, "a.csv", "a,b\n1,2\n"))
        lines = "text\n" + "a\n" * BATCH_ROWS + '" "\nb\n'
        batches = text_rows(write(tmp_path, "a.csv", lines)).batches()
        assert len(next(batches)) == BATCH_ROWS
        with pytest.raises(DataError, match=f"a.csv:{BATCH_ROWS + 2}: the text is empty"):
            next(batches)
        with pytest.raises(DataError, match="no texts"):
            list(text_rows(write(tmp_path, "a.csv", "text\n")).batches())

    def test_empty_rows_are_skipped_if_asked_to(self, tmp_path: Path) -> None:
        for name, content in (
            ("a.csv", "text,n\na,1\n ,2\nb,3\n"),
            ("a.jsonl", '{"text": "a"}\n{"text": null}\n{"text": "b"}\n'),
            ("a.txt", "a\n\nb\n\n"),
        ):
            notes: list[str] = []
            path = write(tmp_path, name, content)
            (batch,) = text_rows(path, skip_empty=True).batches(notes)
            assert [row["text"] for row in batch] == ["a", "b"]
            assert notes == [f"{name}: 1 row without a text skipped"]
            with pytest.raises(DataError, match=rf"{name}:\d: the text is (empty|missing)"):
                list(text_rows(path).batches())

    def test_labels_within_the_lines_are_taken_out(self, tmp_path: Path) -> None:
        lines = [f"text {n}; more;joy" for n in range(19)] + ["no label; here"]
        rows = text_rows(write(tmp_path, "a.txt", "\n".join(lines)), labels=("joy", "sad"))
        (batch,) = rows.batches()
        assert batch[0] == {"text": "text 0; more", "label": "joy"} and batch[19] == {
            "text": "no label; here"
        }
        assert rows.notes == (
            "a.txt: 19 of the first 20 lines end in ';' and a label: the text is classified without it, "
            "and the label is kept",
        )

    def test_a_semicolon_is_no_label(self, tmp_path: Path) -> None:
        lines = [f"text {n};joy" for n in range(18)] + ["so; sad", "x"]
        for labels, content in ((("joy",), lines), (("bliss",), lines[:18])):
            rows = text_rows(write(tmp_path, "a.txt", "\n".join(content)), labels=labels)
            assert [row["text"] for batch in rows.batches() for row in batch] == content
            assert rows.notes == ()

    def test_labels_of_fasttext_lines_are_taken_out(self, tmp_path: Path) -> None:
        rows = text_rows(write(tmp_path, "a.txt", "__label__joy so glad; today\n__label__x no\n"))
        assert list(rows.batches()) == [
            [{"text": "so glad; today", "label": "joy"}, {"text": "no", "label": "x"}]
        ]
        assert "2 of the first 2 lines have a __label__" in rows.notes[0]

    def test_memory_is_bounded(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        with path.open("w") as file:
            file.write("text\n")
            for _ in range(64):
                file.write(("x" * 99 + "\n") * 5000)
        script = (
            "import sys, resource, pathlib; from rankwise.data.unlabeled import text_rows\n"
            "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "before = used()\n"
            "rows = sum(map(len, text_rows(pathlib.Path(sys.argv[1])).batches()))\n"
            "print(rows, used() - before)\n"
        )
        rows, kilobytes = map(int, python(script, str(path)).split())
        assert rows == 320_000
        assert kilobytes < 8_000  # the file has 32,000


# --- the Hub, simulated by a local server ---------------------------------------------------

COMMIT = "a" * 40
CARD = """---
configs:
- config_name: split
  data_files:
  - {split: train, path: train.parquet}
  - {split: validation, path: validation.parquet}
  - {split: test, path: test.parquet}
- config_name: odd
  data_files:
  - {split: train, path: train.parquet}
  - {split: held_out, path: test.parquet}
- config_name: broken
  data_files:
  - {split: train, path: lost.parquet}
dataset_info:
- config_name: split
  features: &features
  - {name: text, dtype: string}
  - name: label
    dtype: {class_label: {names: {'0': sadness, '1': joy, '2': love}}}
- config_name: odd
  features: *features
---
"""


def shard(texts: str, labels: list[int]) -> bytes:
    out = io.BytesIO()
    table = pyarrow.table(
        {"text": [f"text {text}" for text in texts], "label": pyarrow.array(labels, pyarrow.int64())}
    )
    pyarrow.parquet.write_table(table, out)
    return out.getvalue()


FILES = {
    "README.md": CARD.encode(),
    "train.parquet": shard("abcd", [2, 0, 2, 0]),
    "validation.parquet": shard("ef", [0, 2]),
    "test.parquet": shard("gh", [-1, -1]),
    "lost.parquet": b"",
}


class Hub(BaseHTTPRequestHandler):
    """Hub responses for a small dataset, org/tiny; the connection drops in the middle of `lost.parquet`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Suppress request logging."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content_Length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        name = path.rsplit("/", 1)[-1]
        if "/org/tiny" not in path:
            self.answer(404, X_Error_Code="RepoNotFound")
        elif name == "lost.parquet":
            self.close_connection = True
        elif "/resolve/" in path and name in FILES:
            self.answer(
                200, FILES[name], ETag=f'"{hashlib.sha1(FILES[name]).hexdigest()}"', X_Repo_Commit=COMMIT
            )
        elif "/resolve/" in path:
            self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        elif "/tree/" in path:
            files = [
                {"type": "file", "path": name, "size": len(FILES[name]), "oid": "b" * 40} for name in FILES
            ]
            self.answer(200, json.dumps(files).encode(), Content_Type="application/json")
        else:
            siblings = [{"rfilename": name} for name in FILES]
            about = {"id": "org/tiny", "sha": COMMIT, "siblings": siblings, "tags": []}
            self.answer(200, json.dumps(about).encode(), Content_Type="application/json")

    do_HEAD = do_GET


@contextmanager
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def python(script: str, *arguments: str, **environment: str) -> str:
    """The output of a script in a new process, because the Hub client reads its settings on import."""
    paths = {"PYTHONPATH": str(REPOSITORY / "src"), "NO_PROXY": "127.0.0.1"}
    outside = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", script, *arguments]
    done = subprocess.run(
        command,
        env={**outside, **paths, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


ASK = """
import dataclasses, json, sys
from rankwise.data import load as data
from rankwise.errors import RankwiseError
from rankwise.recipe import Recipe

for settings in json.loads(sys.argv[1]):
    try:
        print(json.dumps(dataclasses.asdict(data.load(Recipe(**settings))), default=dict))
    except RankwiseError as error:
        print(json.dumps([type(error).__name__, error.message, error.hint]))
"""


def ask(*questions: dict[str, Any], **environment: str) -> list[Any]:
    return [json.loads(line) for line in python(ASK, json.dumps(questions), **environment).splitlines()]


def test_the_hub(tmp_path: Path) -> None:
    own = write(tmp_path, "own.csv", "text,label\nmine,joy\n")
    tiny = {"data": "org/tiny", "data_config": "split"}
    with hub() as address:
        usual, named, odd, no_config, no_split, no_such, outage = ask(
            tiny,
            {**tiny, "validation": str(own), "test": "validation", "labels": LABELS[:3][::-1]},
            {"data": "org/tiny", "data_config": "odd"},
            {**tiny, "data_config": "none"},
            {**tiny, "validation": "extra"},
            {"data": "org/none"},
            {"data": "org/tiny", "data_config": "broken"},
            HF_ENDPOINT=address, HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1",
        )  # fmt: skip
    assert usual["labels"] == ["sadness", "joy", "love"]
    assert usual["train"] == {
        "name": "train", "texts": ["text a", "text b", "text c", "text d"], "labels": [2, 0, 2, 0],
        "places": [f"org/tiny[train] row {number}" for number in (1, 2, 3, 4)],
    }  # fmt: skip
    assert usual["validation"]["labels"] == [0, 2] and usual["test"] is None
    assert [source["name"] for source in usual["sources"]] == ["org/tiny[train]", "org/tiny[validation]"]
    assert usual["notes"] == [
        "org/tiny[test]: no test text has a label, so there is no test split",
        "no training text has the label joy",
    ]
    assert named["labels"] == ["love", "joy", "sadness"] and named["train"]["labels"] == [0, 2, 0, 2]
    assert named["validation"]["texts"] == ["mine"] and named["test"]["texts"] == ["text e", "text f"]
    assert odd["validation"]["texts"] and "were held out" in odd["notes"][-1] and odd["test"] is None
    assert (
        no_config[0] == "DataError" and "'none' not found" in no_config[1] and "data_config" in no_config[2]
    )
    assert no_split[:2] == ["DataError", "org/tiny: no split 'extra'; it has train, validation, test"]
    assert no_such[0] == "DataError" and no_such[1].startswith(
        "org/none: no such file or folder, and no such dataset"
    )
    assert outage[0] == "Unreachable"
    assert outage[1] == "org/tiny: no such path here, and the Hub cannot be reached: no answer"


def test_without_the_hub(tmp_path: Path) -> None:
    (found,) = ask({"data": "dair-ai/emotion"}, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert found == [
        "Unreachable",
        "dair-ai/emotion: no such path here, and the Hub cannot be reached: HF_HUB_OFFLINE is set, and it is "
        "not in the cache",
        "try again when online, or use a local file or folder (data='PATH')",
    ]


def test_files_are_read_without_heavy_imports(tmp_path: Path) -> None:
    write(tmp_path, "train.csv", "text,label\na,x\nb,y\nc,x\nd,y\n")
    script = (
        "import sys; from rankwise.data import load as data; from rankwise.recipe import Recipe\n"
        "data.load(Recipe(data=sys.argv[1]))\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'sklearn', 'numpy', 'pyarrow'}\n"
        "print(heavy & set(sys.modules))"
    )
    assert python(script, str(tmp_path)).strip() == "set()"
