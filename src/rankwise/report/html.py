"""report.html: a self-contained page, which is whole without scripts."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rankwise.recipe import Recipe
from rankwise.report import cuts
from rankwise.report.card import predict_commands, repeat_command
from rankwise.report.confidence import Confidence
from rankwise.report.contrast import Contrast
from rankwise.report.criteria import CRITERIA
from rankwise.report.data_tables import data_tables
from rankwise.report.diagnostics import confusions
from rankwise.report.drawing import DARK, LIGHT, Drawing
from rankwise.report.errors import WrongText, errors_table
from rankwise.report.paper import methods
from rankwise.report.ranks import baseline_table, shown, summary_table
from rankwise.report.run import Run
from rankwise.report.samples import sample_table
from rankwise.report.scores import ScoreRow, by_rank
from rankwise.report.tables import (
    Table,
    class_figures,
    interval,
    one_line,
    percent,
    printable,
    rank_table,
)
from rankwise.report.tuning import about, chosen_table, trials_table
from rankwise.report.verdict import Chosen
from rankwise.schema import AdapterResult, Comparison, Results, SearchResults, Timing

MOST_CONFUSED = 8
MOST_CLASSES = 30
"""Maximum number of classes in the table by class; if there are more, the weakest are shown."""
MOST_ERRORS = 20
MOST_SEARCHED = 500
"""Maximum number of errors in a page with a search box."""
MOST_SAMPLES = 24
FEW = 20
"""Validation texts of a class below which the page says that its metrics are rough."""
FILES = {
    "README.md": "summary of the run",
    "results.json": "parameters and metrics of each adapter, baseline and cut",
    "table.csv": "the rank table, unrounded",
    "predictions.csv": "every validation and test text with the label of each adapter",
    "errors.csv": "texts that at least half of the adapters get wrong, for corrected labels",
    "errors-argilla.json": "the same for Argilla",
    "errors-label-studio.json": "the same for Label Studio, with errors-label-studio.xml",
    "tuning.csv": "every trial of the tuning",
    "data.json": "the data report",
    "recipe.toml": "every setting",
    "timing.json": "wall times",
    "history.jsonl": "losses of each step",
    "figures": "the figures as SVG and PNG",
    "table.tex": "the rank table for LaTeX",
    "methods.tex": "the methods in prose, which cites references.bib",
    "search.csv": "every trial with every setting",
    "search.json": "the results of the search",
    "search.md": "this page as Markdown",
}
"""File of a run folder -> what it contains, for the links at the end of a page."""
SCRIPT = (Path(__file__).parent / "page.js").read_text("utf-8")
"""Sorts tables and searches examples; a page that contains it allows this script and no other."""


@dataclass(frozen=True)
class Story:
    """The contents of a run's page: the run and everything computed from it."""

    run: Run
    comparison: Comparison
    choice: Chosen
    rows: Sequence[ScoreRow]  # the ranks
    drawings: Sequence[Drawing]
    contrast: Contrast | None  # None for a single rank
    wrong: Sequence[WrongText]
    confidence: Confidence | None  # None if logits cannot be read


def run_page(story: Story, *, links: str = "", interactive: bool = False) -> str:
    """The page of one run.

    Args:
        story: its contents.
        links: path from the page's folder to the run folder, if they differ.
        interactive: include the script that sorts tables and searches examples, and more errors.
    """
    run, results, choice = story.run, story.run.results, story.choice
    return render(
        "page.html.jinja",
        interactive,
        title=one_line(run.name),
        results=results,
        comparison=story.comparison,
        metric=CRITERIA[story.comparison.metric].short,
        headline=story.comparison.headline,
        evidence=story.comparison.verdict.removeprefix(f"{story.comparison.headline}. "),
        facts=_facts(story),
        choice=choice,
        why=choice.why(story.comparison),
        seeds=run.seeds,
        drawings={each.name: each for each in story.drawings},
        **_tuning(results),
        cuts=cuts.sentence(results),
        ranks=rank_table(run),
        contrast=story.contrast,
        pairs=summary_table(story.comparison) if len(story.comparison.ranks) > 1 else None,
        against=baseline_table(story.comparison) if story.comparison.baselines else None,
        classes=class_figures("By class", choice.classes("validation"), MOST_CLASSES),
        rough=_rough(choice),
        confused=_confused(results, choice),
        confidence=story.confidence,
        samples=_samples(story),
        sampled=_sampled(results),
        wrong=errors_table(story.wrong, len(results.adapters), MOST_SEARCHED if interactive else MOST_ERRORS),
        all_wrong=sum(each.wrong == 1 for each in story.wrong),
        listed=len(story.wrong),
        wrong_splits=" and ".join(sorted({each.split for each in story.wrong}, reverse=True)),
        adapters=len(results.adapters),
        data=data_tables(run.data) if run.data else [],
        cost=_cost(run),
        machine=machine_facts(results, run.timing),
        stages=_stages(run.timing),
        recipe=settings(run.recipe),
        again=repeat_command(run),
        predict=predict_commands(run, choice),
        methods=methods(run, story.comparison, choice),
        files=file_links(run.path, links, f"adapters/{choice.best.name}", "the recommended adapter"),
    )


def _tuning(results: Results) -> dict[str, Any]:
    """The values of the section on tuning; None if nothing was tuned."""
    found = results.tuning
    return {
        "tuned": chosen_table(found) if found else None,
        "trials": trials_table(found) if found else None,
        "about_tuning": about(found) if found else None,
    }


def file_links(folder: Path, prefix: str, adapter: str, about: str) -> list[tuple[str, str, str]]:
    """The files of a run folder as (address, name, contents), and the folder of an adapter.

    Args:
        folder: the run folder.
        prefix: path from the page's folder to the run folder; empty if the page is in it.
        adapter: path of the adapter in the run folder.
        about: what the adapter is.
    """
    known = {**FILES, adapter: about}
    start = f"{prefix}/" if prefix else ""
    return [
        (quote(f"{start}{name}" + "/" * path.is_dir()), name + "/" * path.is_dir(), contents)
        for name, contents in known.items()
        if (path := folder / name).exists()
    ]


def _rough(choice: Chosen) -> str:
    """A sentence on the classes with few validation texts; empty if there are none."""
    classes = choice.classes("validation")
    few = sorted(each.texts for each in classes if each.texts < FEW)
    if not few:
        return ""
    verb, own = ("has", "its") if len(few) == 1 else ("have", "their")
    return (
        f"{len(few)} of {len(classes)} classes {verb} fewer than {FEW} validation texts "
        f"(the smallest {few[0]}): {own} metrics are rough."
    )


def render(template: str, interactive: bool = False, **values: Any) -> str:
    """Render a template of this folder, escaping all values.

    Args:
        template: name of the template.
        interactive: include the script of the folder; the page's policy then allows this script only.
        **values: the values of the template.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = one_line
    script = SCRIPT if interactive else ""
    return environment.get_template(template).render(
        light=LIGHT, dark=DARK, numeric=numeric, script=script, digest=_digest(script), **values
    )


def _digest(script: str) -> str:
    """The hash by which a content security policy names a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def numeric(table: Table) -> list[bool]:
    """For each column, whether it contains numbers, which are right-aligned."""
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.columns)
    return [any(cells) and all(cell[:1] in "+-0123456789" for cell in cells if cell) for cells in columns]


def _facts(story: Story) -> list[tuple[str, str, str]]:
    """The key figures below the verdict: value, name, detail."""
    row = next(each for each in story.rows if each.rank == story.choice.rank)
    accuracy = "subset accuracy" if story.run.task.several else "accuracy"
    facts = [
        (f"{percent(score.accuracy)} %", f"{split} {accuracy}, rank {row.name}", f"95 %: {interval(score)}")
        for split, score in row.scores.items()
    ]
    best = story.choice.best
    return [
        *_judged(story),
        *facts,
        (f"{best.trainable_params:,}", "parameters trained", f"{best.trainable_percent:.3f} % of the model"),
        (size(best.adapter_bytes), "adapter on disk", f"adapters/{best.name}"),
    ]


def _judged(story: Story) -> list[tuple[str, str, str]]:
    """The verdict's metric as a key figure, unless it is the accuracy, which is always one."""
    found = story.comparison
    if found.metric == "accuracy":
        return []
    by = CRITERIA[found.metric]
    each = next(each for each in found.ranks if each.rank == story.choice.rank)
    value = f"{shown(by, each.mean)} {'%' if by.metric.percent else by.metric.unit}"
    interval = f"95 %: {shown(by, each.low, -1)}-{shown(by, each.high, -1)}"
    return [(value, f"{by.metric.name}, rank {each.rank}", interval)]


def size(number: int) -> str:
    """Format a number of bytes.

    >>> size(2_345_678)
    '2.3 MB'
    """
    for unit, worth in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= worth:
            return f"{number / worth:.1f} {unit}"
    return f"{number} bytes"


def _confused(results: Results, choice: Chosen) -> Table:
    counts = choice.confusion("validation")
    found = [] if counts is None else confusions(results.labels, counts)[:MOST_CONFUSED]
    rows = [
        (true, predicted, f"{texts:,.0f}", f"{100 * share:.1f}") for true, predicted, texts, share in found
    ]
    return Table("Most often confused", ("true label", "predicted", "texts", "% of the true label"), rows)


def _samples(story: Story) -> Table:
    """The sample table, with a column for whether each prediction is right."""
    drawn = sample_table(story.run, adapter=story.choice.best.name)
    rows = [
        (text, label, predicted, probability, "right" if predicted == label else "wrong")
        for text, label, predicted, probability in drawn.rows
    ]
    return Table("", (*drawn.columns, ""), rows[:MOST_SAMPLES])


def _sampled(results: Results) -> str:
    """Describe which texts are sampled."""
    split, classes = "test" if "test" in results.texts else "validation", MOST_SAMPLES // 2
    some = f"the first {classes} classes" if len(results.labels) > classes else "each class"
    return f"Two {split} texts of {some}"


def _cost(run: Run) -> Table:
    """One row per rank: training time and adapter size."""
    rows = [_cost_row(rank, adapters, run) for rank, adapters in by_rank(run.results).items()]
    columns = ("rank", "trainable params", "% trainable", "adapter", "seconds", "texts/s")
    return Table(
        "",
        columns,
        rows,
        note="Per adapter. Seconds: training time of its bank divided by the number of adapters in it; "
        "texts/s: training texts of all epochs divided by these seconds.",
    )


def _cost_row(rank: int, adapters: Sequence[AdapterResult], run: Run) -> tuple[str, ...]:
    epochs = adapters[0].settings.get("epochs", run.recipe.train.epochs)
    texts = run.results.texts["train"] * epochs
    known = run.timing.train_seconds if run.timing else {}
    seconds = [known[each.name] for each in adapters if each.name in known]
    mean = sum(seconds) / len(seconds) if seconds else 0.0
    return (
        str(rank),
        f"{adapters[0].trainable_params:,}",
        f"{adapters[0].trainable_percent:.4f}",
        size(adapters[0].adapter_bytes),
        f"{mean:,.1f}" if mean else "",
        f"{texts / mean:,.0f}" if mean else "",
    )


def settings(recipe: Recipe) -> str:
    """A recipe as TOML for a page."""
    return _compact(printable(recipe.to_toml()))


def _compact(toml: str) -> str:
    r"""TOML with each list on one line.

    >>> _compact("a = [\n    1,\n    2,\n]\n")
    'a = [1, 2]\n'
    """
    return re.sub(r"= \[\n((?: {4}[^\n]*,\n)+)\]", lambda found: f"= [{_items(found[1])}]", toml)


def _items(lines: str) -> str:
    return ", ".join(line.strip().removesuffix(",") for line in lines.splitlines())


def machine_facts(results: Results | SearchResults, timing: Timing | None) -> list[tuple[str, str]]:
    """Versions, device and speed of a run or a search."""
    return [
        ("rankwise", results.rankwise),
        *(
            (name.capitalize() if name == "python" else name, value)
            for name, value in results.versions.items()
        ),
        ("device", f"{results.device}, {results.precision}, {results.threads} threads"),
        *((("ended", timing.created),) if timing else ()),
        *((("tokens/s", f"{timing.tokens_per_second:,.0f}"),) if timing else ()),
    ]


def _stages(timing: Timing | None) -> Table | None:
    if timing is None:
        return None
    rows = [(stage, f"{seconds:,.1f}") for stage, seconds in timing.seconds.items()]
    return Table("", ("stage", "seconds"), rows)
