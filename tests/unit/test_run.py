"""A run folder is read once into an immutable value; unreadable files have one clear message."""

from __future__ import annotations

import builtins
import csv
import dataclasses
import json
import shlex
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rankwise.cli import terminal
from rankwise.cli.app import app
from rankwise.errors import RankwiseError, UsageError
from rankwise.report import build
from rankwise.report.run import load
from rankwise.report.runs import list_runs
from rankwise.schema import SCHEMA
from rankwise.store.run_folder import RunFolder
from tests.made import made_run

READ = {"results.json", "recipe.toml", "timing.json", "predictions.csv", "history.jsonl", "data.json"}
CARDS = {f"adapters/r{rank}-s{seed}/README.md" for rank in (1, 4) for seed in (0, 1)}
EDITED = {"README.md", "errors.csv", *CARDS}
"""Files of a report that somebody may have edited."""
LOGITS = {f"logits/r{rank}-s{seed}.safetensors" for rank in (1, 4) for seed in (0, 1)}
"""For the log losses, which only a report and a comparison by log loss need."""


@pytest.fixture
def made(tmp_path: Path) -> RunFolder:
    run = made_run(tmp_path / "my runs" / "it's a run", accuracies={1: 0.8, 4: 0.9}, seeds=(0, 1))
    report: dict[str, Any] = {"contradictions": [], "contradictions_total": 0, "leaks": [], "splits": []}
    run.data.write_text(json.dumps(report | {"max_length": 128, "unit": "tokens"}), "utf-8")
    return run


@pytest.fixture
def reads(made: RunFolder, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how often each file of the run is opened for reading."""
    found: Counter[str] = Counter()
    plain_open, path_open = builtins.open, Path.open

    def count(path: Any, mode: str) -> None:
        if isinstance(path, str | Path) and Path(path).is_relative_to(made.path) and "r" in mode:
            found[str(Path(path).relative_to(made.path))] += 1

    def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        count(file, mode)
        return plain_open(file, mode, *args, **options)

    def path_opened(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        count(self, mode)
        return path_open(self, mode, *args, **options)

    monkeypatch.setattr(builtins, "open", opened)
    monkeypatch.setattr(Path, "open", path_opened)
    return found


def test_a_report_reads_each_file_once(made: RunFolder, reads: Counter[str]) -> None:
    build.rebuild(made)
    assert reads == dict.fromkeys(READ | LOGITS, 1)
    run = load(made)
    reads.clear()
    build.write(made, run)
    assert reads == dict.fromkeys(LOGITS | EDITED, 1)


@pytest.mark.parametrize("verb", ["compare", "samples", "runs", "report"])
def test_a_command_reads_each_file_once(made: RunFolder, reads: Counter[str], verb: str) -> None:
    assert CliRunner().invoke(app, [verb, str(made.path)]).exit_code == 0
    assert reads == dict.fromkeys(READ | (LOGITS if verb == "report" else set()), 1)


def test_what_is_loaded(made: RunFolder) -> None:
    run = load(made)
    assert (run.name, run.seeds, run.timing) == ("it's a run", 2, made.read_timing())
    assert [row.name for row in run.results.adapters] == list(run.curves)
    for split, predictions in run.predictions.items():
        assert len(predictions.texts) == run.results.texts[split]
        for row, correct in zip(run.results.adapters, predictions.correct, strict=True):
            found = row.validation if split == "validation" else row.test
            assert found and correct.mean() == pytest.approx(found.accuracy)
    of_rank_4 = run.answers("test", [row for row in run.results.adapters if row.rank == 4])
    assert np.array_equal(of_rank_4, run.predictions["test"].correct[[1, 3]])


def test_texts_can_be_long(tmp_path: Path) -> None:
    text = "so glad " * 40_000
    made = made_run(tmp_path / "run", accuracies={1: 0.8}, seeds=(0,), sizes={"validation": 5}, texts=[text])
    csv.field_size_limit(131_072)
    assert load(made).predictions["validation"].texts == (text,) * 5


def test_it_cannot_be_changed(made: RunFolder) -> None:
    run = load(made)
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.timing = None  # type: ignore[misc]
    for name in ("targets", "predicted", "probability"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(run.predictions["test"], name)[...] = 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("r4-s1 probability", "r4-s2 probability"),
        ("\nvalidation,", "\nanother,"),
        (",joy,", ",rapture,"),
        (",0.", ",none."),
        ("split,", "\udcff"),
    ],
    ids=["no column", "no validation", "unknown label", "no number", "no UTF-8"],
)
def test_damaged_predictions_are_said(made: RunFolder, old: str, new: str) -> None:
    text = made.predictions.read_text("utf-8")
    assert old in text
    made.predictions.write_bytes(text.replace(old, new).encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match=r"predictions\.csv: (not as the sweep wrote it|cannot be read)"):
        load(made)


@pytest.mark.parametrize("version", [1, SCHEMA + 1])
@pytest.mark.parametrize(
    "words", [["compare"], ["report"], ["samples"], ["sweep", "--resume"]], ids=lambda words: words[0]
)
def test_another_schema_is_refused_in_one_message(made: RunFolder, words: list[str], version: int) -> None:
    rewrite(made.results, version)
    shown = CliRunner().invoke(app, [*words, str(made.path)])
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert shown.stderr == (
        f"error: {made.results}: has schema version {version}, but this rankwise reads version {SCHEMA}\n"
        "hint: rerun the sweep into a new folder, or use the version of rankwise that wrote this one\n"
    )


def test_another_schema_is_listed_so(made: RunFolder) -> None:
    rewrite(made.results, 1)
    (found,) = list_runs(made.path)
    assert (found.state, found.ranks, found.seeds) == ("other version", [1, 4], [0, 1])
    assert found.problem and "has schema version 1" in found.problem


def test_another_schema_of_timing_is_refused(made: RunFolder) -> None:
    rewrite(made.timing, 1)
    with pytest.raises(UsageError, match=r"timing\.json: has schema version 1"):
        load(made)


def rewrite(path: Path, version: int) -> None:
    """Another schema version, with arbitrary other fields."""
    path.write_text(json.dumps({"schema_version": version, "rows": []}), "utf-8")


def test_commands_can_be_pasted_into_a_shell(
    made: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build.rebuild(made)
    again = ["rankwise", "sweep", "--recipe", "it's a run/recipe.toml", "--out", "it's a run-again"]
    lines = (made.path / "README.md").read_text("utf-8").splitlines()
    assert shlex.split(next(line for line in lines if line.startswith("rankwise sweep"))) == again
    terminal.show_written(load(made))
    tried = capsys.readouterr().out.partition("try: ")[2]
    best = next(path for path in made.adapters.iterdir() if str(path) in shlex.split(tried))
    assert shlex.split(tried) == ["rankwise", "predict", str(best), "some text"]
    monkeypatch.setattr(build, "tell", lambda run: 1 / 0)
    with pytest.raises(RankwiseError) as caught:
        build.rebuild(made)
    said = caught.value.hint.partition(" tries again")[0]
    assert shlex.split(said) == ["rankwise", "report", str(made.path)]


def test_a_damaged_recipe_still_has_its_run_listed(made: RunFolder) -> None:
    shutil.copytree(made.path, made.path.parent / "other")
    made.recipe.write_text("ranks = [", "utf-8")
    damaged, finished = list_runs(made.path.parent)
    assert (damaged.state, damaged.ranks, finished.state) == ("damaged", [], "finished")
