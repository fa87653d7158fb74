"""A search of a tiny model: its results, its resumption, its report, and its command."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from rankwise import Classifier, RankwiseError, Recipe, TrainingError, UsageError, search, sweep
from rankwise.progress.board import Board
from rankwise.report import build
from rankwise.report import search as report
from rankwise.report.runs import list_runs
from rankwise.report.search_page import search_page
from rankwise.schema import SearchResults, SearchTrial
from rankwise.stats.importance import importances
from rankwise.store.run_folder import RunFolder
from rankwise.training import signals
from rankwise.training.callbacks import Callback
from rankwise.training.trainer import StepResult, Trainer
from tests import tiny
from tests.unit.page import Page as Html
from tests.unit.test_cli import rankwise, refusal
from tests.unit.test_resume import Stop

FILES = ("search.json", "history.jsonl", "search.csv", "recipe.toml", "figures/search.svg")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed, (split, texts) in enumerate({"train": 240, "validation": 30, "test": 24}.items()):
        tiny.write_csv(folder / f"{split}.csv", tiny.rows(texts, seed))
    return folder


@pytest.fixture(scope="module")
def recipe(gpt2_base: Path, data: Path) -> Recipe:
    """Twelve trials, of which those with the highest learning rate diverge; 10, 30 and 90 steps."""
    return tiny.recipe(
        gpt2_base,
        data,
        ranks=(1, 4),
        tune=True,
        learning_rates=(1e-3, 1e-1, 1e20),
        vary={"weight_decay": (0.0, 0.1)},
    )


@pytest.fixture(scope="module")
def found(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished search. Read-only."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "searched")
    search(recipe, folder.path, places=5)
    return folder


class Ears(Callback):
    """Collects notes and the names of stages."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.stages: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, stage: str, total: int | None) -> None:
        self.stages.append(stage)


def test_results(found: RunFolder, recipe: Recipe) -> None:
    results = found.read_search()
    assert len(results.trials) == 12
    assert results.searched == ["rank", "learning_rate", "weight_decay"]
    assert (results.places, results.steps, results.draws, results.seed) == (5, 90, None, 110)
    assert results.shares == pytest.approx([1 / 9, 1 / 3, 1])
    lost = [trial for trial in results.trials if trial.settings["learning_rate"] == 1e20]
    assert [trial.end for trial in lost] == ["diverged"] * 4 and all(trial.diverged for trial in lost)
    assert [trial.end for trial in results.trials[:2]] == ["finished", "finished"]
    best = results.trials[0]
    assert best.name == results.best and best.log_loss == results.validation.log_loss
    assert best.accuracy == results.validation.accuracy
    assert results.test is not None and results.test.texts == 24
    assert [each.name for each in found.adapters.iterdir()] == [results.best]
    assert not found.checkpoint.exists()
    assert Recipe.load(found.recipe) == recipe


def test_the_command_trains_the_same_adapter(found: RunFolder, tmp_path: Path) -> None:
    """Beside other adapters on another bank: the metrics agree up to rounding."""
    results = found.read_search()
    words = shlex.split(results.command)
    assert words[:2] == ["rankwise", "sweep"]
    rankwise(*words[1:], "--no-baselines", "--out", tmp_path / "run")
    (row,) = RunFolder(tmp_path / "run").read_results().adapters
    best = results.trials[0]
    assert (row.rank, row.settings["weight_decay"]) == (best.rank, best.settings["weight_decay"])
    assert row.validation.log_loss == pytest.approx(results.validation.log_loss, rel=1e-3)
    assert results.test and row.test
    assert row.test.log_loss == pytest.approx(results.test.log_loss, rel=1e-3)


def test_the_adapter_predicts(found: RunFolder) -> None:
    classifier = Classifier.load(found.adapters / found.read_search().best, device="cpu", precision="float32")
    rows = tiny.rows(24, 2)
    right = [p.label == label for p, (_, label) in zip(classifier([t for t, _ in rows]), rows, strict=True)]
    test = found.read_search().test
    assert test is not None and np.mean(right) == pytest.approx(test.accuracy)


def test_the_test_split_is_used_once_at_the_end(recipe: Recipe, tmp_path: Path) -> None:
    ears = Ears()
    search(recipe, tmp_path / "run", ears, trials=3)
    assert ears.stages.count("test") == 1 and ears.stages[-1] == "test"


def test_without_a_test_split(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    for split in ("train", "validation"):
        shutil.copy(data / f"{split}.csv", tmp_path)
    results = search(recipe.replace(data=str(tmp_path)), tmp_path / "run", trials=2)
    assert results.test is None and "test" not in report.sentences(results)[0]


def interrupted(recipe: Recipe, folder: Path, stop: Stop, **options: Any) -> None:
    """Search until the callback stops it."""
    real, signals.check = signals.check, stop.check
    try:
        with pytest.raises(KeyboardInterrupt):
            search(recipe, folder, stop, **options)
    finally:
        signals.check = real
    assert any("search(recipe, " in note for note in stop.notes)


@pytest.mark.parametrize("step", [0, 1, 10, 17, 25, 44, 80, 120])
def test_a_resumed_search_is_bit_identical(
    found: RunFolder, recipe: Recipe, tmp_path: Path, step: int
) -> None:
    """Stopped before the first step, within a rung, when places were refilled, and near the end."""
    run = RunFolder(tmp_path / "run")
    interrupted(recipe, run.path, Stop(step=step), places=5)
    assert not run.search.exists()
    search(recipe, run.path, resume=True)
    for name in FILES:
        assert (run.path / name).read_bytes() == (found.path / name).read_bytes(), name
    weights = f"{found.read_search().best}/adapter_model.safetensors"
    assert (run.adapters / weights).read_bytes() == (found.adapters / weights).read_bytes()


def test_stopped_before_the_test_split(found: RunFolder, recipe: Recipe, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        search(recipe, run.path, Stop(stage=("test", 1)), places=5)
    ears = Ears()
    search(recipe, run.path, ears, resume=True)
    assert run.search.read_bytes() == found.search.read_bytes()
    assert ears.stages.count("test") == 1


def test_stopped_before_the_results(
    found: RunFolder, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best adapter is on disk and is not trained again."""

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    run = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(report, "importances", stop)
        with pytest.raises(KeyboardInterrupt):
            search(recipe, run.path, places=5)
    ears = Ears()
    search(recipe, run.path, ears, resume=True)
    assert run.search.read_bytes() == found.search.read_bytes()
    assert "test" not in ears.stages


def test_a_finished_search_is_not_trained_again(found: RunFolder, recipe: Recipe, tmp_path: Path) -> None:
    shutil.copytree(found.path, tmp_path / "run")
    ears = Ears()
    assert search(recipe, tmp_path / "run", ears, resume=True) == found.read_search()
    assert ears.stages == ["inputs"] and "nothing is left to train" in ears.notes[0]


def test_a_finished_search_notices_another_base(
    found: RunFolder, recipe: Recipe, gpt2_base: Path, tmp_path: Path
) -> None:
    run = RunFolder(shutil.copytree(found.path, tmp_path / "run"))
    results = json.loads(run.search.read_text())
    results["fingerprint"]["base"] = "another"
    run.search.write_text(json.dumps(results))
    with pytest.raises(UsageError, match="the base model is not what this run was started with"):
        search(recipe, run.path, resume=True)


def test_out_of_memory(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer adapters train at once from then on; no trial is lost."""
    real = Trainer.step

    def step(trainer: Trainer) -> StepResult:
        if len(trainer.names) > 2:
            raise MemoryError
        return real(trainer)

    monkeypatch.setattr(Trainer, "step", step)
    ears = Ears()
    results = search(recipe, tmp_path / "run", ears, places=5)
    assert [note for note in ears.notes if "out of memory" in note] == [
        f"out of memory: {places} adapters train at once from here on; "
        "a smaller memory_gb avoids this from the start"
        for places in (3, 2)
    ]
    assert results.places == 2 and len(results.trials) == 12
    assert results.trials[0].end == "finished"


def test_every_trial_diverges(recipe: Recipe, tmp_path: Path) -> None:
    hopeless = recipe.replace(learning_rates=(1e20, 1e21), vary={})
    with pytest.raises(TrainingError, match="the loss of every trial became infinite or NaN"):
        search(hopeless, tmp_path / "run")


def test_a_linear_probe_among_the_ranks(recipe: Recipe, tmp_path: Path) -> None:
    ears = Ears()
    both = recipe.replace(ranks=(0, 1), seeds=(5, 6), learning_rates=(1e-2, 1e-1), vary={})
    results = search(both, tmp_path / "run", ears)
    assert ears.notes == ["all trials have seed 5; the other seeds are for a sweep"]
    assert results.seed == 5 and "--seeds 5,6" in results.command
    assert {trial.rank for trial in results.trials} == {0, 1}


def test_ranks_alone(recipe: Recipe, tmp_path: Path) -> None:
    """Without tuning, the learning rate is not searched."""
    plain = recipe.replace(tune=False, learning_rates=None, vary={}, learning_rate=0.1, ranks=(1, 2, 4))
    results = search(plain, tmp_path / "run")
    assert results.searched == ["rank"]
    assert {trial.settings["learning_rate"] for trial in results.trials} == {0.1}
    assert "Of the variance of the log loss after 1/9 of the schedule, the rank explains" in " ".join(
        report.sentences(results)
    )


# What cannot be done


def test_a_sweep_is_not_a_search(found: RunFolder, run: RunFolder, recipe: Recipe, tmp_path: Path) -> None:
    shutil.copytree(found.path, tmp_path / "search")
    shutil.copytree(run.path, tmp_path / "sweep")
    with pytest.raises(UsageError, match="contains a search, not a sweep") as caught:
        sweep(recipe, tmp_path / "search", resume=True)
    assert caught.value.hint == f"search(recipe, '{tmp_path / 'search'}', resume=True) resumes it"
    with pytest.raises(UsageError, match="contains a sweep, not a search") as caught:
        search(recipe, tmp_path / "sweep", resume=True)
    assert caught.value.hint == f"sweep(recipe, '{tmp_path / 'sweep'}', resume=True) resumes it"


def test_an_unfinished_search_is_not_a_sweep(recipe: Recipe, tmp_path: Path) -> None:
    interrupted(recipe, tmp_path / "run", Stop(step=3), places=5)
    with pytest.raises(UsageError, match="contains a search, not a sweep"):
        sweep(recipe, tmp_path / "run", resume=True)
    with pytest.raises(UsageError, match="contains an unfinished search") as caught:
        sweep(recipe, tmp_path / "run")
    assert "search(recipe, " in caught.value.hint
    with pytest.raises(UsageError, match="a resumed search keeps its trials and places"):
        search(recipe, tmp_path / "run", resume=True, places=3)
    with pytest.raises(UsageError, match=r"batch_size is 8 in this run, and 9 was asked for"):
        search(recipe.replace(batch_size=9), tmp_path / "run", resume=True)


def test_a_folder_with_a_search(found: RunFolder, recipe: Recipe) -> None:
    with pytest.raises(UsageError, match="contains a finished search"):
        search(recipe, found.path)


def test_damaged_checkpoints(recipe: Recipe, tmp_path: Path) -> None:
    interrupted(recipe, tmp_path / "run", Stop(step=3), places=5)
    for path in (tmp_path / "run" / "checkpoint").rglob("state.json"):
        path.write_text("{")
    with pytest.raises(UsageError, match="no intact checkpoint is left"):
        search(recipe, tmp_path / "run", resume=True)


def test_an_error_in_the_report_says_that_the_results_are_safe(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("no figure")

    with monkeypatch.context() as patched:
        patched.setattr(report, "what_mattered", fail)
        with pytest.raises(RankwiseError, match="its results are safe"):
            search(recipe, tmp_path / "run", trials=2)
    assert "report.html" in rankwise("report", tmp_path / "run").stdout
    assert search(recipe, tmp_path / "run", resume=True).draws == 2


def test_nothing_to_resume(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to resume"):
        search(recipe, tmp_path / "run", resume=True)


def test_too_few_steps(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="3 steps are too few to search") as caught:
        search(recipe.replace(batch_size=240), tmp_path / "run")
    assert "epochs=30 or more" in str(caught.value.hint)
    assert not (tmp_path / "run" / "recipe.toml").exists()


# The report


@dataclass
class Page:
    """The report of a search."""

    results: SearchResults
    folder: RunFolder


@pytest.fixture
def page(found: RunFolder) -> Page:
    return Page(found.read_search(), found)


def test_table(page: Page) -> None:
    table = report.trial_table(page.results)
    assert table.columns == (
        "rank",
        "learning rate",
        "weight decay",
        "schedule",
        "log loss",
        "accuracy",
        "end",
    )
    first, last = table.rows[0], table.rows[-1]
    assert first[3] == "1" and first[-1] == "finished"
    assert first[4] == f"{page.results.validation.log_loss:.3f}"
    assert last[1:2] + last[3:6] == ("1e+20", "0", "", "") and last[-1].startswith("diverged at step ")
    assert "10 more trials are in search.csv" in report.trial_table(page.results, most=2).note


def test_csv(page: Page) -> None:
    with (page.folder.path / "search.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [trial.name for trial in page.results.trials]
    assert float(rows[0]["log_loss"]) == page.results.trials[0].log_loss
    assert [rows[-1][name] for name in ("share", "log_loss", "end")] == ["0.0", "", "diverged"]
    assert float(rows[0]["learning_rate"]) == page.results.trials[0].settings["learning_rate"]


def test_markdown(page: Page) -> None:
    text = (page.folder.path / "search.md").read_text()
    assert page.results.command in text and f"rankwise predict {page.folder.adapters}" in text
    assert "![What mattered](figures/search.svg)" in text
    assert (page.folder.path / "figures" / "search.png").exists()


def test_the_page(page: Page) -> None:
    """The best settings, what mattered, and all trials; commands that can be pasted; links to its files."""
    shown = Html((page.folder.path / "report.html").read_text("utf-8"))
    assert Html(search_page(page.folder, interactive=True)).headings == shown.headings
    results = page.results
    assert shown.headings[0][1] == (f"Best of {len(results.trials)} trials: {report.best_settings(results)}.")
    assert shown.text.count("diverged at step") == sum(each.end == "diverged" for each in results.trials)
    assert results.command in shown.text and f"rankwise predict {page.folder.adapters}" in shown.text
    for each in results.importances:
        assert f"{100 * each.share:.0f}" in shown.text
    links = [value for tag, name, value in shown.attributes if (tag, name) == ("a", "href")]
    assert "search.csv" in links and f"adapters/{results.best}/" in links
    assert all((page.folder.path / link).exists() for link in links if not link.startswith("#"))
    with pytest.raises(UsageError, match="contains a search"):
        build.rebuild(page.folder, extras=build.Extras(paper=True))


def test_sentences(page: Page) -> None:
    best, mattered = report.sentences(page.results)
    rate = page.results.trials[0].settings["learning_rate"]
    assert f"learning rate {rate:g} and weight decay" in best
    assert f"validation accuracy is {100 * page.results.validation.accuracy:.2f} %" in best
    assert "test accuracy" in best and "95 % interval" in best
    assert "the learning rate explains" in mattered and "rough" in mattered


def test_the_best_rate_at_the_edge(page: Page) -> None:
    kept = [trial for trial in page.results.trials if trial.settings["learning_rate"] != 1e20]
    _, edge, _ = report.sentences(page.results.model_copy(update={"trials": kept}))
    assert edge == "The best learning rate is the highest one tried; one beyond it may be better."


def words(svg: str) -> list[str]:
    tree = ElementTree.fromstring(svg)
    return ["".join(each.itertext()).strip() for each in tree.iter("text")]


def test_figure(page: Page) -> None:
    """A panel for each setting, the most important first; the caption says what the shares are."""
    drawing = report.what_mattered(page.results)
    shares = [each.share for each in page.results.importances]
    assert page.results.importances[0].setting == "learning_rate"
    assert shares == sorted(shares, reverse=True) and shares[0] > 0.5
    shown = words(drawing.inline())
    titles = [
        f"{each.setting.replace('_', ' ')}, {100 * each.share:.0f} %" for each in page.results.importances
    ]
    assert [word for word in shown if word in titles] == titles
    assert {"0.001", "0.1", "1e+20", "log loss"} <= set(shown)
    assert "Hutter et al. 2014" in drawing.description


def test_figure_of_random_rates(page: Page) -> None:
    """Many values are on a logarithmic axis with ticks at powers of ten."""
    trials = [
        SearchTrial(
            name=f"t{i}",
            rank=1 + i % 2,
            settings={"learning_rate": 10 ** (-4 + i / 10), "targets": ["a", "b"] if i % 3 else ["c"]},
            share=1.0 if i == 7 else 1 / 9,
            log_loss=1.0 - i / 40,
            accuracy=0.5,
            log_losses=[1.0 - i / 40],
            end="stopped",
        )
        for i in range(24)
    ]
    made = page.results.model_copy(
        update={"trials": trials, "best": "t7", "importances": report.importances(trials, 3)}
    )
    shown = words(report.what_mattered(made).inline())
    assert {"0.0001", "0.001", "0.01", "a+b", "c", "1", "2"} <= set(shown)


def test_useless_trials_count_as_guessing(page: Page) -> None:
    losses = report.first_losses(page.results.trials, 3)
    assert max(losses.values()) == pytest.approx(report.guessing(page.results.trials, 3))
    lost = [losses[trial.name] for trial in page.results.trials if trial.log_losses[0] is None]
    assert lost == [max(losses.values())] * 4


def test_importance_of_an_additive_loss() -> None:
    """The share of a main effect is its variance over the total, here 9 to 1 to 0."""
    pairs = [(a, b) for a in range(4) for b in range(4) for _ in range(3)]
    settings = [{"a": a, "b": b, "c": ("x", "y", None)[i % 3]} for i, (a, b) in enumerate(pairs)]
    found = importances(settings, np.array([3.0 * a + b for a, b in pairs]))
    assert list(found) == ["a", "b", "c"]
    assert [found["a"], found["b"], found["c"]] == pytest.approx([0.9, 0.1, 0.0], abs=0.03)


def test_importance_of_an_interaction_and_of_nothing() -> None:
    """Neither setting explains an exclusive or by itself."""
    settings = [{"a": i % 2, "b": i // 2 % 2} for i in range(40)]
    either = importances(settings, np.array([float(each["a"] != each["b"]) for each in settings]))
    assert max(either.values()) < 0.05
    assert importances(settings, np.ones(40)) == {"a": 0.0, "b": 0.0}


def test_in_the_list_of_runs(found: RunFolder, recipe: Recipe, tmp_path: Path) -> None:
    shutil.copytree(found.path, tmp_path / "a")
    interrupted(recipe, tmp_path / "b", Stop(step=2), places=5)
    shutil.copytree(found.path, tmp_path / "c")
    (tmp_path / "c" / "search.json").write_text("{")
    whole, half, damaged = list_runs(tmp_path)
    results = found.read_search()
    assert (whole.state, whole.accuracy) == ("finished", results.validation.accuracy)
    assert whole.created == found.read_timing().created
    assert whole.verdict == f"search: best is {results.best}"
    assert (half.state, damaged.state) == ("unfinished", "damaged")


def test_the_board_of_many_trials() -> None:
    """If not all fit, those that train now are shown."""
    board = Board()
    board.step([f"r4-lr{i}" for i in range(30)], [1.0] * 30)
    board.step(["r4-lr30", "r4-lr31"], [1.0, 2.0])
    grid = board.grid(5, 15)
    assert grid is not None and len(grid.rows) == 2 and grid.header[0] == "adapter"


# The command


def options(recipe: Recipe) -> Sequence[str]:
    given = shlex.split(report.sweep_command(recipe, 4, {}))[2:]
    return [word for word in given if word != "--no-tune"]


def test_command(recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "run"
    searched = ["--ranks", "1,2", "--learning-rates", "1e-3,1e-1", "--trials", "4", "--places", "2"]
    result = rankwise("search", *options(recipe), *searched, "--out", out)
    results = RunFolder(out).read_search()
    assert (results.draws, results.places, len(results.trials)) == (4, 2, 4)
    assert "search: 4 trials (8)" in result.stderr
    shown = " ".join(result.stdout.split())
    assert "4 trials" in shown and "The best trial has" in shown
    assert results.command in result.stdout and f"written to {out}" in result.stdout
    again = rankwise("search", "--resume", out, "--json")
    assert json.loads(again.stdout) == json.loads(RunFolder(out).search.read_text())
    assert "report.html" in rankwise("report", out).stdout
    for line in (["compare", out], ["samples", out], ["report", out, out, "--out", "x.html"]):
        shown = refusal(*line, status=2)
        assert f"{out}: contains a search, not a sweep" in shown
        assert f"hint: rankwise search --resume {out} prints its trials" in shown
        assert "its best settings: rankwise sweep " in shown
    predicted = rankwise("predict", out, "so glad", "--json")
    assert (
        f"{out} is a run: this is its adapter" in predicted.stderr
        and "the best of the search" in predicted.stderr
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--trials", "1"], "trials 1: a search needs at least 2"),
        (["--places", "0"], "places 0: at least 1 adapter must train at a time"),
        (["--no-tune", "--ranks", "4"], "there is nothing to search"),
        (["--resume", "a", "--out", "b"], "a: nothing to resume"),
        (["--vary", "ranks=1,2"], "ranks cannot vary"),
    ],
)
def test_bad_options(given: list[str], message: str, tmp_path: Path) -> None:
    out = [] if "--resume" in given else ["--data", "starter", "--out", str(tmp_path / "run")]
    assert message in refusal("search", *given, *out, status=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("values", [list(range(9)), [None, *range(1, 10)], [(str(i),) for i in range(10)]])
def test_many_values_that_have_no_logarithm_are_evenly_spaced(values: list[Any]) -> None:
    assert sorted(report._axis(Figure().subplots(), values)) == list(range(len(values)))
