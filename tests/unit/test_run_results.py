"""Results in Python: verdict, recommendation, tables; the same as the report's."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest

import rankwise
from rankwise import Classifier, Recommendation, Results, UsageError, compare, schema, sweep, train
from rankwise.report import ranks
from rankwise.report.run import load
from rankwise.report.verdict import chosen
from rankwise.store.run_folder import RunFolder
from tests import tiny
from tests.docs.markdown import ROOT
from tests.made import made_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A made run of three seeds at six ranks. Read-only."""
    return made_run(tmp_path_factory.mktemp("made") / "run")


def test_a_sweep_returns_what_its_folder_holds(gpt2_base: Path, data_folder: Path, tmp_path: Path) -> None:
    recipe = tiny.recipe(gpt2_base, data_folder, ranks=(1,), epochs=1)
    results = sweep(recipe, tmp_path / "run")
    assert results.folder == tmp_path / "run"
    assert results == Results.load(tmp_path / "run") == RunFolder(tmp_path / "run").read_results()
    assert results == sweep(recipe, str(tmp_path / "run"), resume=True)
    written = (tmp_path / "run" / "results.json").read_text("utf-8")
    assert results.model_dump_json(indent=1) + "\n" == written
    assert list(json.loads(written)) == list(schema.Results.model_fields)


def test_the_verdict_is_the_reports(made: RunFolder) -> None:
    results, found = Results.load(made.path), ranks.compare(load(made))
    assert results.comparison == found and results.verdict == found.verdict
    expected = chosen(results, found)
    assert results.recommended == Recommendation(
        expected.rank, expected.best.name, made.adapters / expected.best.name
    )
    assert results.recommended.folder.is_dir()


def test_equal_results_may_be_in_different_folders(made: RunFolder, tmp_path: Path) -> None:
    results = Results.load(made.path)
    assert Results.of(made.read_results(), tmp_path) == results == made.read_results()
    assert results != results.model_copy(update={"base": "other"})
    assert pickle.loads(pickle.dumps(results)).verdict == results.verdict


def test_one_row_for_each_adapter(made: RunFolder) -> None:
    results = Results.load(made.path)
    frame = results.to_pandas()
    assert isinstance(frame, pd.DataFrame)
    assert frame["name"].tolist() == [row.name for row in results.adapters]
    for split in ("validation", "test"):
        expected = [getattr(row, split).accuracy for row in results.adapters]
        assert frame[f"{split}_accuracy"].tolist() == expected
    assert {"rank", "seed", "trainable_params", "validation_log_loss"} <= set(frame.columns)


def test_without_a_test_split_there_are_no_columns_for_it(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", sizes={"validation": 60})
    assert not [name for name in Results.load(run.path).to_pandas() if name.startswith("test")]


def test_a_notebook_shows_verdict_and_table(made: RunFolder, tmp_path: Path) -> None:
    results = Results.load(made.path)
    page = results._repr_html_()
    assert page is not None and results.verdict.split(".")[0] in page
    assert page.count("<tr>") == 1 + 6 + 3  # head, ranks, baselines
    assert repr(results) == str(results) and repr(results).startswith(f"Results('{made.path}', adapters=['r0")
    assert Results.of(results, tmp_path / "gone")._repr_html_() is None


def test_names_of_classes_are_escaped_in_notebooks(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", labels=("<b>joy</b>", "fear"))
    results = run.read_results().model_copy(update={"base": "<script>"})
    run.results.write_text(results.model_dump_json(), "utf-8")
    page = Results.load(run.path)._repr_html_()
    assert page is not None and "<script>" not in page and "<b>" not in page


def test_runs_are_compared_by_folder(made: RunFolder, tmp_path: Path) -> None:
    other = made_run(tmp_path / "other", seeds=(0,))
    found = compare(made.path, str(other.path))
    assert found == {str(each.path): ranks.compare(load(each)) for each in (made, other)}
    by_loss = compare(Results.load(made.path), metric="log-loss", margin=0.02)
    assert by_loss == {str(made.path): ranks.compare(load(made), 0.02, "log-loss")}


def test_what_cannot_be_compared(made: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a finished run"):
        compare(made.path, tmp_path)
    with pytest.raises(UsageError, match="unknown metric 'f1'"):
        compare(made.path, metric="f1")
    with pytest.raises(UsageError, match="margin 0: must be above 0"):
        compare(made.path, margin=0.0)


def test_train_returns_the_recommended_classifier(gpt2_base: Path, tmp_path: Path) -> None:
    texts, labels = zip(*tiny.rows(48, 0), strict=True)
    frame = pd.DataFrame({"review": texts, "mood": labels, "id": range(48)})
    settings = {**tiny.recipe(gpt2_base, tmp_path, ranks=(1, 4), epochs=2).flat(), "data": frame}
    for name in ("data", "text_column", "label_column"):
        settings.pop(name)
    found = train(frame, text="review", label="mood", folder=tmp_path / "run", **settings)
    assert found.results is not None and found.results.folder == tmp_path / "run"
    best = found.results.recommended
    assert f"rank={best.rank}" in repr(found) and str(best.folder) in repr(found)
    expected = Classifier.load(best.folder, device="cpu", precision="float32")
    assert found.predict(texts) == expected.predict(texts)
    again = pickle.loads(pickle.dumps(found))
    assert again.results == found.results
    resumed = train(frame, text="review", label="mood", folder=tmp_path / "run", resume=True, **settings)
    assert resumed.results == found.results


def test_the_version() -> None:
    assert rankwise.__version__ == version("rankwise")


def test_the_wheel_says_that_it_is_typed() -> None:
    """hatchling packages every file of the folder."""
    assert (ROOT / "src" / "rankwise" / "py.typed").is_file()
    assert 'packages = ["src/rankwise"]' in (ROOT / "pyproject.toml").read_text("utf-8")


def test_types_reach_users(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(
        "import rankwise\n"
        "made = rankwise.train('a.csv', epochs=2)\n"
        "reveal_type(made.predict(['a']))\n"
        "reveal_type(rankwise.sweep(rankwise.Recipe(data='a.csv')).recommended.rank)\n"
        "reveal_type(rankwise.__version__)\n"
    )
    # The project's own settings are strict; with them, mypy finds what `make check` has left in its cache.
    command = [sys.executable, "-m", "mypy", str(tmp_path / "user.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    found = [line.partition('"')[2].strip('"') for line in done.stdout.splitlines() if "Revealed" in line]
    assert found == ["list[str]", "int", "str"] or found == [
        "builtins.list[builtins.str]", "builtins.int", "builtins.str",
    ], done.stdout  # fmt: skip
    assert "error" not in done.stdout
