"""`predict`: columns that are there already, stdin, empty rows, file names for texts, what is said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from typer.testing import CliRunner

from rankwise import Classifier, DataError, UsageError, evaluate
from rankwise.cli.app import app
from rankwise.commands.predict import predict_file
from rankwise.data.unlabeled import text_rows
from tests import tiny

HERE = ("--device", "cpu", "--precision", "float32")
ADDED = ["predicted_label", *(f"probability_{label}" for label in tiny.LABELS)]


def written(path: Path, content: str) -> Path:
    path.write_text(content, "utf-8")
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [row for batch in text_rows(path).batches() for row in batch]


def refusal(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["predict", *map(str, arguments), *HERE])
    assert result.exit_code == 2, result.output
    return result.stderr


def piped(content: str | bytes, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    raw = content.encode() if isinstance(content, str) else content
    command = [sys.executable, "-m", "rankwise", "predict", *map(str, arguments), *HERE]
    return subprocess.run(command, input=raw, capture_output=True, timeout=120, check=False)


# Columns that are there already


def test_columns_of_the_input_are_kept_beside_new_ones(classifier: Classifier, tmp_path: Path) -> None:
    source = written(tmp_path / "in.csv", "text,predicted_label,probability_joy\nso glad,mine,9\n")
    notes: list[str] = []
    predict_file(classifier, source, tmp_path / "out.csv", on_note=notes.append)
    (row,) = rows_of(tmp_path / "out.csv")
    assert (row["predicted_label"], row["probability_joy"]) == ("mine", "9")
    assert list(row)[3:] == [f"{name}_2" for name in ADDED]
    assert row["predicted_label_2"] == classifier(["so glad"])[0].label
    assert "in.csv: has a column 'predicted_label', so the new columns end in _2" in notes
    predict_file(classifier, tmp_path / "out.csv", tmp_path / "again.csv")
    assert list(rows_of(tmp_path / "again.csv")[0])[7:] == [f"{name}_3" for name in ADDED]


def test_a_column_of_a_later_row_is_seen(classifier: Classifier, tmp_path: Path) -> None:
    lines = [{"text": "so glad"}, {"text": "so cross", "predicted_label": 7}]
    source = written(tmp_path / "in.jsonl", "\n".join(map(json.dumps, lines)))
    predict_file(classifier, source, tmp_path / "out.jsonl")
    rows = rows_of(tmp_path / "out.jsonl")
    assert [row.get("predicted_label") for row in rows] == [None, 7]
    assert all(row["predicted_label_2"] in tiny.LABELS for row in rows)


def test_the_text_column_is_never_overwritten(classifier: Classifier, tmp_path: Path) -> None:
    source = written(tmp_path / "in.csv", "predicted_label\nso glad\n")
    with pytest.raises(
        UsageError, match="the text column 'predicted_label' has the name of an output column"
    ):
        predict_file(classifier, source, tmp_path / "out.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_an_output_is_only_replaced_if_asked_to(adapter: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "in.csv", "text\nso glad\n")
    target = written(tmp_path / "out.csv", "precious")
    message = refusal(adapter, "--input", source, "--output", target)
    assert "out.csv: already exists\nhint: give another --output, or --overwrite to replace it" in message
    assert target.read_text() == "precious"
    done = CliRunner().invoke(
        app, ["predict", str(adapter), "--input", str(source), "--output", str(target), "--overwrite", *HERE]
    )
    assert done.exit_code == 0 and rows_of(target)[0]["text"] == "so glad"


# Spreadsheets and labels within the lines


def test_a_spreadsheet_in_and_out(classifier: Classifier, tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in (["id", "review"], [7, "so glad"], [8, "=1+1"], [None, None]):
        book.worksheets[0].append(row)
    book.worksheets[0]["B3"].data_type = "s"
    book.save(tmp_path / "in.xlsx")
    notes: list[str] = []
    assert predict_file(classifier, tmp_path / "in.xlsx", tmp_path / "out.xlsx", on_note=notes.append) == 2
    header, *rows = openpyxl.load_workbook(tmp_path / "out.xlsx").worksheets[0].iter_rows(values_only=True)
    assert list(header) == ["id", "review", *ADDED]
    assert [row[:3] for row in rows] == [
        (7, "so glad", classifier(["so glad"])[0].label),
        (8, "=1+1", classifier(["=1+1"])[0].label),
    ]
    assert notes == [
        "in.xlsx: text: review; kept as they are: id",
        "in.xlsx: 1 empty row at the end left out",
    ]


@pytest.mark.parametrize(("sign", "said"), [(";", "';'"), ("\t", "a tab")])
def test_a_label_behind_the_text_is_not_classified(
    classifier: Classifier, tmp_path: Path, sign: str, said: str
) -> None:
    texts = [text for text, _ in tiny.rows(30, 9)]
    source = written(tmp_path / "in.txt", "".join(f"{text}{sign}fear\n" for text in texts))
    notes: list[str] = []
    predict_file(classifier, source, tmp_path / "out.csv", on_note=notes.append)
    rows = rows_of(tmp_path / "out.csv")
    assert [row["text"] for row in rows] == texts and {row["label"] for row in rows} == {"fear"}
    assert [row["predicted_label"] for row in rows] == [found.label for found in classifier(texts)]
    assert notes[0].startswith(
        f"in.txt: 30 of the first 30 lines end in {said} and a label: the text is classified"
    )


# Empty rows, long texts


def test_rows_without_a_text_can_be_skipped(classifier: Classifier, tmp_path: Path) -> None:
    source = written(tmp_path / "in.csv", "text,n\nso glad,1\n,2\nso cross,3\n")
    with pytest.raises(DataError, match=r"in\.csv:3: the text is empty"):
        predict_file(classifier, source, tmp_path / "out.csv")
    notes: list[str] = []
    assert predict_file(classifier, source, tmp_path / "out.csv", skip_empty=True, on_note=notes.append) == 2
    assert [row["n"] for row in rows_of(tmp_path / "out.csv")] == ["1", "3"]
    assert notes[-1] == "in.csv: 1 row without a text skipped"


def test_cut_texts_are_counted(classifier: Classifier, adapter: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "in.csv", f"text,label\n{'glad ' * 40},joy\nso glad,joy\nso cross,anger\n")
    notes: list[str] = []
    predict_file(classifier, source, tmp_path / "out.csv", on_note=notes.append)
    assert notes[-1] == "1 of 3 texts cut at 32 tokens"
    found: list[str] = []
    evaluate(adapter, source, on_note=found.append, device="cpu", precision="float32")
    assert found == ["in.csv: 3 texts; text: text, label: label", "1 of 3 texts cut at 32 tokens"]
    shown = CliRunner().invoke(app, ["predict", str(adapter), "glad " * 40, *HERE])
    assert "1 of 1 texts cut at 32 tokens" in shown.stderr


# File names, stdin


@pytest.mark.parametrize("name", ["new.csv", "data/new.jsonl", "new.csv.gz", "NEW.XLSX"])
def test_a_file_name_is_no_text(adapter: Path, name: str) -> None:
    message = refusal(adapter, "so glad", name)
    assert (
        f"'{name}' is the name of a file, not a text\nhint: to classify the texts in it: --input {name}"
        in message
    )


def test_an_existing_file_is_no_text(adapter: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "my notes.md", "so glad\n")
    assert "is the name of a file, not a text" in refusal(adapter, path)


def test_a_text_may_end_like_a_file_name(adapter: Path) -> None:
    result = CliRunner().invoke(app, ["predict", str(adapter), "so glad about new.csv", *HERE])
    assert result.exit_code == 0


def test_a_pipe(adapter: Path, classifier: Classifier) -> None:
    texts = ["so glad ☃", "so cross"]
    done = piped("\n".join(texts), adapter, "--json")
    found = json.loads(done.stdout)
    assert [each["text"] for each in found] == texts
    assert [each["label"] for each in found] == [each.label for each in classifier(texts)]


@pytest.mark.parametrize("arguments", [("-",), ("--input", "-")])
def test_stdin_by_name(adapter: Path, arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, ["predict", str(adapter), *arguments, *HERE], input="so glad\n")
    assert result.exit_code == 0 and "so glad" in result.stdout


def test_stdin_to_a_file(adapter: Path, tmp_path: Path) -> None:
    done = piped("so glad;joy\n\nso cross;fear\n", adapter, "--skip-empty", "--output", tmp_path / "out.csv")
    assert b"2 texts -> " in done.stderr and b"stdin: 2 of the first 2 lines end in ';'" in done.stderr
    assert [(row["text"], row["label"]) for row in rows_of(tmp_path / "out.csv")] == [
        ("so glad", "joy"),
        ("so cross", "fear"),
    ]


@pytest.mark.parametrize(
    ("content", "arguments", "status", "what"),
    [
        (b"", (), 2, "give either texts, or --input FILE"),
        (b"", ("-",), 3, "stdin: the file has no texts"),
        (b"so glad\n\nso cross\n", ("-",), 3, "stdin:2: the text is empty"),
        (b"caf\xe9\n", ("-",), 3, "stdin: not UTF-8"),
        (b"so glad\n", ("so cross", "--input", "-"), 2, "give either texts, or --input FILE"),
    ],
)
def test_stdin_that_cannot_be_used(
    adapter: Path, content: bytes, arguments: tuple[str, ...], status: int, what: str
) -> None:
    result = CliRunner().invoke(app, ["predict", str(adapter), *arguments, *HERE], input=content)
    assert result.exit_code == status and what in result.stderr
