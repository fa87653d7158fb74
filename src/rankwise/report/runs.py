"""Several runs: a list of the runs in a folder, and a page that compares runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.errors import RankwiseError, UsageError
from rankwise.recipe import Recipe
from rankwise.report.drawing import Drawing
from rankwise.report.figures import runs_by_rank
from rankwise.report.html import render
from rankwise.report.ranks import compare
from rankwise.report.run import Run, load
from rankwise.report.scores import ScoreRow, rank_rows
from rankwise.report.tables import Table, interval, one_line, percent
from rankwise.schema import Comparison, MetricName, RunSummary
from rankwise.store.run_folder import RunFolder

FILES = ("results.json", "search.json", "recipe.toml", "history.jsonl", "checkpoint")
"""A folder with one of these is a run, finished or not."""


def list_runs(folder: Path) -> list[RunSummary]:
    """The runs in a folder, sorted by name, or the folder itself if it is a run.

    Raises:
        UsageError: there is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder", hint="give the folder that holds your runs")
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    return [summary(RunFolder(path)) for path in ([folder] if _is_run(folder) else filter(_is_run, inside))]


def _is_run(path: Path) -> bool:
    return any((path / name).exists() for name in FILES)


def summary(folder: RunFolder) -> RunSummary:
    """A run's entry in a list, whatever its state."""
    if folder.search.exists():
        return _search_summary(folder)
    if not folder.results.exists():
        return _unread(folder, "unfinished", None)
    try:
        run = load(folder)
        comparison = compare(run)
    except RankwiseError as error:
        state = "damaged" if folder.has_known_schema() else "other version"
        return _unread(folder, state, error.message.splitlines()[0])
    except ValueError:
        return _unread(folder, "damaged", "the files do not fit together")
    rank = next(each for each in comparison.ranks if each.rank == comparison.recommended)
    return RunSummary(
        name=run.name,
        state="finished",
        created=run.timing.created if run.timing else None,
        **_settings(run.recipe),
        accuracy=rank.accuracy,
        verdict=comparison.headline,
        problem=None,
    )


def _search_summary(folder: RunFolder) -> RunSummary:
    """The entry of a finished search."""
    try:
        results, timing = folder.read_search(), folder.read_timing()
    except UsageError as error:
        return _unread(folder, "damaged", error.message.splitlines()[0])
    return _unread(folder, "finished", None).model_copy(
        update={
            "created": timing.created,
            "accuracy": results.validation.accuracy,
            "verdict": f"search: best is {results.best}",
        }
    )


def _unread(folder: RunFolder, state: str, problem: str | None) -> RunSummary:
    """The entry of a run of which at most the recipe can be read."""
    try:
        recipe = Recipe.load(folder.recipe)
    except UsageError:
        recipe = None
    return RunSummary(
        name=folder.path.resolve().name,
        state=state,
        created=None,
        **_settings(recipe),
        accuracy=None,
        verdict=None,
        problem=problem,
    )


def _settings(recipe: Recipe | None) -> dict[str, Any]:
    """The fields of a summary that come from the recipe."""
    return {
        "base": recipe.base if recipe else None,
        "data": recipe.data.name if recipe else None,
        "ranks": recipe.lora.ranks if recipe else [],
        "seeds": recipe.train.seeds if recipe else [],
    }


def runs_table(runs: Sequence[RunSummary]) -> Table:
    """One row per run, for the terminal."""
    rows = [
        (
            each.name,
            (each.created or "")[:10],
            Path(each.base or "").name,
            Path(each.data or "").name,
            f"{len(each.ranks)} x {len(each.seeds)}" if each.ranks else "",
            "" if each.accuracy is None else percent(each.accuracy),
            each.verdict or ": ".join(filter(None, (each.state, each.problem))),
        )
        for each in runs
    ]
    columns = ("run", "ended", "base", "data", "ranks x seeds", "accuracy", "verdict")
    note = "Accuracy: the recommended rank's mean over seeds on the validation split, in percent."
    return Table("", columns, rows, note=note)


@dataclass(frozen=True)
class Compared:
    """A finished run on a comparison page."""

    name: str
    run: Run
    comparison: Comparison
    rows: Sequence[ScoreRow]  # the ranks


def runs_page(runs: Sequence[Run], metric: MetricName | None = None, margin: float | None = None) -> str:
    """The page that compares several runs: a figure, a table, and the verdict of each run."""
    compared = [
        Compared(name, run, compare(run, margin, metric), rank_rows(run))
        for run, name in zip(runs, _names(runs), strict=True)
    ]
    drawing: Drawing = runs_by_rank([(each.name, each.rows) for each in compared])
    return render(
        "runs.html.jinja",
        title=f"{len(runs)} runs side by side",
        drawings={drawing.name: drawing},
        table=side_by_side(compared),
        verdicts=[(each.name, each.comparison.verdict) for each in compared],
        same=_same_texts(runs),
    )


def _names(runs: Sequence[Run]) -> list[str]:
    """Folder names, or paths if two names are equal."""
    names = [one_line(run.name) for run in runs]
    return names if len(set(names)) == len(names) else [one_line(str(run.path)) for run in runs]


def side_by_side(runs: Sequence[Compared]) -> Table:
    """One row per run: its settings, its verdict, and the metrics of the recommended rank."""
    rows = [_side(each) for each in runs]
    columns = (
        "run", "base", "training texts", "ranks", "seeds", "verdict", "validation accuracy", "95 %",
        "validation macro-F1", "test accuracy", "seconds",
    )  # fmt: skip
    return Table("", columns, rows, note="Accuracy and macro-F1 of each run's recommended rank, in percent.")


def _side(compared: Compared) -> tuple[str, ...]:
    results, timing, comparison = compared.run.results, compared.run.timing, compared.comparison
    used = next(row for row in compared.rows if row.rank == comparison.recommended)
    validation, test = used.scores["validation"], used.scores.get("test")
    return (
        compared.name,
        Path(results.base).name,
        f"{results.texts['train']:,}",
        ", ".join(row.name for row in compared.rows),
        str(len(comparison.seeds)),
        comparison.headline,
        percent(validation.accuracy),
        interval(validation),
        percent(validation.macro_f1),
        percent(test.accuracy) if test else "",
        f"{timing.seconds['total']:,.0f}" if timing and "total" in timing.seconds else "",
    )


def _same_texts(runs: Sequence[Run]) -> bool:
    """Whether all runs were validated on the same texts with the same labels."""
    first, *others = (_labeled(run) for run in runs)
    return all(each == first for each in others)


def _labeled(run: Run) -> list[tuple[str, str]]:
    """The validation texts with their labels."""
    found = run.predictions["validation"]
    labels = [run.task.cell(target, run.results.labels) for target in found.targets]
    return list(zip(found.texts, labels, strict=True))
