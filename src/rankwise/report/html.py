"""report.html: one page that needs no network and no script."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.recipe import Recipe
from rankwise.report.card import repeat_command
from rankwise.report.data_tables import data_tables
from rankwise.report.diagnostics import confusions
from rankwise.report.drawing import DARK, LIGHT, Drawing
from rankwise.report.errors import WrongText, errors_table
from rankwise.report.ranks import in_short, summary_table
from rankwise.report.scores import ScoreRow, by_rank
from rankwise.report.tables import (
    Table,
    class_figures,
    interval,
    one_line,
    percent,
    printable,
    rank_table,
    sample_table,
)
from rankwise.report.verdict import Chosen
from rankwise.schema import Comparison, DataReport, Results, Timing
from rankwise.store.run_folder import RunFolder

MOST_CONFUSED = 8
MOST_ERRORS = 20
MOST_SAMPLES = 24


@dataclass(frozen=True)
class Story:
    """What a run's page tells, read and worked out."""

    run: RunFolder
    results: Results
    recipe: Recipe
    timing: Timing | None
    found: Comparison
    choice: Chosen
    rows: Sequence[ScoreRow]
    drawings: Sequence[Drawing]
    wrong: Sequence[WrongText]
    data: DataReport | None


def run_page(story: Story) -> str:
    """The page of one run."""
    results, choice = story.results, story.choice
    return render(
        "page.html.jinja",
        title=one_line(story.run.path.resolve().name),
        results=results,
        found=story.found,
        headline=in_short(story.found),
        facts=_facts(story),
        choice=choice,
        seeds=len({row.seed for row in results.adapters}),
        drawings={each.name: each for each in story.drawings},
        ranks=rank_table(story.run),
        pairs=summary_table(story.found) if len(story.found.ranks) > 1 else None,
        classes=class_figures("By class", choice.classes("validation")),
        confused=_confused(results, choice),
        samples=_samples(story),
        sampled=_sampled(results),
        wrong=errors_table(story.wrong, len(results.adapters), MOST_ERRORS),
        all_wrong=sum(each.wrong == 1 for each in story.wrong),
        listed=len(story.wrong),
        adapters=len(results.adapters),
        data=data_tables(story.data) if story.data else [],
        cost=_cost(story),
        machine=_machine(story),
        stages=_stages(story.timing),
        recipe=_compact(printable(story.recipe.to_toml())),
        again=repeat_command(story.run),
    )


def render(template: str, **values: Any) -> str:
    """A template of this folder filled in; whatever comes from outside is escaped."""
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
    return environment.get_template(template).render(light=LIGHT, dark=DARK, numeric=numeric, **values)


def numeric(table: Table) -> list[bool]:
    """For each column whether it holds numbers, which stand to the right."""
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.columns)
    return [any(cells) and all(cell[:1] in "+-0123456789" for cell in cells if cell) for cells in columns]


def _facts(story: Story) -> list[tuple[str, str, str]]:
    """The figures beside the verdict: value, what it is, what to know of it."""
    row = next(each for each in story.rows if each.rank == story.choice.rank)
    facts = [
        (f"{percent(score.accuracy)} %", f"{split} accuracy, rank {row.name}", f"95 %: {interval(score)}")
        for split, score in row.scores.items()
    ]
    best = story.choice.best
    return [
        *facts,
        (f"{best.trainable_params:,}", "parameters trained", f"{best.trainable_percent:.3f} % of the model"),
        (size(best.adapter_bytes), "adapter on disk", f"adapters/{best.name}"),
    ]


def size(number: int) -> str:
    """Bytes for people.

    >>> size(2_345_678)
    '2.3 MB'
    """
    for unit, worth in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= worth:
            return f"{number / worth:.1f} {unit}"
    return f"{number} bytes"


def _confused(results: Results, choice: Chosen) -> Table:
    found = confusions(results.labels, choice.confusion("validation"))[:MOST_CONFUSED]
    rows = [
        (true, predicted, f"{texts:,.0f}", f"{100 * share:.1f}") for true, predicted, texts, share in found
    ]
    return Table("Most often confused", ("true label", "predicted", "texts", "% of the label's"), rows)


def _samples(story: Story) -> Table:
    """The sample table without numbers of labels, and with what is right in a column of its own."""
    drawn = sample_table(story.run, adapter=story.choice.best.name)
    rows = [
        (text, label, predicted, "right" if predicted == label else "wrong")
        for text, _, label, _, predicted in drawn.rows
    ]
    return Table("", ("text", "label", "predicted", ""), rows[:MOST_SAMPLES])


def _sampled(results: Results) -> str:
    """Which texts the samples are."""
    split, classes = "test" if "test" in results.texts else "validation", MOST_SAMPLES // 2
    some = f"the first {classes} classes" if len(results.labels) > classes else "each class"
    return f"Two {split} texts of {some}"


def _cost(story: Story) -> Table:
    """One row a rank: what it costs to train and to keep."""
    timing, texts = story.timing, story.results.texts["train"] * story.recipe.train.epochs
    rows = []
    for rank, adapters in by_rank(story.results).items():
        seconds = [
            timing.train_seconds[a.name] for a in adapters if timing and a.name in timing.train_seconds
        ]
        mean = sum(seconds) / len(seconds) if seconds else 0.0
        rows.append(
            (
                str(rank),
                f"{adapters[0].trainable_params:,}",
                f"{adapters[0].trainable_percent:.4f}",
                size(adapters[0].adapter_bytes),
                f"{mean:,.1f}" if mean else "",
                f"{texts / mean:,.0f}" if mean else "",
            )
        )
    columns = ("rank", "trainable params", "% trainable", "adapter", "seconds", "texts/s")
    return Table(
        "",
        columns,
        rows,
        note="Of one adapter. Seconds: those of its bank's training, shared out equally among the adapters "
        "trained with it; texts/s: training texts of all passes over these seconds.",
    )


def _compact(toml: str) -> str:
    r"""TOML with each list in one line.

    >>> _compact("a = [\n    1,\n    2,\n]\n")
    'a = [1, 2]\n'
    """
    return re.sub(r"= \[\n((?: {4}[^\n]*,\n)+)\]", lambda found: f"= [{_items(found[1])}]", toml)


def _items(lines: str) -> str:
    return ", ".join(line.strip().removesuffix(",") for line in lines.splitlines())


def _machine(story: Story) -> list[tuple[str, str]]:
    results, timing = story.results, story.timing
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
