"""`rankwise runs` and the report on several runs, from files only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rankwise.cli.app import app
from rankwise.errors import UsageError
from rankwise.report import build
from rankwise.report.ranks import compare
from rankwise.report.run import load
from rankwise.report.runs import list_runs, runs_page
from rankwise.report.scores import rank_rows
from rankwise.store.run_folder import RunFolder
from tests.made import made_run
from tests.unit.page import Page


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A finished run, one without results, a damaged one, and a folder that is not a run."""
    made_run(tmp_path / "a-done", accuracies={1: 0.8, 4: 0.9}, seeds=(0, 1))
    made_run(tmp_path / "b-open", accuracies={1: 0.8}, seeds=(0,)).results.unlink()
    made_run(tmp_path / "c-damaged", accuracies={1: 0.8}, seeds=(0,)).results.write_text("{", "utf-8")
    (tmp_path / "notes").mkdir()
    (tmp_path / "file.txt").write_text("x")
    return tmp_path


def test_the_list(runs: Path) -> None:
    done, unfinished, damaged = list_runs(runs)
    assert [each.name for each in (done, unfinished, damaged)] == ["a-done", "b-open", "c-damaged"]
    assert [each.state for each in (done, unfinished, damaged)] == ["finished", "unfinished", "damaged"]
    assert (done.ranks, done.seeds, done.base, done.data) == (
        [1, 4],
        [0, 1],
        "smollm2-135m",
        "dair-ai/emotion",
    )
    rows = rank_rows(load(RunFolder(runs / "a-done")))
    used = next(row for row in rows if row.rank == compare(load(RunFolder(runs / "a-done"))).recommended)
    assert done.accuracy == pytest.approx(used.scores["validation"].accuracy)
    assert done.verdict and done.created == "2026-11-24T12:00:00+00:00"
    assert unfinished.accuracy is None and unfinished.ranks == [1]
    assert damaged.problem and "results.json: cannot be read" in damaged.problem


def test_a_run_is_listed_by_its_own_name_too(runs: Path) -> None:
    assert [each.name for each in list_runs(runs / "a-done")] == ["a-done"]


@pytest.mark.parametrize("damage", ["recipe", "predictions", "timing"])
def test_whatever_is_damaged_the_list_is_given(runs: Path, damage: str) -> None:
    getattr(RunFolder(runs / "a-done"), damage).write_bytes(b"\xff\x00{")
    found = list_runs(runs)[0]
    assert found.state == "damaged" and damage in (found.problem or "")


def test_the_verb_runs(runs: Path) -> None:
    shown = CliRunner().invoke(app, ["runs", str(runs)])
    assert shown.exit_code == 0
    assert all(word in shown.stdout for word in ("a-done", "unfinished", "damaged"))
    found = json.loads(CliRunner().invoke(app, ["runs", str(runs), "--json"]).stdout)
    assert found == [each.model_dump() for each in list_runs(runs)]
    assert "no runs in" in CliRunner().invoke(app, ["runs", str(runs / "notes")]).stdout
    missing = CliRunner().invoke(app, ["runs", str(runs / "none")])
    assert missing.exit_code == 2 and "no such folder" in missing.stderr


def test_runs_side_by_side(runs: Path) -> None:
    made_run(runs / "other", accuracies={2: 0.85, 8: 0.9}, seeds=(0,), sizes={"validation": 50})
    folders = [RunFolder(runs / "a-done"), RunFolder(runs / "other")]
    shown = Page(runs_page([load(folder) for folder in folders]))
    assert shown.headings[0] == (1, "2 runs side by side.")
    assert "They were not validated on the same texts." in shown.text
    for folder in folders:
        assert folder.path.name in shown.text
        row = next(each for each in rank_rows(load(folder)) if each.rank == compare(load(folder)).recommended)
        assert f"{100 * row.scores['validation'].accuracy:.2f}" in shown.text
    assert "validated on the same texts." in Page(runs_page([load(folders[0])] * 2)).text


def test_the_verb_report(runs: Path) -> None:
    run, page = RunFolder(runs / "a-done"), runs / "page.html"
    shown = CliRunner().invoke(app, ["report", str(run.path)])
    assert (shown.exit_code, shown.stdout.split()[-1]) == (0, str(run.path / "report.html"))
    assert (run.path / "figures" / "accuracy-validation.svg").exists()
    shown = CliRunner().invoke(app, ["report", str(run.path), "--out", str(page), "--json"])
    assert json.loads(shown.stdout) == {"page": str(page)}
    assert f'href="{run.path.name}/results.json"' in page.read_text("utf-8")
    shown = CliRunner().invoke(app, ["report", str(run.path), str(run.path), "--out", str(page)])
    assert shown.exit_code == 0 and "2 runs side by side" in page.read_text("utf-8")


def test_what_cannot_be_reported(runs: Path) -> None:
    done, unfinished = RunFolder(runs / "a-done"), RunFolder(runs / "b-open")
    with pytest.raises(UsageError, match="needs an output file"):
        build.report([done, done])
    with pytest.raises(UsageError, match="not a finished run"):
        build.report([unfinished])
    with pytest.raises(UsageError, match="not a finished run"):
        build.report([done, unfinished], runs / "page.html")
    data = runs / "train.csv"
    data.write_text("text,label\n", "utf-8")
    for folders in ([done], [done, done]):
        with pytest.raises(UsageError, match=r"train\.csv: already exists, and is no page of rankwise"):
            build.report(folders, data)
    assert data.read_text("utf-8") == "text,label\n"
    with pytest.raises(UsageError, match=r"predictions\.csv"):
        done.predictions.write_text("split,text,label\n", "utf-8")
        build.report([done])


def test_a_report_needs_no_torch(runs: Path) -> None:
    """With imports of torch and other heavy packages blocked."""
    code = f"""
import sys

class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "peft", "datasets", "tokenizers"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Gone())
from rankwise.cli.app import main
sys.argv = ["rankwise", "report", {str(runs / "a-done")!r}]
try:
    main()
except SystemExit as end:
    assert not end.code
assert "matplotlib.pyplot" not in sys.modules
sys.argv = ["rankwise", "runs", {str(runs)!r}]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and "report.html" in done.stdout and "finished" in done.stdout
