"""`rankwise data FILE --corrections errors.csv`: corrected labels reach their rows, and no others."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from rankwise.cli.app import app
from rankwise.commands.corrections import correct
from rankwise.data.writers import csv_line
from rankwise.errors import DataError, UsageError
from rankwise.report.errors import COLUMNS
from rankwise.store.run_folder import RunFolder
from tests import tiny

ROWS = [
    ("so glad", "joy"), ("=1+1", "anger"), ("'=1+1", "joy"), ("twice", "joy"), ("twice", "joy"),
    ("twice", "fear"), (' "q", \n b', "fear"),
]  # fmt: skip


def write_data(path: Path) -> Path:
    lines = [("id", "text", "label"), *((i, *row) for i, row in enumerate(ROWS))]
    path.write_text("".join(map(csv_line, lines)), "utf-8")
    return path


def write_corrections(path: Path, *rows: dict[str, str]) -> Path:
    """An errors.csv with these cells, made safe for spreadsheets as the report does."""
    lines = [COLUMNS, *(tuple(row.get(name, "") for name in COLUMNS) for row in rows)]
    path.write_text("".join(csv_line(line, safe=True) for line in lines), "utf-8")
    return path


def row(text: str, label: str, new: str, source: str = "") -> dict[str, str]:
    return {"text": text, "label": label, "corrected_label": new, "source": source}


def labels(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return [line["label"] for line in csv.DictReader(file)]


def test_labels_are_corrected_and_all_else_stays(tmp_path: Path) -> None:
    data = write_data(tmp_path / "train.csv")
    corrections = write_corrections(
        tmp_path / "errors.csv",
        row("=1+1", "anger", "fear", "train.csv:3"),
        row("'=1+1", "joy", "anger"),
        row("so glad", "joy", ""),  # not corrected
        row(' "q", \n b', "fear", " joy "),
    )
    found = correct(data, corrections, tmp_path / "fixed.csv")
    assert (found.rows, found.corrections, found.changed) == (7, 3, 3)
    assert labels(tmp_path / "fixed.csv") == ["joy", "fear", "anger", "joy", "joy", "fear", "joy"]
    with data.open(newline="") as one, (tmp_path / "fixed.csv").open(newline="") as other:
        before, after = list(csv.reader(one)), list(csv.reader(other))
    assert [line[:2] for line in before] == [line[:2] for line in after]


def test_a_source_names_one_of_equal_rows_and_without_it_all_are_corrected(tmp_path: Path) -> None:
    data = write_data(tmp_path / "train.csv")
    one = write_corrections(tmp_path / "one.csv", row("twice", "joy", "anger", "train.csv:6"))
    assert correct(data, one, tmp_path / "a.csv").changed == 1
    assert labels(tmp_path / "a.csv")[3:6] == ["joy", "anger", "fear"]
    every = write_corrections(tmp_path / "every.csv", row("twice", "joy", "anger", "moved.csv:6"))
    assert correct(data, every, tmp_path / "b.csv").changed == 2
    assert labels(tmp_path / "b.csv")[3:6] == ["anger", "anger", "fear"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("unknown", "joy", "fear")], "no row of .* has this text with the label 'joy'"),
        ([row("so glad", "fear", "joy")], "no row of .* has this text with the label 'fear'"),
        ([row("so glad", "joy", "fear", "train.csv:4")], "train.csv:4 has another text or another label"),
        ([row("so glad", "joy", "Fear")], "has the label 'Fear'"),
        ([row("so glad", "joy", "fear"), row("so glad", "joy", "anger")], "by another line"),
        ([row("so glad", "joy", "")], "no label is corrected"),
    ],
)
def test_what_does_not_match_is_refused_and_nothing_written(
    tmp_path: Path, rows: list[dict[str, str]], message: str
) -> None:
    data, output = write_data(tmp_path / "train.csv"), tmp_path / "fixed.csv"
    with pytest.raises(DataError, match=message):
        correct(data, write_corrections(tmp_path / "errors.csv", *rows), output)
    assert not output.exists()


def test_a_file_without_the_columns(tmp_path: Path) -> None:
    data = write_data(tmp_path / "train.csv")
    with pytest.raises(DataError, match="no column corrected_label"):
        correct(data, data, tmp_path / "fixed.csv")


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    data = write_data(tmp_path / "train.csv")
    corrections = write_corrections(tmp_path / "errors.csv", row("so glad", "joy", "fear"))
    with pytest.raises(UsageError, match="already exists"):
        correct(data, corrections, data)
    assert labels(data)[0] == "joy"


def test_class_numbers_stay_numbers(tmp_path: Path) -> None:
    """Parquet with class indices, as JSON Lines with booleans, keep the type of their labels."""
    table = pa.table({"text": ["a", "b", "c"], "label": [0, 1, 2]})
    pq.write_table(table, tmp_path / "train.parquet")
    corrections = write_corrections(tmp_path / "errors.csv", row("a", "0", "2", "train.parquet row 1"))
    correct(tmp_path / "train.parquet", corrections, tmp_path / "fixed.parquet")
    assert pq.read_table(tmp_path / "fixed.parquet").to_pydict()["label"] == [2, 1, 2]
    lines = [{"text": "a", "label": True}, {"text": "b", "label": False}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    corrections = write_corrections(tmp_path / "more.csv", row("a", "true", "false"))
    correct(tmp_path / "train.jsonl", corrections, tmp_path / "fixed.jsonl")
    fixed = [json.loads(line) for line in (tmp_path / "fixed.jsonl").read_text().splitlines()]
    assert fixed == [{"text": "a", "label": False}, {"text": "b", "label": False}]


def test_the_errors_of_a_run_can_be_applied_to_its_data(
    run: RunFolder, data_folder: Path, tmp_path: Path
) -> None:
    """From errors.csv, through somebody's corrections, to a fixed file."""
    with (run.path / "errors.csv").open(encoding="utf-8-sig", newline="") as file:
        errors = list(csv.DictReader(file))
    for each in errors:
        each["corrected_label"] = each["predicted"]
    corrections, fixed = tmp_path / "corrected.csv", tmp_path / "fixed.csv"
    with corrections.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, errors[0])
        writer.writeheader()
        writer.writerows(errors)
    words = ["data", str(data_folder / "validation.csv"), "--corrections", str(corrections)]
    shown = CliRunner().invoke(app, [*words, "--output", str(fixed), "--json"])
    assert shown.exit_code == 0, shown.stderr
    assert json.loads(shown.stdout)["corrections"] == len(errors)
    by_line = dict(enumerate(labels(fixed), 2))
    for each in errors:
        assert by_line[int(each["source"].rpartition(":")[2])] == each["predicted"]
    assert set(labels(fixed)) <= set(tiny.LABELS)


def test_both_options_are_needed(tmp_path: Path) -> None:
    data = write_data(tmp_path / "train.csv")
    for words in (["--corrections", str(data)], ["--output", str(data)]):
        shown = CliRunner().invoke(app, ["data", str(data), *words])
        assert shown.exit_code == 2 and "one data file and a file to write" in shown.stderr


def test_empty_rows_at_the_end_are_left_as_they_are(tmp_path: Path) -> None:
    data = write_data(tmp_path / "train.csv")
    data.write_text(data.read_text("utf-8") + ",,\n,,\n", "utf-8")
    corrections = write_corrections(tmp_path / "errors.csv", row("=1+1", "anger", "fear", "train.csv:3"))
    found = correct(data, corrections, tmp_path / "fixed.csv")
    assert (found.rows, found.changed) == (7, 1)
    assert labels(tmp_path / "fixed.csv")[-3:] == ["fear", "", ""]
