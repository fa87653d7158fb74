"""Builds the report of a run from its folder: tables, figures, page and cards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rankwise.errors import RankwiseError, UsageError, option
from rankwise.report import card, diagnostics, figures, search, tables
from rankwise.report.contrast import contrast
from rankwise.report.drawing import Drawing
from rankwise.report.errors import errors_csv, wrong_texts
from rankwise.report.html import Story, run_page
from rankwise.report.learning import learning_curves
from rankwise.report.margins import verdict_by_margin
from rankwise.report.ranks import compare
from rankwise.report.run import Run, load
from rankwise.report.runs import runs_page
from rankwise.report.scores import ScoreRow, baseline_rows, by_rank, cut_rows, rank_rows, splits
from rankwise.report.tuning import trials_csv
from rankwise.report.tuning_figure import tuning_figure
from rankwise.report.verdict import Chosen, chosen
from rankwise.schema import Comparison, MetricName, Results
from rankwise.store import files
from rankwise.store.run_folder import RunFolder, command

LABELS = "labels.txt"
"""File next to the figures that maps numbers to labels, if the PNGs show numbers instead of labels."""


def rebuild(folder: RunFolder, metric: MetricName = "accuracy", margin: float | None = None) -> None:
    """Load a run and write its report, with the verdict by this metric and margin (`ranks.compare`).

    For a search, both are ignored.

    Raises:
        UsageError: the run is not finished, or one of its files cannot be read.
        ResourceError: the disk is full.
        RankwiseError: the report could not be built; the run's results are unaffected.
    """
    with _results_are_safe(folder):
        if folder.search.exists():
            search.write(folder, folder.read_search())
        else:
            write(folder, load(folder), metric, margin)


def write(folder: RunFolder, run: Run, metric: MetricName = "accuracy", margin: float | None = None) -> None:
    """Write the tables, errors.csv, tuning.csv, figures/, report.html and the cards of a run.

    Raises:
        UsageError: every adapter of the run diverged.
        ResourceError: the disk is full.
        RankwiseError: the report could not be built; the run's results are unaffected.
    """
    with _results_are_safe(folder):
        if not run.results.adapters:
            raise UsageError(f"{folder.path}: every adapter diverged: there is nothing to report")
        tables.write(folder, run)  # first, so that they are there if anything else fails
        story = tell(run, metric, margin)
        if story.contrast:
            tables.write_ranks(folder, run, story.contrast.markdown())
        files.write_text(folder.path / "errors.csv", errors_csv(story.wrong))
        if run.results.tuning:
            files.write_text(folder.path / "tuning.csv", trials_csv(run.results.tuning))
        _write_figures(folder.path / "figures", story.drawings, run.results.labels)
        files.write_text(folder.path / "report.html", run_page(story))
        card.write_cards(folder, run, story.comparison, story.choice)


@contextmanager
def _results_are_safe(folder: RunFolder) -> Iterator[None]:
    """After hours of training, an error in a figure must not look as if the run were lost."""
    try:
        yield
    except RankwiseError:
        raise
    except Exception as error:
        raise RankwiseError(
            f"{folder.path}: the run is finished and its results are safe, but the report could not be made: "
            f"{type(error).__name__}: {error}",
            hint=f"{command('report', folder.path)} tries again; please report it",
        ) from error


def _write_figures(folder: Path, drawings: Sequence[Drawing], labels: Sequence[str]) -> None:
    for drawing in drawings:
        files.write_text(folder / f"{drawing.name}.svg", drawing.standalone())
        files.write_bytes(folder / f"{drawing.name}.png", drawing.files["png"])
    if any(drawing.plot_png for drawing in drawings):
        files.write_text(
            folder / LABELS, "".join(f"{i} {tables.one_line(label)}\n" for i, label in enumerate(labels))
        )


def tell(run: Run, metric: MetricName = "accuracy", margin: float | None = None) -> Story:
    """Compute everything that a run's page shows, with the verdict by this metric and margin."""
    comparison, rows = compare(run, margin, metric), rank_rows(run)
    choice = chosen(run.results, comparison)
    return Story(
        run=run,
        comparison=comparison,
        choice=choice,
        rows=rows,
        drawings=_drawings(run, rows, choice, comparison),
        contrast=contrast(run, comparison),
        wrong=wrong_texts(run),
    )


def _drawings(run: Run, rows: Sequence[ScoreRow], choice: Chosen, comparison: Comparison) -> list[Drawing]:
    results: Results = run.results
    baselines, cuts, split = baseline_rows(results), cut_rows(run), "validation"
    tuned = tuning_figure(results.tuning) if results.tuning else None
    found = [tuned] if tuned else []
    found += [figures.accuracy_by_rank(each, rows, baselines, choice.rank, cuts) for each in splits(results)]
    if curve := verdict_by_margin(comparison):
        found.append(curve)
    found += learning_curves(run.curves, by_rank(results))
    found.append(diagnostics.confusion(split, choice.named, results.labels, choice.confusion(split)))
    found.append(diagnostics.per_class(split, choice.named, choice.classes(split)))
    if calibration := choice.reliability(split):
        found.append(diagnostics.reliability(split, choice.named, *calibration))
    return found


def report(
    folders: Sequence[RunFolder],
    out: Path | None = None,
    metric: MetricName = "accuracy",
    margin: float | None = None,
) -> Path:
    """Write the report of one run or search, or a page that compares runs; return the path of the page.

    Args:
        folders: one run, whose report is rebuilt, or several runs to compare on one page.
        out: path of the page; by default in the run's folder.
        metric: the metric that the verdict is by.
        margin: accepted loss, as in `ranks.compare`.

    Raises:
        UsageError: several runs and no `out`, or a run that is not finished or cannot be read.
        ResourceError: the disk is full.
    """
    if len(folders) > 1:
        if out is None:
            raise UsageError(
                "comparing several runs needs an output file", hint=f"say where: {option('out', 'FILE.html')}"
            )
        files.write_text(out, runs_page([load(each) for each in folders], metric, margin))
        return out
    rebuild(folders[0], metric, margin)
    page = folders[0].path / ("search.md" if folders[0].search.exists() else "report.html")
    if out is not None:
        files.copy(page, out)
    return out or page
