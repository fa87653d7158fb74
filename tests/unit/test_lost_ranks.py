"""The verdict says which adapters were tried and are not compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from rankwise.report.ranks import compare
from rankwise.report.run import load
from rankwise.schema import Comparison, Diverged
from tests.made import made_run

ACCURACIES = {1: 0.8, 4: 0.85, 16: 0.93}


def verdict(
    folder: Path,
    seeds: Sequence[int],
    lost: Sequence[tuple[int, int]],
    accuracies: dict[int, float] | None = None,
) -> Comparison:
    """The comparison of a run in which some adapters, (rank, seed), have diverged."""
    diverged = [
        Diverged(name=f"r{rank}-s{seed}", rank=rank, seed=seed, step=3, reason="an infinite loss")
        for rank, seed in lost
    ]
    sizes = {"validation": 200}
    run = made_run(folder, accuracies=accuracies or ACCURACIES, seeds=seeds, diverged=diverged, sizes=sizes)
    return compare(load(run))


def test_nothing_lost(tmp_path: Path) -> None:
    found = verdict(tmp_path / "run", (0, 1), [])
    assert not any(word in found.verdict for word in ("diverged", "share", "compared", "that all of its"))


@pytest.mark.parametrize(("seeds", "lost"), [((0,), [(16, 0)]), ((0, 1), [(16, 0), (16, 1)])])
def test_a_rank_that_diverged(tmp_path: Path, seeds: Sequence[int], lost: list[tuple[int, int]]) -> None:
    found = verdict(tmp_path / "run", seeds, lost)
    assert "Rank 16 was tried too, but diverged." in found.verdict
    assert "of those tried" not in found.verdict
    assert [each.rank for each in found.ranks] == [1, 4]


def test_two_ranks_that_diverged(tmp_path: Path) -> None:
    found = verdict(tmp_path / "run", (0,), [(16, 0), (4, 0)])
    assert found.headline.startswith("Only rank 1 is left to judge")
    assert "Ranks 4 and 16 were tried too, but diverged." in found.verdict


def test_one_seed_of_a_rank(tmp_path: Path) -> None:
    found = verdict(tmp_path / "run", (0, 1, 2), [(16, 1)])
    assert found.seeds == [0, 2]
    assert "Rank 16 lost the adapter of seed 1, which diverged." in found.verdict
    assert "The comparison is by the seeds that all of its ranks have." in found.verdict
    assert found.verdict.count("seeds that diverge are left out, which favors their rank") == 1
    found = verdict(tmp_path / "other", (0, 1), [(16, 1)])
    assert "One seed is compared, so this speaks of these adapters" in found.verdict
    assert "One seed was trained" not in found.verdict


def test_ranks_that_share_no_seed(tmp_path: Path) -> None:
    """A rank at 93 % is not passed over without a word."""
    found = verdict(tmp_path / "run", (0, 1), [(1, 0), (16, 1)], {1: 0.8, 16: 0.93})
    assert found.headline.startswith("Only rank 1 is left to judge")
    assert "Rank 16 was trained too, but not with the seeds that the others share" in found.verdict
    assert "Rank 1 lost the adapter of seed 0, which diverged." in found.verdict
    assert "Rank 16 lost the adapter of seed 1, which diverged." in found.verdict
