"""A run recommends one adapter, and everything that names an adapter to use names that one."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from rankwise.cli import terminal
from rankwise.commands.locate import adapter_folder
from rankwise.report import build
from rankwise.report.card import adapter_card, run_card
from rankwise.report.criteria import SVM
from rankwise.report.html import run_page
from rankwise.report.ranks import compare
from rankwise.report.run import Run, load
from rankwise.report.samples import sample_table
from rankwise.report.scores import rank_rows
from rankwise.report.verdict import recommend
from rankwise.schema import Comparison
from rankwise.stats.verdict import LEVEL
from rankwise.store.run_folder import RunFolder
from tests.made import made_run


def any_run(folder: Path, seed: int) -> Run:
    """A run of random ranks, seeds, accuracies and numbers of texts."""
    rng = np.random.default_rng(seed)
    ranks = sorted(rng.choice([0, 1, 2, 4, 8, 16, 32], rng.integers(1, 6), replace=False).tolist())
    best = rng.uniform(0.5, 0.95)
    accuracies = {rank: float(best - rng.choice([0.0, 0.0, 0.03, 0.2])) for rank in ranks}
    sizes = {"validation": int(rng.choice([20, 150, 600, 2_000])), "test": 50}
    seeds = tuple(range(int(rng.integers(1, 4))))
    baselines = bool(rng.random() < 0.8)
    made = made_run(folder, accuracies=accuracies, seeds=seeds, sizes=sizes, baselines=baselines)
    if baselines:
        add_svm(made, float(best - rng.choice([-0.1, 0.0, 0.1, 0.4])), rng)
    return load(made)


def add_svm(made: RunFolder, accuracy: float, rng: np.random.Generator) -> None:
    """Give predictions.csv a column with the labels of the linear SVM, as a sweep does."""
    labels = made.read_results().labels
    with made.predictions.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        other = labels[(labels.index(row["label"]) + 1) % len(labels)]
        row[SVM] = row["label"] if rng.random() < accuracy else other
    with made.predictions.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("seed", range(25))
def test_all_places_name_the_same_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    monkeypatch.setattr(build, "_drawings", lambda *values: [])
    run = any_run(tmp_path / "run", seed)
    story = build.tell(run)
    name = recommend(run).best.name
    terminal.show_written(run)
    printed = re.findall(r"adapters/(r\d+-s\d+)", capsys.readouterr().out)
    page = run_page(story)
    found = {
        "choice": story.choice.best.name,
        "folder": adapter_folder(run.path).name,
        "terminal": printed,
        "samples": sample_table(run).title.rpartition(" ")[2],
        "readme": re.findall(r"adapters/(r\d+-s\d+)", run_card(run, story.comparison, story.choice)),
        "page": re.findall(r"predict run/adapters/(r\d+-s\d+)", page),
        "page samples": re.findall(r"predicted by <code>(r\d+-s\d+)", page),
    }
    for place, value in found.items():
        assert set([value] if isinstance(value, str) else value) == {name}, place
    for row in run.results.adapters:
        card = adapter_card(run.results, run.recipe, row, name)
        assert ("It is the adapter that its run recommends" in card) == (row.name == name)
        if row.name != name:
            assert f"recommends another adapter, {name}" in card.replace("\\", "")


@pytest.mark.parametrize("seed", range(25))
def test_the_rule(tmp_path: Path, seed: int) -> None:
    """Enough, or else the smallest rank not shown to be worse; the headline says what it does not beat."""
    run = any_run(tmp_path / "run", seed)
    found, candidates = compare(run), [row.rank for row in rank_rows(run) if row.rank]
    if candidates and found.enough is None:
        assert found.recommended == min(rank for rank in candidates if not worse(found, rank))
    elif candidates:
        assert found.recommended == found.enough
    compared = {each.baseline for each in found.baselines}
    assert (SVM in compared) == (SVM in run.predictions["validation"].baselines)
    for each in found.baselines:
        assert each.rank == found.recommended
        beaten, *rest = re.split("is not shown to beat|is worse than", found.headline, maxsplit=1)
        place = [beaten] if each.p < LEVEL and each.difference > 0 else rest
        assert any(each.baseline in part for part in place)
    few = run.results.texts["validation"]
    assert (f"only {few:,} validation texts" in found.headline) == (few < 400)


def worse(found: Comparison, rank: int) -> bool:
    """Whether a rank is shown to be worse than the best."""
    return any({each.rank, each.other} == {rank, found.best} and each.p < LEVEL for each in found.pairs)
