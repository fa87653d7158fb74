"""Everything that people read of a run, made from its files alone: tables, figures, page, cards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rankwise.errors import RankwiseError, UsageError
from rankwise.recipe import Recipe
from rankwise.report import card, diagnostics, figures, tables
from rankwise.report.data_tables import read_data_report
from rankwise.report.drawing import Drawing
from rankwise.report.errors import errors_csv, wrong_texts
from rankwise.report.history import read_curves
from rankwise.report.html import Story, run_page
from rankwise.report.learning import learning_curves
from rankwise.report.predictions import read_predictions
from rankwise.report.ranks import compare
from rankwise.report.runs import runs_page
from rankwise.report.scores import ScoreRow, baseline_rows, by_rank, rank_rows, splits
from rankwise.report.verdict import Chosen, chosen
from rankwise.schema import Results, Timing
from rankwise.store import files
from rankwise.store.run_folder import RunFolder


def write(run: RunFolder) -> None:
    """Write table.md, table.csv, samples.md, errors.csv, figures/, report.html and the cards of a run.

    Raises:
        UsageError: the run is not finished, or a file of it cannot be read.
        ResourceError: the disk is full.
        RankwiseError: the report could not be made; the run's results are not touched by that.
    """
    try:
        if not run.read_results().adapters:
            raise UsageError(f"{run.path}: every adapter diverged: there is nothing to report")
        tables.write(run)
        story = read_story(run)
        files.write_text(run.path / "errors.csv", errors_csv(story.wrong))
        for drawing in story.drawings:
            files.write_text(run.path / "figures" / f"{drawing.name}.svg", drawing.standalone())
            files.write_bytes(run.path / "figures" / f"{drawing.name}.png", drawing.files["png"])
        files.write_text(run.path / "report.html", run_page(story))
        card.write_cards(run, story.results, story.recipe, story.found, story.choice)
    except RankwiseError:
        raise
    except Exception as error:
        # After hours of training, a fault in a figure must not look as if the run were lost.
        raise RankwiseError(
            f"{run.path}: the run is finished and its results are safe, but the report could not be made: "
            f"{type(error).__name__}: {error}",
            hint=f"rankwise report {run.path} tries again; please report it",
        ) from error


def read_story(run: RunFolder) -> Story:
    """A run's files, read and worked out for its page."""
    results = run.read_results()
    found = compare(run)
    choice, rows = chosen(results, found), rank_rows(run, results)
    names = [row.name for row in results.adapters]
    try:
        wrong = wrong_texts(read_predictions(run, names), names)
    except (ValueError, KeyError):
        raise UsageError(
            f"{run.predictions}: not as the sweep wrote it", hint="run the sweep again"
        ) from None
    return Story(
        run=run,
        results=results,
        recipe=Recipe.load(run.recipe),
        timing=_timing(run),
        found=found,
        choice=choice,
        rows=rows,
        drawings=_drawings(run, results, rows, choice),
        wrong=wrong,
        data=read_data_report(run),
    )


def _timing(run: RunFolder) -> Timing | None:
    """How long it took; a report can do without."""
    return run.read_timing() if run.timing.exists() else None


def _drawings(run: RunFolder, results: Results, rows: Sequence[ScoreRow], choice: Chosen) -> list[Drawing]:
    baselines, split = baseline_rows(results), "validation"
    found = [figures.accuracy_by_rank(each, rows, baselines, choice.rank) for each in splits(results)]
    found += learning_curves(read_curves(run), by_rank(results))
    found.append(diagnostics.confusion(split, choice.named, results.labels, choice.confusion(split)))
    found.append(diagnostics.per_class(split, choice.named, choice.classes(split)))
    if calibration := choice.reliability(split):
        found.append(diagnostics.reliability(split, choice.named, *calibration))
    return found


def report(runs: Sequence[RunFolder], out: Path | None = None) -> Path:
    """Write the reports that `rankwise report` is asked for; the path of the page to read.

    Args:
        runs: one run, whose folder gets all of it anew, or several, which get a page side by side.
        out: where the page goes; by default into the run's own folder.

    Raises:
        UsageError: several runs and no `out`, or a run that is not finished or cannot be read.
        ResourceError: the disk is full.
    """
    if len(runs) > 1:
        if out is None:
            raise UsageError("several runs make one page of their own", hint="say where: --out FILE.html")
        files.write_text(out, runs_page(runs))
        return out
    write(runs[0])
    page = runs[0].path / "report.html"
    if out is not None:
        files.copy(page, out)
    return out or page
