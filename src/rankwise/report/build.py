"""Builds the report of a run from its folder: tables, figures, page and cards."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from rankwise.errors import DataError, RankwiseError, UsageError, option
from rankwise.report import card, diagnostics, export, figures, paper, samples, search, tables
from rankwise.report.confidence import confidence
from rankwise.report.contrast import contrast
from rankwise.report.cost import accuracy_by_cost
from rankwise.report.drawing import Drawing
from rankwise.report.errors import WrongText, corrected_rows, errors_csv, wrong_texts
from rankwise.report.html import Story, run_page
from rankwise.report.learning import learning_curves
from rankwise.report.margins import verdict_by_margin
from rankwise.report.ranks import compare
from rankwise.report.run import Run, load
from rankwise.report.runs import runs_page
from rankwise.report.scores import ScoreRow, baseline_rows, by_rank, cut_rows, rank_rows, splits
from rankwise.report.search_page import search_page
from rankwise.report.tuning import trials_csv
from rankwise.report.tuning_figure import tuning_figure
from rankwise.report.verdict import Chosen, chosen
from rankwise.schema import Comparison, MetricName, Results
from rankwise.store import files
from rankwise.store.run_folder import RunFolder, command
from rankwise.training import signals

LABELS = "labels.txt"
"""File next to the figures that maps numbers to labels, if PNGs or PDFs show numbers instead of labels."""


@dataclass(frozen=True)
class Extras:
    """What a report writes only if it is asked to."""

    test_errors: bool = False  # errors.csv and the exports list test texts, too
    argilla: bool = False  # errors-argilla.json
    label_studio: bool = False  # errors-label-studio.json and .xml
    paper: bool = False  # figures as PDF, table.tex, methods.tex, references.bib
    interactive: bool = False  # the page has a script that sorts tables and searches examples
    target_accuracy: float | None = None  # the thresholds of abstaining are for this accuracy alone


PLAIN = Extras()
EXTRAS = (
    "leave out --test-errors, --argilla, --label-studio, --paper and --target-accuracy; "
    "several runs have no --interactive"
)
"""Hint for those that do not apply."""


def rebuild(
    folder: RunFolder,
    metric: MetricName | None = None,
    margin: float | None = None,
    extras: Extras = PLAIN,
    copy: Path | None = None,
) -> None:
    """Load a run and write its report, with the verdict by this metric and margin (`ranks.compare`).

    For a search, both are ignored.

    Args:
        folder: a finished run or search.
        metric: the metric that the verdict is by; by default the one of its recipe.
        margin: accepted loss, as in `ranks.compare`.
        extras: what to write besides.
        copy: a second place for the page, whose links lead to the run folder.

    Raises:
        UsageError: the run is not finished, or one of its files cannot be read.
        ResourceError: the disk is full.
        RankwiseError: the report could not be built; the run's results are unaffected.
    """
    with _results_are_safe(folder):
        if folder.search.exists():
            if extras != replace(PLAIN, interactive=extras.interactive):
                raise UsageError(
                    f"{folder.path}: contains a search, whose report has no such files", hint=EXTRAS
                )
            search.write(folder, folder.read_search())
            _write_pages(folder, partial(search_page, folder), extras, copy)
        else:
            write(folder, load(folder), metric, margin, extras, copy)


def write(
    folder: RunFolder,
    run: Run,
    metric: MetricName | None = None,
    margin: float | None = None,
    extras: Extras = PLAIN,
    copy: Path | None = None,
) -> None:
    """Write the tables, errors.csv, tuning.csv, figures/, the cards and report.html of a run.

    The arguments are those of `rebuild`.

    Raises:
        UsageError: every adapter of the run diverged.
        ResourceError: the disk is full.
        RankwiseError: the report could not be built; the run's results are unaffected.
    """
    with _results_are_safe(folder):
        if not run.results.adapters:
            raise UsageError(f"{folder.path}: every adapter diverged: there is nothing to report")
        tables.write(folder, run)  # first, so that they are there if anything else fails
        story = tell(run, metric, margin, extras.target_accuracy)
        if extras.test_errors:
            story = replace(story, wrong=wrong_texts(run, ("validation", "test")))
        samples.write(folder, samples.sample_table(run, adapter=story.choice.best.name))
        if story.contrast:
            tables.write_ranks(folder, run, story.contrast.markdown())
        if run.results.tuning:
            files.write_text(folder.path / "tuning.csv", trials_csv(run.results.tuning))
        _write_errors(folder, story.wrong, run, extras)
        _write_figures(folder.path / "figures", story.drawings, run.results.labels, pdf=extras.paper)
        card.write_cards(folder, run, story.comparison, story.choice)
        if extras.paper:
            paper.write(folder, run, story.comparison, story.choice)
        _write_pages(folder, partial(run_page, story), extras, copy)  # last, because it links to the others


def _is_page(path: Path) -> bool:
    """Whether a file is a page that may be replaced."""
    with suppress(OSError), path.open("rb") as file:
        return b'<meta name="generator" content="rankwise">' in file.read(4096)
    return False


class _Page(Protocol):
    """Renders a page."""

    def __call__(self, *, links: str = "", interactive: bool = False) -> str: ...


def _write_pages(folder: RunFolder, page: _Page, extras: Extras, copy: Path | None) -> None:
    """Write report.html into the folder, and to a second place whose links lead to the folder."""
    files.write_text(folder.path / "report.html", page(interactive=extras.interactive))
    if copy is not None and copy.resolve() != (folder.path / "report.html").resolve():
        links = Path(os.path.relpath(folder.path.resolve(), copy.resolve().parent)).as_posix()
        files.write_text(copy, page(links=links, interactive=extras.interactive))


def _write_errors(folder: RunFolder, wrong: Sequence[WrongText], run: Run, extras: Extras) -> None:
    path = folder.path / "errors.csv"
    try:
        corrected = corrected_rows(path)
    except DataError as error:
        raise UsageError(
            f"{path}: cannot be read, and corrected labels in it would be lost: {error.message}",
            hint=f"move it elsewhere; then {command('report', folder.path)}",
        ) from None
    files.write_text(path, errors_csv(wrong, corrected))
    if extras.argilla:
        files.write_text(folder.path / "errors-argilla.json", export.argilla_records(wrong, run.task))
    if extras.label_studio:
        files.write_text(folder.path / "errors-label-studio.json", export.label_studio_tasks(wrong, run.task))
        config = export.label_studio_config(run.results.labels, run.task)
        files.write_text(folder.path / "errors-label-studio.xml", config)


@contextmanager
def _results_are_safe(folder: RunFolder) -> Iterator[None]:
    """After hours of training, an error in a figure must not look as if the run were lost."""
    try:
        yield
    except RankwiseError:
        raise
    except Exception as error:
        signals.check()  # matplotlib turns a signal inside its compiled code into a TypeError
        raise RankwiseError(
            f"{folder.path}: the run is finished and its results are safe, but the report could not be made: "
            f"{type(error).__name__}: {error}",
            hint=f"{command('report', folder.path)} tries again; please report it",
        ) from error


def _write_figures(
    folder: Path, drawings: Sequence[Drawing], labels: Sequence[str], *, pdf: bool = False
) -> None:
    for drawing in drawings:
        files.write_text(folder / f"{drawing.name}.svg", drawing.standalone())
        files.write_bytes(folder / f"{drawing.name}.png", drawing.files["png"])
        if pdf:
            files.write_bytes(folder / f"{drawing.name}.pdf", drawing.pdf())
    if any(drawing.shows_numbers() or (pdf and drawing.shows_numbers(pdf=True)) for drawing in drawings):
        files.write_text(
            folder / LABELS, "".join(f"{i} {tables.one_line(label)}\n" for i, label in enumerate(labels))
        )


def tell(
    run: Run,
    metric: MetricName | None = None,
    margin: float | None = None,
    target_accuracy: float | None = None,
) -> Story:
    """Compute everything that a run's page shows, with the verdict by this metric and margin."""
    comparison, rows = compare(run, margin, metric), rank_rows(run)
    choice = chosen(run.results, comparison)
    trust = confidence(run, choice, target_accuracy)
    return Story(
        run=run,
        comparison=comparison,
        choice=choice,
        rows=rows,
        drawings=[*_drawings(run, rows, choice, comparison), *(trust.drawings if trust else ())],
        confidence=trust,
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
    found += [
        diagnostics.confusion(each, choice.named, results.labels, counts)
        for each in splits(results)
        if (counts := choice.confusion(each)) is not None
    ]
    found.append(diagnostics.per_class(split, choice.named, choice.classes(split)))
    if calibration := choice.reliability(split):
        found.append(diagnostics.reliability(split, choice.named, *calibration, len(choice.adapters)))
    cost = accuracy_by_cost(rows, choice.rank)
    return [*found, cost] if cost else found


def report(
    folders: Sequence[RunFolder],
    out: Path | None = None,
    metric: MetricName | None = None,
    margin: float | None = None,
    extras: Extras = PLAIN,
) -> Path:
    """Write the report of one run or search, or a page that compares runs; return the path of the page.

    Args:
        folders: one run, whose report is rebuilt, or several runs to compare on one page.
        out: path of the page; by default in the run's folder.
        metric: the metric that the verdict is by; by default the one of its recipe.
        margin: accepted loss, as in `ranks.compare`.
        extras: what to write besides; for one run only.

    Raises:
        UsageError: several runs and no `out`, several runs and `extras`, `out` exists and is no page of
            rankwise, or a run that is not finished or cannot be read.
        ResourceError: the disk is full.
    """
    if out is not None and out.exists() and not _is_page(out):
        hint = f"choose another {option('out')}, or remove the file"
        raise UsageError(f"{out}: already exists, and is no page of rankwise", hint=hint)
    if len(folders) > 1:
        if out is None:
            raise UsageError(
                "comparing several runs needs an output file", hint=f"say where: {option('out', 'FILE.html')}"
            )
        if extras != PLAIN:
            raise UsageError("a page of several runs has no script and no other files", hint=EXTRAS)
        files.write_text(out, runs_page([load(each) for each in folders], metric, margin))
        return out
    rebuild(folders[0], metric, margin, extras, out)
    return out or folders[0].path / "report.html"
