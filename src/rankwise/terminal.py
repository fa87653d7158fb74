"""What people see on the terminal: tables, progress, errors. Data goes to stdout, talk to stderr."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from rankwise.errors import RankwiseError
from rankwise.listener import Listener
from rankwise.report.tables import Table
from rankwise.store.run import Results, RunFolder

if TYPE_CHECKING:
    from rankwise.evaluate import Metrics
    from rankwise.plan import Plan
    from rankwise.predict import Prediction

stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)


def show_table(table: Table) -> None:
    """A table for people; wide cells wrap."""
    shown = RichTable(title=escape(table.title), title_justify="left", header_style="bold")
    for i, column in enumerate(table.columns):
        numeric = all(row[i][:1] in "+-0123456789" for row in table.rows)
        shown.add_column(escape(column), justify="right" if numeric else "left")
    for row in table.rows:
        shown.add_row(*(escape(cell) for cell in row))
    stdout.print(shown)


def show_error(error: RankwiseError) -> None:
    """`error: ...`, then `hint: ...`."""
    stderr.print(f"[bold red]error:[/] {escape(error.message)}", soft_wrap=True)
    if error.hint:
        stderr.print(f"[bold]hint:[/] {escape(error.hint)}", soft_wrap=True)


def show_plan(plan: Plan) -> None:
    """The parameter table of a plan, and what the sweep will cost."""
    rows = [
        (
            f"{row.rank}",
            f"{row.seed}",
            f"{row.trainable_params:,}",
            f"{row.total_params:,}",
            f"{row.trainable_percent:.4f}",
            f"{row.merged_params:,}",
            f"{row.bank}",
        )
        for row in plan.rows
    ]
    columns = (
        "rank",
        "seed",
        "trainable params",
        "total params",
        "% trainable",
        "params once merged",
        "pass",
    )
    show_table(Table(f"{plan.base}, {plan.classes} classes", columns, rows))
    steps = "unknown until the data is read" if plan.steps is None else f"{plan.steps:,} for each adapter"
    tokens = (
        "unknown until the data is read" if plan.tokens is None else f"about {plan.tokens:,} for each adapter"
    )
    stdout.print(
        f"steps: {steps}\ntrained tokens: {tokens}\nmemory: about {plan.memory_bytes / 1e9:.1f} GB",
        soft_wrap=True,
    )


def show_metrics(metrics: Metrics) -> None:
    """Accuracy and macro-F1, then a row a class, then the confusion matrix."""
    interval = f"{100 * metrics.accuracy_low:.1f} to {100 * metrics.accuracy_high:.1f}"
    stdout.print(
        f"{metrics.split}: {metrics.texts:,} texts, accuracy {100 * metrics.accuracy:.2f} % "
        f"(95 % interval {interval}), "
        f"macro-F1 {100 * metrics.macro_f1:.2f} %, log loss {metrics.log_loss:.3f}",
        soft_wrap=True,
    )
    rows = [
        (c.label, *(f"{100 * score:.2f}" for score in (c.precision, c.recall, c.f1)), f"{c.texts:,}")
        for c in metrics.classes
    ]
    show_table(Table("Per class, in percent", ("label", "precision", "recall", "F1", "texts"), rows))
    labels = [c.label for c in metrics.classes]
    matrix = [(label, *map(str, row)) for label, row in zip(labels, metrics.confusion, strict=True)]
    show_table(Table("Confusion: true label down, predicted across", ("", *labels), matrix))


def show_predictions(texts: Sequence[str], predictions: Sequence[Prediction]) -> None:
    """A row a text: label, its probability, the runner-up."""
    rows = []
    for text, found in zip(texts, predictions, strict=True):
        second = sorted(found.probabilities.items(), key=lambda item: -item[1])[1]
        rows.append((text, found.label, f"{found.probability:.3f}", f"{second[0]} {second[1]:.3f}"))
    show_table(Table("", ("text", "label", "probability", "next"), rows))


def show_written(run: RunFolder, results: Results) -> None:
    """Where a sweep's results are, and how long it took."""
    adapter = max(results.adapters, key=lambda row: (row.validation["accuracy"], -row.rank)).name
    stdout.print(
        f"{results.seconds['total']:.0f} s in all, {results.seconds['train']:.0f} s of it training\n"
        f"written to {run.path}\n"
        f'try: rankwise predict {run.adapters / adapter} "some text"',
        soft_wrap=True,
    )


class ProgressBars(Listener):
    """A bar a stage on a terminal, a line a stage elsewhere."""

    def __init__(self) -> None:
        self._bars: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    def note(self, text: str) -> None:
        """Something worth a line."""
        stderr.print(escape(text), soft_wrap=True)

    def begin(self, stage: str, total: int | None) -> None:
        """A stage of so many units begins; None where their number is not known."""
        self.end()
        if not stderr.is_terminal:
            stderr.print(stage if total is None else f"{stage} ({total:,})", soft_wrap=True)
            return
        known = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        counting = (TextColumn("{task.completed:,}"),)
        self._bars = Progress(
            TextColumn("{task.description:<12}"),
            *(counting if total is None else known),
            TextColumn("{task.fields[detail]}"),
            console=stderr,
        )
        self._bars.start()
        self._task = self._bars.add_task(stage, total=total, detail="")

    def advance(self, units: int, detail: str = "") -> None:
        """So many units of the stage are done."""
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, advance=units, detail=f"loss {detail}" if detail else "")

    def end(self) -> None:
        """The stage is over."""
        if self._bars is not None:
            self._bars.stop()
        self._bars = self._task = None
