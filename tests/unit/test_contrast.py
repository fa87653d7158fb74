"""Accuracy beside log loss: what is said if the two metrics agree, differ, or contradict each other."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from rankwise.report import build
from rankwise.report.contrast import UNREADABLE, Contrast, contrast
from rankwise.report.ranks import compare
from rankwise.report.run import load
from rankwise.schema import Comparison, MetricName
from rankwise.store.run_folder import RunFolder
from tests.made import made_run


def scaled(folder: Path, accuracies: dict[int, float], scales: dict[int, float]) -> RunFolder:
    """A run whose logits are multiplied by a factor for each rank: the labels stay, the log losses change."""
    run = made_run(folder, accuracies=accuracies, sizes={"validation": 1500}, baselines=False)
    for row in run.read_results().adapters:
        path = run.logits / f"{row.name}.safetensors"
        logits = safetensors.numpy.load(path.read_bytes())
        factor = np.float32(scales.get(row.rank, 1))
        path.write_bytes(safetensors.numpy.save({name: factor * each for name, each in logits.items()}))
    return run


def told(run: RunFolder) -> tuple[Contrast, Comparison]:
    loaded = load(run)
    comparison = compare(loaded)
    found = contrast(loaded, comparison)
    assert found is not None
    return found, comparison


def test_log_loss_separates_ranks_of_the_same_accuracy(tmp_path: Path) -> None:
    run = scaled(tmp_path / "run", {1: 0.9, 2: 0.9, 8: 0.9}, {1: 0.1, 2: 0.1})
    found, comparison = told(run)
    assert all(pair.p >= 0.05 for pair in comparison.pairs)
    assert "By log loss, with a margin of 0.01 nats: Rank 8 is the best of those tried." in found.text
    assert (
        "separates ranks that accuracy cannot tell apart: rank 8 has a lower log loss than ranks 1 and 2."
        in (found.text)
    )
    assert "contradict" not in found.text


def test_log_loss_contradicts_the_accuracy(tmp_path: Path) -> None:
    found, comparison = told(scaled(tmp_path / "run", {1: 0.7, 8: 0.95}, {8: 0.02}))
    assert comparison.pairs[0].p < 0.05 and comparison.best == 8
    assert (
        "contradict each other: although less accurate, rank 1 has a lower log loss than rank 8."
        in found.text
    )
    assert "separates" not in found.text


def test_log_loss_says_nothing_new(tmp_path: Path) -> None:
    found, _ = told(scaled(tmp_path / "run", {1: 0.9, 8: 0.9}, {}))
    assert found.text.startswith("By log loss, with a margin of 0.01 nats, the verdict is the same")
    assert found.text.endswith("Log loss separates no ranks that accuracy cannot tell apart.")


def test_the_table_has_both_metrics(tmp_path: Path) -> None:
    run = load(scaled(tmp_path / "run", {1: 0.8, 8: 0.9}, {}))
    accuracy, log_loss = compare(run), compare(run, metric="log-loss")
    found = contrast(run, log_loss)
    assert found is not None and found.table is not None and found == contrast(run, accuracy)
    assert found.table.columns == (
        "rank", "accuracy", "minus rank 8", "95 %", "log loss", "minus rank 8", "95 %",
    )  # fmt: skip
    row = found.table.rows[0]
    assert row[:2] == ("1", f"{100 * accuracy.ranks[0].accuracy:.2f}")
    assert row[4] == f"{log_loss.ranks[0].mean:.4f}"
    assert row[5] == f"{log_loss.pairs[0].difference:+.4f}" and row[5].startswith("+")
    assert row[2].startswith("-")


def test_a_report_without_logits_says_so(tmp_path: Path) -> None:
    run = scaled(tmp_path / "run", {1: 0.9, 8: 0.9}, {})
    (run.logits / "r8-s1.safetensors").unlink()
    found, _ = told(run)
    assert found == Contrast(None, UNREADABLE)
    build.rebuild(run)
    assert escape(UNREADABLE).replace("&#x27;", "&#39;") in (run.path / "report.html").read_text("utf-8")
    assert UNREADABLE in run.table.read_text("utf-8")


def test_a_single_rank_has_no_contrast(tmp_path: Path) -> None:
    run = load(scaled(tmp_path / "run", {8: 0.9}, {}))
    assert contrast(run, compare(run)) is None


@pytest.mark.parametrize("metric", ["accuracy", "log-loss", "macro-f1"])
def test_the_page_and_the_table_show_it(tmp_path: Path, metric: MetricName) -> None:
    run = scaled(tmp_path / "run", {1: 0.8, 8: 0.9}, {})
    build.report([run], None, metric, 0.05)
    page, table = (run.path / "report.html").read_text("utf-8"), run.table.read_text("utf-8")
    found = contrast(load(run), compare(load(run), 0.05, metric))
    assert found is not None and found.text in page and found.text in table
    assert ("The basis of the verdict." in page) == (metric == "accuracy")
    assert ("which rank is enough?" in page) == (metric == "accuracy")
    assert compare(load(run), 0.05, metric).headline in page
