"""Texts that the adapters get wrong: all-wrong first, then the most confident."""

from __future__ import annotations

import csv
import io

import pytest

from rankwise.report.errors import COLUMNS, errors_csv, errors_table, wrong_texts
from rankwise.report.predictions import read_predictions
from rankwise.store.run_folder import RunFolder

NAMES = ["a", "b", "c"]


def line(
    label: str, *answers: tuple[str, float], text: str = "t", split: str = "validation"
) -> dict[str, str]:
    found = {"split": split, "text": text, "label": label}
    for name, (predicted, probability) in zip(NAMES, answers, strict=True):
        found |= {name: predicted, f"{name} probability": str(probability)}
    return found


def test_all_wrong_comes_before_sure() -> None:
    found = wrong_texts(
        [
            line("x", ("x", 0.9), ("x", 0.9), ("x", 0.9), text="right"),
            line("x", ("y", 0.99), ("y", 0.99), ("x", 0.9), text="sure"),
            line("x", ("y", 0.4), ("y", 0.4), ("y", 0.4), text="all, unsure"),
            line("x", ("y", 0.6), ("y", 0.8), ("z", 0.9), text="all, surer"),
            line("x", ("y", 0.9), ("x", 0.9), ("x", 0.9), text="one of three"),
        ],
        NAMES,
    )
    assert [each.text for each in found] == ["all, surer", "all, unsure", "sure"]
    first = found[0]
    assert (first.predicted, first.wrong, first.number) == ("y", 1.0, 4)
    assert first.confidence == pytest.approx(0.7)  # of those that said y
    assert first.predictions == (("y", 2), ("z", 1))


def test_numbers_count_within_the_split() -> None:
    wrong = [("y", 0.9)] * 3
    found = wrong_texts([line("x", *wrong), line("x", *wrong, split="test"), line("x", *wrong)], NAMES)
    assert sorted((each.split, each.number) for each in found) == [
        ("test", 1), ("validation", 1), ("validation", 2),
    ]  # fmt: skip


def test_the_list_for_a_labeller() -> None:
    wrong = [("=y", 0.9)] * 3
    rows = list(
        csv.reader(io.StringIO(errors_csv(wrong_texts([line("x", *wrong, text="=cmd|'x'!A1")], NAMES))))
    )
    assert rows[0] == list(COLUMNS)
    assert rows[1] == ["validation", "1", "'=cmd|'x'!A1", "x", "'=y", "0.9000", "1.0000", "'=y 3", ""]


def test_of_a_run(run: RunFolder) -> None:
    names = [row.name for row in run.read_results().adapters]
    lines = read_predictions(run, names)
    found = wrong_texts(lines, names)
    expected = [
        each for each in lines if sum(each[name] != each["label"] for name in names) * 2 >= len(names)
    ]
    assert sorted(each.text for each in found) == sorted(each["text"] for each in expected)
    written = list(csv.DictReader(io.StringIO((run.path / "errors.csv").read_text("utf-8"))))
    assert [each["text"] for each in written] == [each.text for each in found]
    assert all(each["corrected_label"] == "" for each in written)
    table = errors_table(found, len(names), most=2)
    assert [row[0] for row in table.rows] == [each.text for each in found[:2]]
