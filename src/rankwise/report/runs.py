"""Several runs: a list of those in a folder, and a page that sets them side by side."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.errors import RankwiseError, UsageError
from rankwise.report.drawing import Drawing
from rankwise.report.figures import runs_by_rank
from rankwise.report.html import render
from rankwise.report.predictions import read_predictions
from rankwise.report.ranks import compare, in_short
from rankwise.report.scores import ScoreRow, rank_rows
from rankwise.report.tables import Table, interval, one_line, percent
from rankwise.schema import Comparison, Results, RunSummary, Timing
from rankwise.store.run_folder import RunFolder

FILES = ("results.json", "recipe.toml", "history.jsonl", "checkpoint")


"""What shows that a folder is a run's, finished or not."""


def list_runs(folder: Path) -> list[RunSummary]:
    """The runs in a folder, or the folder itself where it is one, by name.

    Raises:
        UsageError: there is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder", hint="give the folder that holds your runs")
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    return [summary(RunFolder(path)) for path in ([folder] if _is_run(folder) else filter(_is_run, inside))]


def _is_run(path: Path) -> bool:
    return any((path / name).exists() for name in FILES)


def summary(run: RunFolder) -> RunSummary:
    """What a list says of a run, whatever its state."""
    recipe = _recipe(run)
    known: dict[str, Any] = {
        "name": run.path.resolve().name,
        "base": _text(recipe.get("base")),
        "data": _text(recipe.get("data")),
        "ranks": _numbers(recipe.get("ranks")),
        "seeds": _numbers(recipe.get("seeds")),
        **dict.fromkeys(("created", "accuracy", "verdict", "problem")),
    }
    if not run.results.exists():
        return RunSummary(**known, state="unfinished")
    try:
        found = compare(run)
        timing = run.read_timing() if run.timing.exists() else None
    except (RankwiseError, ValueError, KeyError) as error:
        problem = error.message if isinstance(error, RankwiseError) else "the files do not fit together"
        return RunSummary(**known | {"state": "damaged", "problem": problem.splitlines()[0]})
    best = next(each for each in found.ranks if each.rank == found.best)
    shown = {
        "state": "finished",
        "created": timing.created if timing else None,
        "accuracy": best.accuracy,
        "verdict": in_short(found),
    }
    return RunSummary(**known | shown)


def _recipe(run: RunFolder) -> dict[str, Any]:
    """The recipe as it stands, unchecked; empty where it cannot be read."""
    try:
        return tomllib.loads(run.recipe.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _numbers(value: object) -> list[int]:
    return [each for each in value if isinstance(each, int)] if isinstance(value, list) else []


def runs_table(runs: Sequence[RunSummary]) -> Table:
    """One row a run, for the terminal."""
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
    note = "Accuracy: the best rank's mean over seeds on the validation split, in percent."
    return Table("", columns, rows, note=note)


@dataclass(frozen=True)
class _Run:
    """A finished run as the page compares it."""

    name: str
    folder: RunFolder
    results: Results
    found: Comparison
    rows: Sequence[ScoreRow]
    timing: Timing | None


def runs_page(runs: Sequence[RunFolder]) -> str:
    """One page on several runs: a figure, a table, and each one's verdict.

    Raises:
        UsageError: a run is not finished or cannot be read.
    """
    read = [_read(run, name) for run, name in zip(runs, _names(runs), strict=True)]
    drawing: Drawing = runs_by_rank([(each.name, each.rows) for each in read])
    return render(
        "runs.html.jinja",
        title=f"{len(read)} runs side by side",
        drawings={drawing.name: drawing},
        table=side_by_side(read),
        verdicts=[(each.name, each.found.verdict) for each in read],
        same=_same_texts(read),
    )


def _read(run: RunFolder, name: str) -> _Run:
    results = run.read_results()
    timing = run.read_timing() if run.timing.exists() else None
    return _Run(name, run, results, compare(run), rank_rows(run, results), timing)


def _names(runs: Sequence[RunFolder]) -> list[str]:
    """The folders' names; their paths where two have the same name."""
    names = [one_line(run.path.resolve().name) for run in runs]
    return names if len(set(names)) == len(names) else [one_line(str(run.path)) for run in runs]


def side_by_side(runs: Sequence[_Run]) -> Table:
    """One row a run: what it was, its best rank, and what that reached."""
    rows = []
    for each in runs:
        best = next(row for row in each.rows if row.rank == each.found.best)
        test = best.scores.get("test")
        rows.append(
            (
                each.name,
                Path(each.results.base).name,
                f"{each.results.texts['train']:,}",
                ", ".join(row.name for row in each.rows),
                str(len(each.found.seeds)),
                in_short(each.found),
                percent(best.scores["validation"].accuracy),
                interval(best.scores["validation"]),
                percent(best.scores["validation"].macro_f1),
                percent(test.accuracy) if test else "",
                f"{each.timing.seconds['total']:,.0f}"
                if each.timing and "total" in each.timing.seconds
                else "",
            )
        )
    columns = (
        "run", "base", "training texts", "ranks", "seeds", "verdict", "validation accuracy", "95 %",
        "validation macro-F1", "test accuracy", "seconds",
    )  # fmt: skip
    return Table(
        "", columns, rows, note="Accuracy and macro-F1 of each run's best rank on validation, in percent."
    )


def _same_texts(runs: Sequence[_Run]) -> bool:
    """Whether all runs were validated on the same texts with the same labels."""
    asked = [
        [
            (line["text"], line["label"])
            for line in read_predictions(each.folder, [])
            if line["split"] == "validation"
        ]
        for each in runs
    ]
    return all(each == asked[0] for each in asked)
