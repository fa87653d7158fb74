"""The data report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rankwise import Recipe, sweep
from rankwise.commands.preview import data_report
from rankwise.data import load as data
from rankwise.data.audit import normalized, report
from rankwise.models import base as bases
from rankwise.models.tokenizer import Tokenizer
from rankwise.report.data_tables import (
    class_table,
    contradiction_table,
    leak_table,
    source_table,
    split_table,
)
from rankwise.schema import DataReport
from rankwise.store.run_folder import RunFolder
from rankwise.training.callbacks import Callback
from tests import tiny
from tests.emotion import EMOTION, needs_emotion


def dataset(
    labels: tuple[str, ...] = ("joy", "fear", "anger"), **splits: list[tuple[str, str]]
) -> data.Dataset:
    made = {
        name: data.Split(name, [text for text, _ in rows], [labels.index(label) for _, label in rows])
        for name, rows in splits.items()
    }
    return data.Dataset(labels, made["train"], made["validation"], made.get("test"), ())


TRAIN = [
    ("So glad", "joy"),
    ("so glad", "fear"),
    ("so  glad ", "joy"),
    ("a bit of fear", "fear"),
    ("cross", "anger"),
]
FOUND = dataset(
    train=[*TRAIN, ("cross", "anger")],
    validation=[("SO GLAD", "joy"), ("cross", "fear"), ("new", "joy")],
    test=[("cross", "joy"), ("new", "joy"), ("other", "fear")],
)


def test_counts_by_hand() -> None:
    train, validation, test = report(FOUND, 3).splits
    assert (train.name, train.texts) == ("train", 6)
    assert [(each.label, each.texts) for each in train.classes] == [("joy", 2), ("fear", 2), ("anger", 2)]
    assert (train.duplicates, train.duplicates_normalized) == (1, 3)
    assert (validation.duplicates, test.texts) == (0, 3)
    assert (train.tokens_mean, train.tokens_p50, train.tokens_p95, train.tokens_max) == (2.0, 2, 4, 4)
    assert train.truncated is None and report(FOUND, 3).unit == "words"


def test_a_table_of_many_classes_shows_the_rarest() -> None:
    lines = [(f"{n} {copy}", f"class {n:02}") for n in range(40) for copy in range(1 + n)]
    labels = tuple(f"class {n:02}" for n in range(40))
    table = class_table(report(dataset(labels, train=lines, validation=lines), 3))
    assert [row[0] for row in table.rows] == list(labels[:30])
    assert "The 30 rarest of 40 classes" in table.note


def test_contradictions_within_and_between_splits() -> None:
    found = report(FOUND, 3)
    assert found.contradictions_total == 2
    assert [(each.text, each.labels, each.splits) for each in found.contradictions] == [
        ("So glad", ["joy", "fear"], ["train", "validation"]),
        ("cross", ["joy", "fear", "anger"], ["train", "validation", "test"]),
    ]


def test_leaks_with_the_same_and_with_another_label() -> None:
    assert [
        (each.splits, each.texts, each.same_label, each.other_label) for each in report(FOUND, 3).leaks
    ] == [
        (["train", "validation"], 2, 1, 1),
        (["train", "test"], 1, 0, 1),
        (["validation", "test"], 2, 1, 1),
    ]


def test_lengths_in_tokens_and_what_is_cut_off(gpt2_base: Path) -> None:
    tokenizer = Tokenizer.load(gpt2_base)
    rows = [("so glad", "joy"), ("after the long meeting we all went home", "fear")]
    lengths = tokenizer.lengths([text for text, _ in rows])
    assert lengths.tolist() == [len(ids) for ids in tokenizer([text for text, _ in rows], 64)]
    found = report(dataset(train=rows, validation=rows[:1]), int(lengths[0]), tokenizer.lengths)
    assert found.unit == "tokens"
    assert [split.truncated for split in found.splits] == [1, 0]
    assert found.splits[0].tokens_max == max(lengths)
    assert tokenizer([rows[1][0]], 3)[0].shape == (3,)  # counting lengths did not disable truncation


def test_many_contradictions_are_counted_and_not_all_listed() -> None:
    rows = [(f"text {i}", label) for i in range(150) for label in ("joy", "fear")]
    found = report(dataset(train=rows, validation=[("x", "joy")]), 8)
    assert (found.contradictions_total, len(found.contradictions)) == (150, 100)
    assert "The first 5 of 150" in contradiction_table(found).note


def test_normalised() -> None:
    assert normalized("\uff33\uff4f  GLAD\n") == "so glad"
    assert normalized("so, glad") != normalized("so glad")


def test_the_sweep_writes_it(run: RunFolder, gpt2_base: Path, data_folder: Path) -> None:
    found = DataReport.model_validate_json(run.data.read_text("utf-8"))
    assert {split.name: split.texts for split in found.splits} == tiny.SIZES
    assert (found.unit, found.max_length) == ("tokens", 32)
    again, notes = data_report(tiny.recipe(gpt2_base, data_folder))
    assert again == found and notes == ()


def test_words_where_there_is_no_tokenizer(data_folder: Path) -> None:
    found, _ = data_report(Recipe(data=str(data_folder), base="nobody/has-this"))
    assert found.unit == "words"
    assert split_table(found).note.startswith("Lengths in words")
    assert not any(column.startswith("over") for column in split_table(found).columns)


class Ears(Callback):
    """Collects what was read."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def read(self, text: str) -> None:
        self.lines.append(text)


def test_a_sweep_says_what_it_read(gpt2_base: Path, tmp_path: Path) -> None:
    for split, number in (("train", 12), ("validation", 6)):
        rows = [(text, label, "x") for text, label in tiny.rows(number, 3)]
        lines = ["text,label,more", *(",".join(row) for row in rows), f"{'so ' * 30}glad,joy,x"]
        (tmp_path / f"{split}.csv").write_text("\n".join(lines))
    ears = Ears()
    sweep(tiny.recipe(gpt2_base, tmp_path, ranks=(1,), epochs=1), tmp_path / "run", ears)
    assert ears.lines == [
        "train.csv: 13 texts for train; text: text, label: label; not used: more",
        "validation.csv: 7 texts for validation; text: text, label: label; not used: more",
        "1 of 13 texts of train, 1 of 7 texts of validation cut at 32 tokens",
    ]
    found = DataReport.model_validate_json((tmp_path / "run" / "data.json").read_text("utf-8"))
    assert source_table(found).rows[1] == ("validation.csv", "validation", "7", "text", "label", "more")
    assert split_table(found).note == f"{ears.lines[2]}."


def test_a_warmup_that_never_ends_is_said(gpt2_base: Path, data_folder: Path, tmp_path: Path) -> None:
    ears = Ears()
    recipe = tiny.recipe(gpt2_base, data_folder, ranks=(1,), epochs=1, warmup_steps=6)
    sweep(recipe, tmp_path / "run", ears)
    assert ears.notes == [
        "warmup takes 6 steps and training has 6, so the learning rate never reaches its peak"
    ]


def test_lines_of_text_have_no_columns(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("".join(f"text {n};{n % 2}\n" for n in range(8)))
    found, _ = data_report(Recipe(data=str(tmp_path / "train.txt"), base="nobody/has-this"))
    assert source_table(found).columns == ("file", "split", "texts")
    assert source_table(found).rows == [("train.txt", "train", "8")]


def test_what_is_at_hand(gpt2_base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path))
    assert bases.at_hand(str(gpt2_base)) == gpt2_base
    assert bases.at_hand("smollm2-135m") is None
    assert bases.at_hand("no such/name at all") is None


def test_reading_a_report_needs_no_torch() -> None:
    code = (
        "import sys, rankwise.data.audit, rankwise.report.data_tables\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@needs_emotion
def test_the_figures_of_emotion() -> None:
    """37 texts of train and validation have two labels; 5 of validation occur in train with another label."""
    found = report(data.load(Recipe(data=os.fspath(EMOTION))), 128)
    assert {split.name: (split.texts, split.duplicates) for split in found.splits} == {
        "train": (16_000, 31),
        "validation": (2_000, 2),
    }
    assert found.contradictions_total == 37
    (leak,) = found.leaks
    assert (leak.splits, leak.texts, leak.same_label, leak.other_label) == (["train", "validation"], 5, 0, 5)
    assert leak_table(found).rows[0][:5] == ("validation", "train", "5", "0", "5")
    assert json.loads(found.model_dump_json())["leaks"][0]["examples"] == leak.examples
    assert np.sum([each.texts for each in found.splits[0].classes]) == 16_000
