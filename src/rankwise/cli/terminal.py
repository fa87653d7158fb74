"""Terminal output: tables, progress bars, errors. Data goes to stdout, messages to stderr."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Self

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table as RichTable
from rich.text import Text

from rankwise.cli.live import Board, line
from rankwise.commands.reproduce import TOLERANCE, Reproduction, passed
from rankwise.errors import RankwiseError
from rankwise.report import search
from rankwise.report.data_tables import data_tables
from rankwise.report.html import size
from rankwise.report.ranks import summary_table
from rankwise.report.run import Run
from rankwise.report.tables import Table, class_figures, one_line, percent, printable
from rankwise.report.verdict import recommend
from rankwise.schema import Comparison, Cut, DataReport, SearchResults
from rankwise.store.run_folder import RunFolder, command
from rankwise.training.callbacks import Callback, Validation

if TYPE_CHECKING:
    from rankwise.cli.doctor import Finding
    from rankwise.commands.corrections import Corrected
    from rankwise.commands.predict import Prediction
    from rankwise.plan import Plan
    from rankwise.schema import Metrics

# Markup and emoji are disabled: paths, labels and texts may contain [brackets] and :colons:.
stdout = Console(highlight=False, markup=False, emoji=False)
stderr = Console(stderr=True, highlight=False, markup=False, emoji=False)
GAP = 2
"""Spaces between two columns."""
LONGEST_WORD = 20
"""Columns are wide enough not to break words of up to this many characters."""


def show_table(table: Table) -> None:
    """Print a table. Cells wrap; columns that do not fit are printed below, with the key columns repeated."""
    cells = [[one_line(cell) for cell in row] for row in (table.columns, *table.rows)]
    columns = list(zip(*cells, strict=True))
    if table.title:
        stdout.print(one_line(table.title), soft_wrap=True)
    for number, group in enumerate(_groups(columns, table.keys, stdout.width)):
        if number:
            stdout.print()
        stdout.print(_rich_table(group, stdout.width))
    if table.note:
        stdout.print(table.note)


def _groups(columns: list[tuple[str, ...]], keys: int, room: int) -> list[list[tuple[str, ...]]]:
    """Group columns (header first) to fit into `room`, with the key columns first in each group."""
    groups = [columns[:keys]]
    for column in columns[keys:]:
        filled = sum(_narrowest(each) + GAP for each in groups[-1])
        if filled + _narrowest(column) > room and len(groups[-1]) > keys:
            groups.append(columns[:keys])
        groups[-1] = [*groups[-1], column]
    return groups


def _rich_table(columns: list[tuple[str, ...]], room: int) -> RichTable:
    shown = RichTable(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold"
    )
    for (header, *cells), width in zip(columns, _widths(columns, room), strict=True):
        numeric = all(cell[:1] in "+-0123456789" for cell in cells)
        shown.add_column(Text(header), justify="right" if numeric else "left", width=width)
    for row in list(zip(*columns, strict=True))[1:]:
        shown.add_row(*map(Text, row))
    return shown


def _widths(columns: list[tuple[str, ...]], room: int) -> list[int]:
    """The width of each column. Spare room is given to the columns that need the least first."""
    widths = [_narrowest(column) for column in columns]
    wishes = [max(map(cell_len, column)) - width for column, width in zip(columns, widths, strict=True)]
    spare = max(0, room - sum(widths) - GAP * (len(columns) - 1))
    for done, i in enumerate(sorted(range(len(columns)), key=wishes.__getitem__)):
        share = min(wishes[i], spare // (len(columns) - done))
        widths[i] += share
        spare -= share
    return widths


def _narrowest(column: tuple[str, ...]) -> int:
    words = [cell_len(word) for cell in column for word in cell.split()]
    return min(max(words, default=1), LONGEST_WORD)


def show_error(error: RankwiseError) -> None:
    """Print `error: ...`, then `hint: ...`."""
    stderr.print(Text.assemble(("error:", "bold red"), " ", printable(error.message)), soft_wrap=True)
    if error.hint:
        stderr.print(Text.assemble(("hint:", "bold"), " ", printable(error.hint)), soft_wrap=True)


def show_plan(plan: Plan) -> None:
    """Print the parameter table of a plan, and the cost of the sweep."""
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
    lines = [f"steps: {steps}", f"trained tokens: {tokens}", *_tuning_line(plan)]
    lines.append(f"memory: about {plan.memory_bytes / 1e9:.1f} GB")
    stdout.print("\n" + "\n".join(lines), soft_wrap=True)


def _tuning_line(plan: Plan) -> Iterator[str]:
    """What choosing the learning rates costs."""
    if plan.tuning is None:
        return
    tokens = "" if plan.tuning.tokens is None else f", about {plan.tuning.tokens:,} tokens"
    judged = "" if plan.tuning.texts is None else f" judged on {plan.tuning.texts:,} texts of train,"
    yield (
        f"tuning: about {plan.tuning.trials} trials{tokens},{judged} "
        f"{100 * plan.tuning.share:.0f} % of the training; --no-tune leaves it out"
    )


def show_data(found: DataReport, notes: Sequence[str]) -> None:
    """Print splits, classes, and any leaks and contradictions."""
    for number, table in enumerate(data_tables(found)):
        if number:
            stdout.print()
        show_table(table)
    if not found.leaks and len(found.splits) > 1:
        stdout.print("\nNo text of one split is in another.")
    if not found.contradictions:
        stdout.print("\nNo text has two labels.")
    for note in notes:
        stdout.print("\n" + printable(note), soft_wrap=True)


def show_corrections(found: Corrected) -> None:
    """Print how many labels were corrected, and where the file is."""
    stdout.print(
        f"{found.corrections:,} corrections, {found.changed:,} of {found.rows:,} rows have a new label\n"
        f"written to {found.output}",
        soft_wrap=True,
    )


def show_metrics(metrics: Metrics) -> None:
    """Print accuracy and macro-F1, then one row per class, then the confusion matrix."""
    interval = f"{100 * metrics.accuracy_low:.1f} to {100 * metrics.accuracy_high:.1f}"
    stdout.print(
        f"{metrics.split}: {metrics.texts:,} texts, accuracy {100 * metrics.accuracy:.2f} % "
        f"(95 % interval {interval}), "
        f"macro-F1 {100 * metrics.macro_f1:.2f} %{_calibration(metrics)}",
        soft_wrap=True,
    )
    stdout.print()
    show_table(class_figures("Per class, in percent", metrics.classes))
    labels = [c.label for c in metrics.classes]
    matrix = [(label, *map(str, row)) for label, row in zip(labels, metrics.confusion, strict=True)]
    stdout.print()
    show_table(Table("Confusion: true label down, predicted across", ("", *labels), matrix))
    bins = [
        (
            f"{100 * b.low:.0f}-{100 * b.high:.0f}",
            f"{100 * b.confidence:.1f}",
            f"{100 * b.accuracy:.1f}",
            f"{b.texts:,}",
        )
        for b in metrics.reliability
    ]
    stdout.print()
    show_table(
        Table(
            "Reliability, in percent: texts by the probability of the predicted label",
            ("probability", "mean", "accuracy", "texts"),
            bins,
        )
    )


def _calibration(metrics: Metrics) -> str:
    if metrics.log_loss is None or metrics.ece is None:
        return ""
    return f", log loss {metrics.log_loss:.3f}, expected calibration error {100 * metrics.ece:.2f} %"


def show_predictions(texts: Sequence[str], predictions: Sequence[Prediction]) -> None:
    """Print one row per text: label, its probability, and the runner-up."""
    rows = []
    for text, found in zip(texts, predictions, strict=True):
        second = sorted(found.probabilities.items(), key=lambda item: -item[1])[1]
        rows.append((text, found.label, f"{found.probability:.3f}", f"{second[0]} {second[1]:.3f}"))
    show_table(Table("", ("text", "label", "probability", "next"), rows))


def show_cut(found: Cut) -> None:
    """Print the size of a cut adapter, how much of the update it keeps, and where it was written."""
    shares = found.kept_by_module
    lowest = min(shares, key=shares.__getitem__)
    stdout.print(
        f"cut from rank {found.from_rank} to rank {found.rank}: "
        f"{found.params:,} parameters, {size(found.adapter_bytes)}\n"
        f"kept of the update: {percent(found.kept)} % of its squared norm; by target module, "
        f"median {percent(median(shares.values()))} %, lowest {percent(shares[lowest])} % ({lowest})\n"
        f"written to {found.folder}\n"
        f"try: {command('predict', found.folder, 'some text')}",
        soft_wrap=True,
    )


def show_comparison(found: Comparison, *, table: bool) -> None:
    """Print the verdict on the ranks, optionally after their table."""
    stdout.print()
    if table:
        show_table(summary_table(found))
        stdout.print()
    stdout.print(found.verdict)


def show_reproduction(base: str, reproductions: Sequence[Reproduction]) -> None:
    """Print the published and the reproduced accuracies, and whether all of them agree."""
    columns = ("rank", "published accuracy", "accuracy", "difference", f"within {TOLERANCE} points")
    rows = [
        (
            str(each.rank),
            f"{each.published:.2f}",
            f"{each.accuracy:.2f}",
            f"{each.difference:+.2f}",
            "pass" if each.passes else "fail",
        )
        for each in reproductions
    ]
    show_table(Table(f"{base}, validation accuracy in percent", columns, rows))
    stdout.print("pass" if passed(reproductions) else "fail")


def show_written(run: Run) -> None:
    """Print where the results of a sweep are, how long it took, and how to use the recommended adapter."""
    folder, best = RunFolder(run.path), recommend(run).best
    if run.timing:
        total, training = run.timing.seconds["total"], run.timing.seconds["train"]
        stdout.print(f"\n{total:.0f} s in all, {training:.0f} s of it training", soft_wrap=True)
    stdout.print(
        f"written to {run.path}\n"
        f"to read: {run.path / 'report.html'}\n"
        f"try: {command('predict', folder.adapters / best.name, 'some text')}",
        soft_wrap=True,
    )


def show_search(folder: RunFolder, found: SearchResults) -> None:
    """Print the trials of a search, the best settings, what mattered, and how to use the result."""
    show_table(search.trial_table(found))
    for sentence in search.sentences(found):
        stdout.print("\n" + printable(sentence))
    stdout.print(f"\n{folder.read_timing().seconds['total']:.0f} s in all", soft_wrap=True)
    sweep, predict = search.commands(folder, found)
    stdout.print(
        f"written to {folder.path}\nto read: {folder.path / 'report.html'}\n"
        f"train these settings: {sweep}\ntry: {predict}",
        soft_wrap=True,
    )


def show_report(page: Path) -> None:
    """Print where a page was written."""
    stdout.print(f"to read: {page}", soft_wrap=True)


def show_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Print the doctor's findings, then the hints; return the findings."""
    with stderr.status("checking", spinner="line") if stderr.is_terminal else nullcontext():
        found = list(findings)
    rows = [(each.check, each.found, "" if each.state == "ok" else each.state) for each in found]
    show_table(Table("", ("check", "found", ""), rows))
    stdout.print()
    for each in found:
        if each.state != "ok":
            stdout.print(
                printable(f"{each.state}: {each.check}: {each.found}\nhint: {each.hint}"), soft_wrap=True
            )
    if all(each.state != "problem" for each in found):
        stdout.print("nothing is wrong")
    return found


class ProgressBars(Callback):
    """On a terminal, one bar per stage below the board of a sweep; otherwise, one line per stage."""

    def __init__(self) -> None:
        self._board, self._purpose = Board(), ""
        self._bars = _Bars(self._board)
        self._tasks: dict[str, TaskID] = {}  # stage -> its bar
        self._lengths: dict[str, int | None] = {}
        self._stage = ""
        self._stepped: set[str] = set()  # stages whose progress `step` reports

    def __enter__(self) -> Self:
        if stderr.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()
        if stderr.is_terminal:
            self._bars.stop()

    def note(self, text: str) -> None:
        """Print a message."""
        stderr.print(printable(text), soft_wrap=True)

    def begin(self, stage: str, total: int | None) -> None:
        """Start a stage; `total` is its number of units, None if unknown."""
        self.end()
        self._stage, self._lengths[stage] = stage, total
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total)
            if not stderr.is_terminal:
                stderr.print(stage if total is None else f"{stage} ({total:,})", soft_wrap=True)
        elif stage not in self._stepped:
            self._bars.reset(self._tasks[stage], total=total)

    def advance(self, units: int) -> None:
        """Advance the bar of the stage."""
        if self._stage and self._stage not in self._stepped:
            self._bars.update(self._tasks[self._stage], advance=units)

    def bank(self, purpose: str, ranks: Mapping[str, int]) -> None:
        """Show these adapters; those of another purpose are no longer shown."""
        self._purpose = purpose
        self._board.bank(purpose, ranks)

    def step(self, adapters: Sequence[str], number: int, steps: int, losses: Sequence[float]) -> None:
        """Update the board and the bar after step `number` of `steps`, from 1."""
        self._board.step(adapters, losses)
        self._stepped.add(self._stage)
        self._bars.update(self._tasks[self._stage], completed=number, total=steps)

    def validation(self, found: Validation) -> None:
        """Show the accuracies after an epoch."""
        self._board.validation(found)
        if not stderr.is_terminal:
            stderr.print(line(found, self._purpose), soft_wrap=True)

    def end(self) -> None:
        """End the stage. The bar of a stage of unknown length is removed."""
        if self._stage and self._lengths[self._stage] is None:
            self._bars.remove_task(self._tasks.pop(self._stage))
        self._stage = ""


class _Bars(Progress):
    """Progress bars below a sweep's board."""

    def __init__(self, board: Board) -> None:
        self._board = board
        super().__init__(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=stderr,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """The board, unless it is empty, and the bars."""
        board = self._board.table(stderr.width, stderr.height - len(self.tasks))
        return [*([board] if board else []), self.make_tasks_table(self.tasks)]
