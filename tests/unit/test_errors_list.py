"""Misclassified texts: all adapters wrong first, then the most confident."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from scipy.special import softmax

from rankwise.data.writers import csv_line
from rankwise.errors import UsageError
from rankwise.report import build
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
    found = wrong_texts(run_of(tmp_path / "run", *lines), ("validation", "test"))
    assert sorted((each.split, each.number) for each in found) == [
        ("test", 1), ("validation", 1), ("validation", 2),
    ]  # fmt: skip


def test_test_texts_are_listed_only_if_asked_for(tmp_path: Path) -> None:
    wrong = [("=y", 0.9)] * 3
    run = run_of(tmp_path / "run", line("x", *wrong), line("x", *wrong, split="test"))
    assert {each.split for each in wrong_texts(run)} == {"validation"}


def test_the_probability_of_the_given_label(tmp_path: Path) -> None:
    """The mean over the adapters, from their logits; None if these cannot be read."""
    made = made_run(tmp_path / "run", accuracies={1: 0.8, 4: 0.9}, seeds=(0, 1))
    run = load(made)
    names = [row.name for row in run.results.adapters]
    found = wrong_texts(run, ("validation", "test"))
    assert {each.split for each in found} == {"validation", "test"}
    for each in found:
        logits = [
            safetensors.numpy.load_file(made.logits / f"{name}.safetensors")[each.split][each.number - 1]
            for name in names
        ]
        label = run.results.labels.index(each.label)
        expected = np.mean([softmax(row.astype(np.float64))[label] for row in logits])
        assert each.label_probability == pytest.approx(expected)
    (made.logits / f"{names[0]}.safetensors").unlink()
    assert all(each.label_probability is None for each in wrong_texts(load(made)))


def test_the_list_for_people_who_correct_labels(tmp_path: Path) -> None:
    """No cell is a formula, even if texts and labels look like one."""
    lines = line("x", *[("=y", 0.9)] * 3, text=" \uff1dcmd|'x'!A1"), line("x", *[("x", 0.9)] * 3)
    found = errors_csv(wrong_texts(run_of(tmp_path / "run", *lines)))
    assert found.startswith("\ufeff"), "which Excel needs"
    rows = list(csv.reader(io.StringIO(found.removeprefix("\ufeff"))))
    assert rows[0] == list(COLUMNS)
    assert dict(zip(rows[0], rows[1], strict=True)) == {
        "split": "validation", "number": "1", "source": "", "text": "' \uff1dcmd|'x'!A1", "label": "x",
        "label_probability": "", "predicted": "'=y", "confidence": "0.9000", "wrong": "1.0000",
        "predictions": "'=y 3", "corrected_label": "",
    }  # fmt: skip


def test_of_a_run(run: RunFolder) -> None:
    loaded = load(run)
    names = [row.name for row in loaded.results.adapters]
    found = wrong_texts(loaded)
    with run.predictions.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    expected = [
        each
        for each in lines
        if each["split"] == "validation"
        and sum(each[name] != each["label"] for name in names) * 2 >= len(names)
    ]
    assert sorted(each.text for each in found) == sorted(each["text"] for each in expected)
    assert {each.source.partition(":")[0] for each in found} == {"validation.csv"}
    written = list(csv.DictReader(io.StringIO((run.path / "errors.csv").read_text("utf-8-sig"))))
    assert [each["text"] for each in written] == [each.text for each in found]
    assert all(each["corrected_label"] == "" for each in written)
    table = errors_table(found, len(names), most=2)
    assert [row[0] for row in table.rows] == [each.text for each in found[:2]]


def test_corrected_labels_are_kept_when_the_report_is_rebuilt(tmp_path: Path) -> None:
    """By split and number; a text that is not listed any more keeps its row, at the end."""
    made = made_run(tmp_path / "run", accuracies={1: 0.5, 4: 0.5}, seeds=(0,))
    build.rebuild(made)
    path = made.path / "errors.csv"
    rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig"))))
    rows[1]["corrected_label"] = "joy"
    rows[2] |= {"split": "test", "corrected_label": "=fear"}
    text = "".join(csv_line(cells) for cells in (COLUMNS, *(row.values() for row in rows)))
    path.write_text(text, "utf-8")
    build.rebuild(made)
    again = list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig"))))
    assert [row["number"] for row in again[:-1]] == [row["number"] for row in rows]
    assert {i for i, row in enumerate(again) if row["corrected_label"]} == {1, len(rows)}
    assert again[1] == rows[1]
    assert again[-1] == rows[2] | {"corrected_label": "'=fear"}


def test_corrections_that_cannot_be_read_are_not_overwritten(tmp_path: Path) -> None:
    made = made_run(tmp_path / "run", accuracies={1: 0.5}, seeds=(0,))
    path = made.path / "errors.csv"
    path.write_text('split,number\n"validation,1\n', "utf-8")
    with pytest.raises(UsageError, match="corrected labels in it would be lost"):
        build.rebuild(made)
    assert path.read_text("utf-8") == 'split,number\n"validation,1\n'
