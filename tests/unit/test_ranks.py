"""Which rank is enough: computed from predictions, with wording that matches the numbers."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from rankwise.errors import UsageError
from rankwise.report.ranks import compare, summary_table
from rankwise.report.run import load
from rankwise.schema import Comparison
from rankwise.store.run_folder import RunFolder


def invented(
    run: RunFolder, folder: Path, accuracies: dict[int, float], seeds: int, texts: int, shared: float
) -> RunFolder:
    """A run of synthetic predictions: ranks with given accuracies and correlated errors.

    Args:
        run: a real run to copy the structure of results.json from.
        folder: output folder.
        accuracies: rank -> accuracy of each of its seeds, rounded to whole texts.
        seeds: number of seeds.
        texts: validation texts.
        shared: correlation of errors between adapters; 1 for identical difficulty.
    """
    results = run.read_results()
    row, made = results.adapters[0], RunFolder(folder)
    rng = np.random.default_rng(0)
    hard = rng.random(texts)
    lines = [
        {"split": "validation", "text": f"text {i}", "label": results.labels[0]} for i in range(texts)
    ] + [{"split": "test", "text": "another", "label": results.labels[0]}]
    rows = []
    for rank, accuracy in accuracies.items():
        for seed in range(seeds):
            name = f"r{rank}-s{seed}"
            rows.append(row.model_copy(update={"name": name, "rank": rank, "seed": seed}))
            difficulty = shared * hard + (1 - shared) * rng.random(texts)
            wrong = set(np.argsort(-difficulty)[: round((1 - accuracy) * texts)].tolist())
            for i, line in enumerate(lines):
                line[name] = results.labels[1 if i in wrong or i == texts else 0]
                line[f"{name} probability"] = "0.9"
    folder.mkdir()
    with made.predictions.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
    shutil.copy(run.recipe, made.recipe)
    made.results.write_text(
        results.model_copy(update={"adapters": rows, "cuts": []}).model_dump_json(), "utf-8"
    )
    return made


def verdict(run: RunFolder, folder: Path, accuracies: dict[int, float], **options: float) -> Comparison:
    shape = {"seeds": 3, "texts": 2000, "shared": 0.95} | options
    made = invented(run, folder, accuracies, int(shape["seeds"]), int(shape["texts"]), shape["shared"])
    return compare(load(made))


def test_a_small_rank_that_is_as_good_is_enough(run: RunFolder, tmp_path: Path) -> None:
    found = verdict(run, tmp_path / "run", {1: 0.80, 2: 0.929, 8: 0.93}, shared=0.99)
    assert (found.best, found.enough) == (8, 2)
    assert found.headline == "Rank 2 is enough" and found.verdict.startswith(f"{found.headline}. ")
    assert "-0.10 points from rank 8" in found.verdict


def test_a_worse_rank_is_not_enough(run: RunFolder, tmp_path: Path) -> None:
    found = verdict(run, tmp_path / "run", {1: 0.80, 2: 0.86, 8: 0.93})
    assert (found.best, found.enough) == (8, 8)
    assert found.headline == "Rank 8 is the best of those tried"
    assert "A larger rank may be better still" in found.verdict
    assert all(pair.p < 0.05 for pair in found.pairs)


def test_noise_is_called_noise_and_more_is_asked_for(run: RunFolder, tmp_path: Path) -> None:
    found = verdict(run, tmp_path / "run", {4: 0.93, 8: 0.93}, shared=0.5, texts=60)
    assert found.enough is None
    assert found.headline == (
        "On only 60 validation texts, the ranks cannot be told apart; rank 4 is the smallest"
    )
    assert found.recommended == 4
    assert "One text of 60 counts 1.667 points" in found.verdict


def test_one_seed_asks_for_more_texts_and_says_that_it_is_one(run: RunFolder, tmp_path: Path) -> None:
    found = verdict(run, tmp_path / "run", {4: 0.92, 8: 0.93}, seeds=1, texts=300, shared=0.8)
    assert "validation texts instead of 300 would" in found.verdict
    assert "One seed was trained" in found.verdict
    assert [each.accuracy_spread for each in found.ranks] == [None, None]
    assert found.pairs[0].p >= found.pairs[0].mcnemar[0]


def test_the_smallest_rank_can_be_the_best(run: RunFolder, tmp_path: Path) -> None:
    found = verdict(run, tmp_path / "run", {1: 0.93, 8: 0.90})
    assert (found.best, found.enough) == (1, 1)
    assert found.headline == "Rank 1 is the best of those tried"


def test_the_verdict_names_the_learning_rate_that_all_ranks_share(run: RunFolder, tmp_path: Path) -> None:
    found = verdict(run, tmp_path / "run", {1: 0.93, 8: 0.90})
    assert "at the learning rate 0.02, which was not tuned for each rank" in found.verdict
    assert "learning rate" not in verdict(run, tmp_path / "one", {8: 0.9}).verdict


def test_a_single_rank_has_nothing_to_be_compared_with(run: RunFolder, tmp_path: Path) -> None:
    assert "no other rank to compare it with" in verdict(run, tmp_path / "run", {8: 0.9}).verdict


def test_a_wider_margin_lets_more_ranks_pass(run: RunFolder, tmp_path: Path) -> None:
    made = invented(run, tmp_path / "run", {1: 0.90, 8: 0.93}, 3, 2000, 0.95)
    assert compare(load(made)).enough == 8
    assert compare(load(made), margin=0.05).enough == 1


def test_the_test_split_is_never_looked_at(run: RunFolder, tmp_path: Path) -> None:
    """The only test text of the synthetic run, which all ranks get wrong, changes no number."""
    found = verdict(run, tmp_path / "run", {1: 0.9, 8: 1.0}, texts=100)
    assert [each.accuracy for each in found.ranks] == pytest.approx([0.9, 1.0])


def test_the_table_shows_each_rank_against_the_best(run: RunFolder, tmp_path: Path) -> None:
    found = verdict(run, tmp_path / "run", {1: 0.80, 2: 0.94, 8: 0.93})
    rows = {row[0]: row for row in summary_table(found).rows}
    assert summary_table(found).columns[4] == "minus rank 2"
    assert rows["1"][4] == "-14.00" and rows["8"][4] == "-1.00" and rows["2"][4:] == ("", "", "")
    low, high = (float(part) for part in rows["8"][5].split(" to "))
    assert low < -1 < high


def test_a_real_run(run: RunFolder) -> None:
    found = compare(load(run))
    assert [each.rank for each in found.ranks] == [0, 1, 4]
    by_rank = {row.rank: row.validation.accuracy for row in run.read_results().adapters}
    assert {each.rank: each.accuracy for each in found.ranks} == pytest.approx(by_rank)


def test_damaged_predictions_are_named(run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("adapters"))
    copy = RunFolder(tmp_path / "run")
    copy.predictions.write_text("split,text,label\nvalidation,a,b\n", "utf-8")
    with pytest.raises(UsageError, match=r"predictions\.csv"):
        compare(load(copy))
