"""Thousands of classes: results grow with the texts, not with the square of the classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rankwise.cli import terminal
from rankwise.report.diagnostics import confusions
from rankwise.report.run import load
from rankwise.report.samples import sample_table
from rankwise.schema import Metrics
from rankwise.stats.metrics import MOST_DENSE, confusion_matrix, metrics
from tests.made import made_run


def case(classes: int, texts: int) -> tuple[NDArray[np.int64], NDArray[np.float32], Metrics]:
    """Targets, logits that are right for two texts in three, and their metrics."""
    random = np.random.default_rng(0)
    targets = np.arange(texts, dtype=np.int64) % classes
    logits = random.normal(size=(texts, classes)).astype(np.float32)
    logits[np.arange(texts), np.where(random.random(texts) < 2 / 3, targets, (targets + 1) % classes)] += 9
    return targets, logits, metrics("validation", targets, logits, [f"class {i}" for i in range(classes)])


@pytest.mark.parametrize("classes", [2, MOST_DENSE, MOST_DENSE + 1, 300])
def test_both_forms_of_the_confusion_matrix(classes: int) -> None:
    targets, logits, found = case(classes, 700)
    expected = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(expected, (targets, logits.argmax(axis=1)), 1)
    np.testing.assert_array_equal(confusion_matrix(found.cells(), classes), expected)
    assert bool(found.confusion) == (classes <= MOST_DENSE) == (not found.confusion_cells)
    assert Metrics.model_validate_json(found.model_dump_json()) == found


def test_the_size_of_results() -> None:
    """5,000 labels and 5,000 texts, where the matrix alone would have 25 million cells."""
    _, _, found = case(5000, 5000)
    assert len(found.confusion_cells) <= 5000
    assert sum(texts for _, _, texts in found.confusion_cells) == 5000
    assert len(found.model_dump_json(indent=1)) < 5000 * 400


def test_samples_of_many_classes(tmp_path: Path) -> None:
    """Those of 30 classes, which the title says."""
    for classes, title in ((30, "test texts, "), (31, "test texts of 30 of 31 classes, ")):
        labels = [f"class {i}" for i in range(classes)]
        sizes = {"train": 100, "validation": 2 * classes, "test": 4 * classes}
        made = made_run(tmp_path / str(classes), seeds=(0,), labels=labels, sizes=sizes)
        table = sample_table(load(made))
        assert table.title.startswith(title)
        assert len({row[1] for row in table.rows}) <= 30 < len(table.rows)


def test_confused_pairs_of_a_sparse_matrix() -> None:
    _, _, found = case(300, 700)
    pairs = confusions([each.label for each in found.classes], confusion_matrix(found.cells(), 300))
    wrong = [cell for cell in found.cells() if cell[0] != cell[1]]
    assert sorted(pair[2] for pair in pairs) == sorted(cell[2] for cell in wrong)
    assert all(0 < share <= 1 for *_, share in pairs)


@pytest.mark.parametrize("classes", [terminal.MOST_CLASSES, terminal.MOST_CLASSES + 1, 500])
def test_what_is_printed(classes: int, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, found = case(classes, 700)
    terminal.show_metrics(found)
    out = capsys.readouterr().out
    if classes <= terminal.MOST_CLASSES:
        assert "Confusion: true label down" in out and "worst" not in out
        return
    assert f"the worst 30 of {classes} classes with texts, by F1" in out
    assert "Most often confused: 30 of" in out
    assert len(out.splitlines()) < 100
    worst = min(found.classes, key=lambda each: (each.f1, -each.texts))
    assert worst.label in out
