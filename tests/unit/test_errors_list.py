"""Misclassified texts: all adapters wrong first, then the most confident."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from rankwise.data.writers import csv_line
from rankwise.report.errors import COLUMNS, errors_csv, errors_table, wrong_texts
from rankwise.report.run import Run, load
from rankwise.store.run_folder import RunFolder
from tests.made import made_run

LABELS = ("x", "=y", "z")
NAMES = ("r1-s0", "r1-s1", "r1-s2")
Line = tuple[str, str, str, tuple[tuple[str, float], ...]]  # split, text, label, predictions


def line(label: str, *predictions: tuple[str, float], text: str = "t", split: str = "validation") -> Line:
    return split, text, label, predictions


def run_of(folder: Path, *lines: Line) -> Run:
    """A run of three adapters with these predictions."""
    made = made_run(folder, accuracies={1: 0.8}, labels=LABELS, baselines=False)
    header = ["split", "text", "label", *(cell for name in NAMES for cell in (name, f"{name} probability"))]
    table: list[list[Any]] = [header]
    table += [[*texts, *(cell for each in predictions for cell in each)] for *texts, predictions in lines]
    made.predictions.write_text("".join(map(csv_line, table)), "utf-8")
    return load(made)


def test_all_wrong_comes_before_confident(tmp_path: Path) -> None:
    found = wrong_texts(
        run_of(
            tmp_path / "run",
            line("x", ("x", 0.9), ("x", 0.9), ("x", 0.9), text="right"),
            line("x", ("=y", 0.99), ("=y", 0.99), ("x", 0.9), text="sure"),
            line("x", ("=y", 0.4), ("=y", 0.4), ("=y", 0.4), text="all, unsure"),
            line("x", ("=y", 0.6), ("=y", 0.8), ("z", 0.9), text="all, surer"),
            line("x", ("=y", 0.9), ("x", 0.9), ("x", 0.9), text="one of three"),
        )
    )
    assert [each.text for each in found] == ["all, surer", "all, unsure", "sure"]
    first = found[0]
    assert (first.predicted, first.wrong, first.number) == ("=y", 1.0, 4)
    assert first.confidence == pytest.approx(0.7)  # mean over those that predicted y
    assert first.predictions == (("=y", 2), ("z", 1))


def test_numbers_count_within_the_split(tmp_path: Path) -> None:
    wrong = [("=y", 0.9)] * 3
    lines = line("x", *wrong), line("x", *wrong, split="test"), line("x", *wrong)
    found = wrong_texts(run_of(tmp_path / "run", *lines))
    assert sorted((each.split, each.number) for each in found) == [
        ("test", 1), ("validation", 1), ("validation", 2),
    ]  # fmt: skip


def test_the_list_for_people_who_correct_labels(tmp_path: Path) -> None:
    """No cell is a formula, even if texts and labels look like one."""
    lines = line("x", *[("=y", 0.9)] * 3, text=" \uff1dcmd|'x'!A1"), line("x", *[("x", 0.9)] * 3)
    found = errors_csv(wrong_texts(run_of(tmp_path / "run", *lines)))
    rows = list(csv.reader(io.StringIO(found)))
    assert rows[0] == list(COLUMNS)
    assert rows[1] == ["validation", "1", "' \uff1dcmd|'x'!A1", "x", "'=y", "0.9000", "1.0000", "'=y 3", ""]


def test_of_a_run(run: RunFolder) -> None:
    loaded = load(run)
    names = [row.name for row in loaded.results.adapters]
    found = wrong_texts(loaded)
    with run.predictions.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    expected = [
        each for each in lines if sum(each[name] != each["label"] for name in names) * 2 >= len(names)
    ]
    assert sorted(each.text for each in found) == sorted(each["text"] for each in expected)
    written = list(csv.DictReader(io.StringIO((run.path / "errors.csv").read_text("utf-8"))))
    assert [each["text"] for each in written] == [each.text for each in found]
    assert all(each["corrected_label"] == "" for each in written)
    table = errors_table(found, len(names), most=2)
    assert [row[0] for row in table.rows] == [each.text for each in found[:2]]
