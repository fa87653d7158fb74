"""`rankwise cut` writes adapter folders, and a sweep evaluates its largest rank cut to the smaller ones."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from rankwise import Classifier, ModelError, UsageError, cut, evaluate, sweep
from rankwise.cli.app import app
from rankwise.commands.cut import default_folder
from rankwise.errors import RankwiseError
from rankwise.models import peft_format
from rankwise.report import build, cuts, figures
from rankwise.report.run import load
from rankwise.report.scores import baseline_rows, cut_rows, rank_rows
from rankwise.report.tables import rank_csv, rank_table
from rankwise.schema import Diverged
from rankwise.stats.intervals import mean_accuracy_interval
from rankwise.store.run_folder import RunFolder
from tests import tiny
from tests.made import made_run

TEXTS = tiny.texts(6, seed=8)


@pytest.fixture
def source(adapter: Path, tmp_path: Path) -> Path:
    """A copy of the rank-4 adapter, in whose parent folder a cut may be written."""
    return shutil.copytree(adapter, tmp_path / "adapters" / adapter.name)


# The command


def test_the_folder(source: Path) -> None:
    found = cut(source, 2)
    folder = source.with_name("r4-s110-cut2")
    assert (found.folder, found.from_rank, found.rank) == (str(folder), 4, 2)
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in source.iterdir()} - {"README.md"}  # its metrics are the source's
    before, after = peft_format.load(source), peft_format.load(folder)
    assert (after.spec.rank, after.spec.scale, after.spec.seed) == (2, before.spec.scale, 110)
    assert (after.labels, after.base, after.max_length) == (before.labels, before.base, before.max_length)
    assert found.params == sum(tensor.numel() for tensor in after.state.values())
    assert found.adapter_bytes == (folder / peft_format.WEIGHTS).stat().st_size
    assert json.loads((folder / "classifier.json").read_text())["rankwise"]["rank"] == 2
    assert 0 < min(found.kept_by_module.values()) <= found.kept <= max(found.kept_by_module.values()) < 1
    logits = [Classifier.load(each, device="cpu").logits(TEXTS) for each in (source, folder)]
    assert 1e-4 < np.abs(logits[0] - logits[1]).max() < 3


def test_a_cut_can_be_cut(source: Path) -> None:
    """Cutting in two steps gives the function of a single cut."""
    twice = cut(cut(source, 3).folder, 1, source.with_name("twice"))
    once = cut(source, 1, source.with_name("once"))
    logits = [
        Classifier.load(each.folder, device="cpu", precision="float32").logits(TEXTS)
        for each in (once, twice)
    ]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)


def test_the_folder_is_named_where_the_adapter_is_the_working_folder(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source)
    assert default_folder(Path("."), 1) == source.with_name("r4-s110-cut1")
    assert default_folder(Path("../r4-s110/"), 1) == Path("../r4-s110-cut1")


@pytest.mark.parametrize("rank", [4, 5, 0, -1])
def test_a_rank_that_is_no_cut(source: Path, rank: int) -> None:
    with pytest.raises(UsageError, match=f"r4-s110: has rank 4 and cannot be cut to rank {rank}\n") as caught:
        cut(source, rank)
    assert caught.value.hint == "give a rank from 1 to 3"
    assert [path.name for path in source.parent.iterdir()] == ["r4-s110"]


@pytest.mark.parametrize(("name", "hint"), [("r1-s110", "no smaller rank"), ("r0-s110", "nothing to cut")])
def test_an_adapter_without_a_smaller_rank(run: RunFolder, tmp_path: Path, name: str, hint: str) -> None:
    with pytest.raises(UsageError, match="cannot be cut to rank 1") as caught:
        cut(run.adapters / name, 1, tmp_path / "out")
    assert hint in caught.value.hint


def test_an_existing_folder_is_kept(source: Path) -> None:
    there = source.with_name("r4-s110-cut1")
    there.mkdir()
    (there / "mine").write_text("x")
    for out in (None, there, source):
        with pytest.raises(UsageError, match="already exists"):
            cut(source, 1, out)
    assert [path.name for path in there.iterdir()] == ["mine"]
    assert peft_format.load(source).spec.rank == 4


def test_no_adapter_or_a_damaged_one(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="this is not an adapter folder"):
        cut(tmp_path, 1)
    path = source / peft_format.WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match="damaged: it is not as it was written"):
        cut(source, 1)


def test_the_command(source: Path) -> None:
    done = CliRunner().invoke(app, ["cut", str(source), "--rank", "2"])
    assert done.exit_code == 0, done.output
    folder = source.with_name("r4-s110-cut2")
    assert f"cut from rank 4 to rank 2: {48 + 2 * 128} parameters, 1." in done.stdout
    kept = cut(source, 2, source.with_name("again")).kept
    assert f"kept of the update: {100 * kept:.2f} % of its squared norm" in done.stdout
    assert f"written to {folder}\ntry: rankwise predict {folder} 'some text'\n" in done.stdout
    shown = CliRunner().invoke(app, ["cut", str(source), "--rank", "1", "--out", str(folder / "x"), "--json"])
    assert json.loads(shown.stdout)["folder"] == str(folder / "x")


@pytest.mark.parametrize(("folder", "rank", "status"), [("", 4, 2), ("", 0, 2), ("none", 1, 4)])
def test_a_refused_command(source: Path, folder: str, rank: int, status: int) -> None:
    done = CliRunner().invoke(app, ["cut", str(source / folder), "--rank", str(rank)])
    assert (done.exit_code, done.stdout) == (status, "")
    assert done.stderr.startswith(f"error: {source / folder}: ") and "\nhint: " in done.stderr


# In a sweep


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, gpt2_base: Path, data_folder: Path) -> RunFolder:
    """A run of ranks 1, 2 and 4 with two seeds."""
    folder = RunFolder(tmp_path_factory.mktemp("cut") / "run")
    recipe = tiny.recipe(gpt2_base, data_folder, ranks=(1, 2, 4), seeds=(110, 7), baselines=False)
    sweep(recipe, folder.path)
    return folder


def test_the_largest_rank_is_cut_to_every_smaller_one(swept: RunFolder) -> None:
    found = swept.read_results().cuts
    assert [each.name for each in found] == ["r4-s110-cut1", "r4-s110-cut2", "r4-s7-cut1", "r4-s7-cut2"]
    assert [(each.from_rank, each.rank, each.seed) for each in found] == [
        (4, 1, 110), (4, 2, 110), (4, 1, 7), (4, 2, 7),
    ]  # fmt: skip
    assert all(0 < one.kept < other.kept < 1 for one, other in (found[:2], found[2:]))


def test_their_metrics_are_those_of_the_command(swept: RunFolder, data_folder: Path, tmp_path: Path) -> None:
    for each in swept.read_results().cuts:
        made = cut(swept.adapters / f"r4-s{each.seed}", each.rank, tmp_path / each.name)
        assert made.kept == pytest.approx(each.kept, rel=1e-9)
        for measured in (each.validation, each.test):
            assert measured is not None
            found = evaluate(
                made.folder, data_folder / f"{measured.split}.csv", device="cpu", precision="float32"
            )
            assert found.confusion == measured.confusion
            assert found.log_loss == pytest.approx(measured.log_loss, abs=1e-5)


def test_they_are_in_the_predictions(swept: RunFolder) -> None:
    with swept.predictions.open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["split"] == "validation"]
    for each in swept.read_results().cuts:
        right = np.mean([line[each.name] == line["label"] for line in lines])
        assert right == pytest.approx(each.validation.accuracy)


@pytest.mark.parametrize("changes", [{"cuts": False}, {"ranks": (0, 4)}, {"ranks": (0,)}])
def test_nothing_is_cut(
    changes: dict[str, object], gpt2_base: Path, data_folder: Path, tmp_path: Path
) -> None:
    recipe = tiny.recipe(gpt2_base, data_folder, epochs=1, baselines=False, **changes)
    assert sweep(recipe, tmp_path / "run").cuts == []
    assert "cut" not in (tmp_path / "run" / "table.md").read_text("utf-8")


def test_an_extended_run_cuts_its_new_largest_rank(
    run: RunFolder, gpt2_base: Path, data_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(run.path, tmp_path / "run")
    recipe = tiny.recipe(gpt2_base, data_folder, ranks=(0, 1, 2, 4))
    smaller = sweep(recipe, folder, resume=True)
    assert [each.name for each in smaller.cuts] == ["r4-s110-cut1", "r4-s110-cut2"]
    assert smaller.cuts[0].kept == run.read_results().cuts[0].kept
    larger = sweep(recipe.replace(ranks=(0, 1, 2, 4, 8)), folder, resume=True)
    assert [each.name for each in larger.cuts] == ["r8-s110-cut1", "r8-s110-cut2", "r8-s110-cut4"]
    made = cut(folder / "adapters" / "r8-s110", 2, tmp_path / "cut")
    found = evaluate(made.folder, data_folder / "validation.csv", device="cpu", precision="float32")
    assert found.confusion == larger.cuts[1].validation.confusion


# In the report


@pytest.fixture
def made(tmp_path: Path) -> RunFolder:
    return made_run(tmp_path / "made", accuracies={1: 0.85, 4: 0.9, 16: 0.92}, cuts={1: 0.7, 4: 0.88})


def test_the_rows(made: RunFolder) -> None:
    run = load(made)
    for row in cut_rows(run):
        own = [each for each in run.results.cuts if each.rank == row.rank]
        score = row.scores["validation"]
        assert (row.name, row.cut_from) == (f"16 cut to {row.rank}", 16)
        assert row.kept == pytest.approx(np.mean([each.kept for each in own]))
        assert score.by_seed == tuple(each.validation.accuracy for each in own)
        with made.predictions.open(encoding="utf-8", newline="") as file:
            lines = [line for line in csv.DictReader(file) if line["split"] == "validation"]
        right = np.array([[line[each.name] == line["label"] for line in lines] for each in own])
        assert (score.low, score.high) == pytest.approx(mean_accuracy_interval(right))


def test_the_tables(made: RunFolder) -> None:
    run = load(made)
    table = rank_table(run)
    assert [row[0] for row in table.rows][:5] == ["1", "4", "16", "16 cut to 1", "16 cut to 4"]
    assert table.rows[3][-3:] == ("", "", "")
    assert table.note.endswith("16 cut to 1: trained at rank 16, then cut to rank 1.")
    lines = [line for line in csv.DictReader(rank_csv(run).splitlines()) if line["kind"] == "cut"]
    assert [(line["name"], line["rank"], line["seeds"]) for line in lines] == [
        ("16 cut to 1", "1", "3"),
        ("16 cut to 4", "4", "3"),
    ]
    for line, row in zip(lines, cut_rows(run), strict=True):
        assert float(line["kept"]) == row.kept
        assert float(line["test_accuracy"]) == row.scores["test"].accuracy


def test_the_figure(made: RunFolder) -> None:
    run = load(made)
    drawings = [
        figures.accuracy_by_rank("validation", rank_rows(run), baseline_rows(run.results), 4, rows)
        for rows in (cut_rows(run), [])
    ]
    assert "rank 16, cut after training" in drawings[0].inline()
    assert "cut" not in drawings[1].inline()
    assert drawings[0].size[1] > drawings[1].size[1]
    for row in cut_rows(run):
        assert f"rank {row.name}: {100 * row.scores['validation'].accuracy:.2f} %" in drawings[0].description


def test_a_cut_far_below_is_named_and_does_not_stretch_the_axis(tmp_path: Path) -> None:
    run = load(made_run(tmp_path / "run", accuracies={1: 0.88, 4: 0.9}, cuts={1: 0.3}, seeds=(1,)))
    drawing = figures.accuracy_by_rank("validation", rank_rows(run), [], None, cut_rows(run))
    accuracy = run.results.cuts[0].validation.accuracy
    assert f"below: 4 cut to 1 {100 * accuracy:.1f}" in drawing.inline()


def test_the_sentence(made: RunFolder) -> None:
    """The difference of means over the seeds that have both, and no claim."""
    results = load(made).results
    trained = {(row.rank, row.seed): row.validation.accuracy for row in results.adapters}
    for rank, difference in cuts.differences(results).items():
        each = [c.validation.accuracy - trained[rank, c.seed] for c in results.cuts if c.rank == rank]
        assert difference == pytest.approx(np.mean(each))
    below = -100 * cuts.differences(results)[1]
    found = cuts.sentence(results)
    assert (
        f"rank 16 cut after training has a mean validation accuracy that is {below:.2f} points lower" in found
    )
    assert found.endswith("; these differences were not tested.")
    build.rebuild(made)
    assert found in (made.path / "report.html").read_text("utf-8")


def test_the_sentence_without_a_counterpart(tmp_path: Path) -> None:
    dropped = [Diverged(name=f"r1-s{seed}", rank=1, seed=seed, step=3, reason="loss nan") for seed in (0, 1)]
    made = made_run(
        tmp_path / "run", accuracies={1: 0.8, 4: 0.9}, cuts={1: 0.7}, seeds=(0, 1), diverged=dropped
    )
    assert cuts.sentence(load(made).results) == ""
    build.rebuild(made)


@pytest.mark.parametrize(
    ("difference", "words"), [(0.0123, "1.23 points higher"), (-0.1, "10.00 points lower"), (-1e-9, "equal")]
)
def test_points_in_words(difference: float, words: str) -> None:
    assert cuts._points(difference) == words


def test_predictions_without_the_cuts_are_refused(made: RunFolder) -> None:
    made.predictions.write_text(made.predictions.read_text("utf-8").replace("-cut1", "-cat1"), "utf-8")
    with pytest.raises(RankwiseError, match="not as the sweep wrote it"):
        load(made)
