"""Merged runs are as if trained at once; runs that do not belong together are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankwise import Recipe, UsageError, sweep
from rankwise.commands.merge import merge_runs
from rankwise.errors import as_options
from rankwise.store.run_folder import RunFolder
from tests import tiny

Runs = Callable[..., Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, gpt2_base: Path, data_folder: Path) -> Runs:
    """A finished run of a recipe with some changes; each is trained once."""
    folder = tmp_path_factory.mktemp("parts")

    def of(data: Path = data_folder, **changes: Any) -> Path:
        path = folder / "-".join(f"{name}{value}" for name, value in changes.items()).replace(" ", "")
        path = path if data == data_folder else path.with_name(f"{path.name}-other")
        if not path.exists():
            sweep(tiny.recipe(gpt2_base, data, **{"epochs": 1} | changes), path)
        return path

    return of


def content(folder: Path) -> dict[str, bytes]:
    names = ("predictions.csv", "history.jsonl", "results.json", "table.md", "samples.md", "recipe.toml")
    found = {name: (folder / name).read_bytes() for name in names}
    for path in (*(folder / "adapters").rglob("*.*"), *(folder / "logits").iterdir()):
        found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def test_seeds_are_merged(made: Runs, tmp_path: Path) -> None:
    """The result of a sweep of all seeds that trains the same adapters together, byte by byte."""
    parts = [made(ranks=(1, 2), seeds=(seed,), bank_size=2) for seed in (5, 6)]
    results, merged = merge_runs(parts, tmp_path / "merged")
    whole = made(ranks=(1, 2), seeds=(5, 6), bank_size=2)
    assert content(tmp_path / "merged") == content(whole)
    assert [each.adapters for each in merged] == [["r1-s5", "r2-s5"], ["r1-s6", "r2-s6"]]
    assert json.loads((tmp_path / "merged" / "merged.json").read_text()) == [e.model_dump() for e in merged]
    assert (tmp_path / "merged" / "report.html").exists()
    assert results.verdict


def test_ranks_are_merged(made: Runs, tmp_path: Path) -> None:
    """The largest rank is cut to the ranks of the other run, too."""
    parts = [made(ranks=(rank,), seeds=(5,)) for rank in (1, 4)]
    results, _ = merge_runs(parts, tmp_path / "merged")
    assert [row.name for row in results.adapters] == ["r1-s5", "r4-s5"]
    assert [each.name for each in results.cuts] == ["r4-s5-cut1"]


def test_the_merged_run_can_be_extended(made: Runs, tmp_path: Path) -> None:
    merge_runs([made(ranks=(rank,), seeds=(5,)) for rank in (1, 4)], tmp_path / "merged")
    recipe = Recipe.load(tmp_path / "merged" / "recipe.toml")
    results = sweep(recipe.replace(ranks=(2,)), tmp_path / "merged", resume=True)
    assert [row.name for row in results.adapters] == ["r1-s5", "r2-s5", "r4-s5"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranks": (4,), "seeds": (5,), "epochs": 2}, "another recipe: epochs is 1 and 2"),
        ({"ranks": (1,), "seeds": (5,)}, "r1-s5 is in both"),
        ({"ranks": (4,), "seeds": (6,)}, "the runs together lack r1-s6, r4-s5"),
    ],
)
def test_what_does_not_belong_together(
    made: Runs, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    first, other = made(ranks=(1,), seeds=(5,)), made(**changes)
    if first == other:
        other = Path(shutil.copytree(first, tmp_path / "copy"))
    with pytest.raises(UsageError, match=message):
        merge_runs([first, other], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_other_data(made: Runs, tmp_path: Path, data_folder: Path) -> None:
    """Under another path, the same data is the same; other data is not."""
    copy = Path(shutil.copytree(data_folder, tmp_path / "copy"))
    first = made(ranks=(1,), seeds=(5,))
    merge_runs([first, made(copy, ranks=(2,), seeds=(5,))], tmp_path / "merged")
    tiny.write_csv(copy / "train.csv", tiny.rows(48, 99))
    with pytest.raises(UsageError, match="have another train split"):
        merge_runs([first, made(copy, ranks=(4,), seeds=(5,))], tmp_path / "other")


def test_a_split_that_one_run_lacks(made: Runs, tmp_path: Path, data_folder: Path) -> None:
    """In either order, and nothing is written."""
    copy = Path(shutil.copytree(data_folder, tmp_path / "copy"))
    tiny.write_csv(copy / "test.csv", tiny.rows(12, 3))
    parts = [made(ranks=(1,), seeds=(5,)), made(copy, ranks=(8,), seeds=(5,))]
    for runs in (parts, parts[::-1]):
        with pytest.raises(UsageError, match="have another test split"):
            merge_runs(runs, tmp_path / "merged")
        assert not (tmp_path / "merged").exists()


def test_runs_that_are_not_finished_or_too_few(made: Runs, tmp_path: Path) -> None:
    first = made(ranks=(1,), seeds=(5,))
    with pytest.raises(UsageError, match="at least two runs"):
        merge_runs([first], tmp_path / "merged")
    with pytest.raises(UsageError, match="not a finished sweep") as caught:
        merge_runs([first, tmp_path / "not here"], tmp_path / "merged")
    hint = as_options(caught.value.written[1])
    assert hint == f"finish it first: rankwise sweep --resume '{tmp_path / 'not here'}'"
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(UsageError, match="already exists"):
        merge_runs([first, made(ranks=(4,), seeds=(5,))], tmp_path / "taken")
    assert not RunFolder(tmp_path / "merged").is_begun()
