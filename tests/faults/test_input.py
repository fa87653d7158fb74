"""Any file gives exactly its rows or one error message with file, line, column, cause and hint."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rankwise import Classifier, DataError, Recipe, UsageError
from rankwise.cli.app import app
from rankwise.commands.predict import predict_file
from rankwise.data.excel import LONGEST_CELL
from rankwise.data.load import load
from rankwise.data.unlabeled import text_rows
from tests.faults.cases import CASES, Rows

GOOD = [(name, file, content, rows) for name, file, content, rows in CASES if isinstance(rows, list)]
BAD = [(name, file, content, said) for name, file, content, said in CASES if isinstance(said, str)]


def written(folder: Path, file: str, content: bytes) -> Path:
    (folder / file).write_bytes(content)
    return folder / file


def said_of(path: Path) -> str:
    """The command line's error for rejected data, with status 3 and no other output."""
    result = CliRunner().invoke(app, ["plan", "--data", str(path), "--validation", str(path)])
    assert (result.exit_code, result.stdout) == (3, ""), result.output
    assert result.stderr.startswith(f"error: {path}")
    return result.stderr.removeprefix(f"error: {path}").removesuffix("\n")


def test_there_are_enough() -> None:
    assert len(CASES) >= 140 and len({name for name, *_ in CASES}) == len(CASES)


@pytest.mark.parametrize(("file", "content", "rows"), [c[1:] for c in GOOD], ids=[c[0] for c in GOOD])
def test_rows(tmp_path: Path, file: str, content: bytes, rows: Rows) -> None:
    path = written(tmp_path, file, content)
    found = load(Recipe(data=str(path), validation=str(path)))
    assert found.train.texts == [text for text, _ in rows]
    assert [found.labels[label] for label in found.train.labels] == [label for _, label in rows]
    assert found.labels == tuple(dict.fromkeys(label for _, label in rows)) or file.endswith(".parquet")


@pytest.mark.parametrize(("file", "content", "said"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_refusals(tmp_path: Path, file: str, content: bytes, said: str) -> None:
    assert said_of(written(tmp_path, file, content)) == said


@pytest.mark.parametrize(("name", "file", "content", "rows"), GOOD, ids=[c[0] for c in GOOD])
def test_predictions_keep_the_texts(
    tmp_path: Path, classifier: Classifier, name: str, file: str, content: bytes, rows: Rows
) -> None:
    """Any readable file can be labeled into any format and read back unchanged."""
    if ".txt" in file:
        return  # a whole .txt line is a text, including the label
    source = written(tmp_path, file, content)
    for suffix in (".csv", ".tsv", ".jsonl", ".parquet", ".xlsx"):
        target = tmp_path / f"out{suffix}"
        if suffix == ".xlsx" and max(len(text) for text, _ in rows) > LONGEST_CELL:
            with pytest.raises(UsageError, match="a cell holds"):
                predict_file(classifier, source, target)
            continue
        assert predict_file(classifier, source, target) == len(rows)
        read = text_rows(target)
        kept = [row[read.column] for batch in read.batches() for row in batch]
        assert kept == [text for text, _ in rows], suffix


# Not a file


def test_a_missing_file(tmp_path: Path) -> None:
    said = ": no such file\nhint: check the spelling and the current directory"
    assert said_of(tmp_path / "a.csv") == said
    (tmp_path / "link.csv").symlink_to(tmp_path / "gone.csv")
    assert said_of(tmp_path / "link.csv") == said


def test_an_empty_folder(tmp_path: Path) -> None:
    assert "no training file in this folder; it contains nothing" in said_of(tmp_path)


def test_a_folder_in_a_file_s_place(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(DataError, match=r"a\.csv: expected a file, not a folder"):
        text_rows(tmp_path / "a.csv")


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero", "/dev/tty"])
def test_devices(device: str) -> None:
    if not Path(device).exists():
        pytest.skip(f"no {device} on this machine")
    assert said_of(Path(device)).startswith(": not a regular file")


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    assert said_of(tmp_path / "a.csv").startswith(": not a regular file")


def test_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "a.csv").symlink_to(tmp_path / "a.csv")
    assert said_of(tmp_path / "a.csv").startswith(":")


def test_names_that_cannot_be(tmp_path: Path) -> None:
    assert said_of(tmp_path / ("a" * 5000 + ".csv")).startswith(
        ": the file cannot be read: File name too long"
    )
    for name in ("a\0.csv", "a\ud800.csv"):
        with pytest.raises(DataError, match="invalid file name"):
            text_rows(Path(name))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_of_somebody_else(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", b"text,label\na,x\nb,y\n")
    path.chmod(0)
    assert said_of(path).startswith(": the file cannot be read: Permission denied")
