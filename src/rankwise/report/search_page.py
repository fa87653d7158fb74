"""The page of a search: the best settings, what mattered, and every trial."""

from __future__ import annotations

from rankwise.recipe import Recipe
from rankwise.report import diagnostics, search
from rankwise.report.drawing import Drawing
from rankwise.report.html import MOST_CLASSES, file_links, machine_facts, render, settings
from rankwise.report.tables import Table, class_figures, one_line, percent
from rankwise.schema import Metrics, SearchResults
from rankwise.store.run_folder import RunFolder


def search_page(folder: RunFolder, *, links: str = "", interactive: bool = False) -> str:
    """The page of a finished search.

    Args:
        folder: the search.
        links: path from the page's folder to the search's folder, if they differ.
        interactive: include the script that sorts and searches tables.

    Raises:
        UsageError: this is not a finished search, or its files cannot be read.
    """
    results, timing = folder.read_search(), folder.read_timing()
    said, *notes, mattered = search.sentences(results)
    sweep, predict = search.commands(folder, results)
    drawings = _drawings(results)
    return render(
        "search.html.jinja",
        interactive,
        title=one_line(folder.path.resolve().name),
        results=results,
        headline=f"Best of {len(results.trials):,} trials: {search.best_settings(results)}",
        said=said,
        notes=notes,
        mattered=mattered,
        facts=_facts(results),
        drawings={each.name: each for each in drawings},
        importances=importance_table(results),
        trials=search.trial_table(results, len(results.trials)),
        classes=class_figures("By class", results.validation.classes, MOST_CLASSES),
        sweep=sweep,
        predict=predict,
        machine=machine_facts(results, timing),
        recipe=settings(Recipe.load(folder.recipe)),
        files=file_links(folder.path, links, f"adapters/{results.best}", "the adapter of the best trial"),
    )


def _drawings(results: SearchResults) -> list[Drawing]:
    splits = [each for each in (results.validation, results.test) if each]
    return [
        search.what_mattered(results),
        *(
            diagnostics.confusion(each.split, "the best trial", results.labels, each.confusion)
            for each in splits
            if not each.is_multi_label
        ),
    ]


def _facts(results: SearchResults) -> list[tuple[str, str, str]]:
    """The key figures below the headline: value, name, detail."""
    best = search.best_trial(results)
    facts = [_accuracy("validation accuracy", results.validation)]
    if results.test:
        facts.append(_accuracy("test accuracy", results.test))
    loss = "" if best.log_loss is None else f"{best.log_loss:.3f}"
    return [*facts, (loss, "validation log loss", "nats per text, by which it was chosen")]


def _accuracy(name: str, found: Metrics) -> tuple[str, str, str]:
    ends = f"95 %: {100 * found.accuracy_low:.1f}-{100 * found.accuracy_high:.1f}"
    return f"{percent(found.accuracy)} %", name, ends


def importance_table(results: SearchResults) -> Table:
    """One row per setting: the share of the variance that it explains, and the best trial's value."""
    rows = [
        (each.setting.replace("_", " "), f"{100 * each.share:.0f}", search.best_value(results, each.setting))
        for each in results.importances
    ]
    note = (
        "Percent of the variance of the log loss after the shortest schedule, main effects only "
        "(functional analysis of variance: Hutter et al. 2014)."
    )
    return Table("What mattered", ("setting", "% of variance", "best trial"), rows, note=note)
