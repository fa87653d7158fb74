"""Terminal output: tables, results, errors. Data goes to stdout, messages to stderr."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len
from rich.table import Table as RichTable
from rich.text import Text

from rankwise.commands.reproduce import TOLERANCE, Reproduction, passed
from rankwise.errors import RankwiseError, as_options, on_command_line
from rankwise.progress.bars import ProgressBars as ProgressBars
from rankwise.progress.console import stderr as stderr
from rankwise.progress.console import stdout as stdout
from rankwise.progress.pace import clock
from rankwise.report import search
from rankwise.report.data_tables import data_tables
from rankwise.report.html import size
from rankwise.report.ranks import summary_table
from rankwise.report.run import Run
from rankwise.report.tables import Table, class_figures, one_line, percent, printable
from rankwise.report.verdict import recommend
from rankwise.schema import Comparison, Cut, DataReport, SearchResults
from rankwise.store.run_folder import RunFolder, command

if TYPE_CHECKING:
    from rankwise.cli.doctor import Finding
    from rankwise.commands.classifier import Prediction
    from rankwise.commands.corrections import Corrected
    from rankwise.commands.duration import Duration
    from rankwise.plan import Plan
    from rankwise.schema import Abstaining, Metrics

MOST_CLASSES = 30
"""Maximum number of classes for tables with all of them; if there are more, the worst are shown."""
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
    stderr.print(
        Text.assemble(("error:", "bold red"), " ", printable(as_options(error.written[0]))), soft_wrap=True
    )
    if hint := as_options(error.written[1]):
        stderr.print(Text.assemble(("hint:", "bold"), " ", printable(hint)), soft_wrap=True)


def show_note(text: str) -> None:
    """Print `note: ...`."""
    stderr.print(
        Text.assemble(("note:", "bold yellow"), " ", printable(on_command_line(text))), soft_wrap=True
    )


def show_plan(plan: Plan, seconds: Duration | None = None) -> None:
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
    steps, tokens = _each_adapter(plan, plan.steps), _each_adapter(plan, plan.tokens, "about ")
    lines = [f"steps: {steps}", f"trained tokens: {tokens}", *_tuning_line(plan)]
    lines.append(f"memory: about {plan.memory_bytes / 1e9:.1f} GB")
    if seconds:
        lines.append(_time_line(seconds))
    stdout.print("\n" + "\n".join(lines), soft_wrap=True)


def _time_line(seconds: Duration) -> str:
    """How long a sweep will take, and what that covers."""
    stages = {"tuning": seconds.tuning, "training": seconds.training, "evaluation": seconds.evaluation}
    parts = ", ".join(f"{name} {clock(each)}" for name, each in stages.items() if each)
    return (
        f"time: about {clock(seconds.total)} ({parts}), from {seconds.timed_steps} steps timed on this "
        "machine; without reading the data, baselines, cuts and the report"
    )


def _each_adapter(plan: Plan, most: int | None, about: str = "") -> str:
    """The steps or tokens of an adapter; a range if tuning chooses the number of epochs."""
    if most is None:
        return "unknown until the data is read"
    if (fewest := plan.fewest(most)) < most:
        return f"{about}{fewest:,} to {most:,} for each adapter, as tuning chooses its epochs"
    return f"{about}{most:,} for each adapter"


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
        stdout.print("\nNo text appears with different labels.")
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
    """Print accuracy and F1, then one row per class, then the confusion matrix if texts have one label."""
    right = "all labels right in" if metrics.is_multi_label else "accuracy"
    interval = f"{100 * metrics.accuracy_low:.1f} to {100 * metrics.accuracy_high:.1f}"
    stdout.print(
        f"{metrics.split}: {metrics.texts:,} texts, "
        f"{right} {100 * metrics.accuracy:.2f} % "
        f"(95 % interval {interval}), "
        f"macro-F1 {100 * metrics.macro_f1:.2f} %{_micro(metrics)}{_calibration(metrics)}",
        soft_wrap=True,
    )
    if metrics.abstaining:
        stdout.print(_abstaining(metrics.abstaining, metrics.texts), soft_wrap=True)
    stdout.print()
    few = len(metrics.classes) <= MOST_CLASSES
    show_table(class_figures("Per class, in percent", metrics.classes) if few else _worst_classes(metrics))
    if metrics.is_multi_label:
        return
    stdout.print()
    show_table(_confusion(metrics) if few else _most_confused(metrics))
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


def _worst_classes(metrics: Metrics) -> Table:
    present = [each for each in metrics.classes if each.texts]
    worst = sorted(present, key=lambda each: (each.f1, -each.texts))[:MOST_CLASSES]
    title = f"Per class, in percent: the worst {len(worst)} of {len(present)} classes with texts, by F1"
    return class_figures(title, worst)


def _confusion(metrics: Metrics) -> Table:
    labels = [c.label for c in metrics.classes]
    matrix = [(label, *map(str, row)) for label, row in zip(labels, metrics.confusion, strict=True)]
    return Table("Confusion: true label down, predicted across", ("", *labels), matrix)


def _most_confused(metrics: Metrics) -> Table:
    labels, cells = [c.label for c in metrics.classes], metrics.cells()
    wrong = sorted((cell for cell in cells if cell[0] != cell[1]), key=lambda cell: -cell[2])
    rows = [(labels[true], labels[found], f"{texts:,}") for true, found, texts in wrong[:MOST_CLASSES]]
    title = f"Most often confused: {len(rows)} of {len(wrong)} pairs; --json has all"
    return Table(title, ("true label", "predicted", "texts"), rows)


def _micro(metrics: Metrics) -> str:
    return "" if metrics.micro_f1 is None else f", micro-F1 {100 * metrics.micro_f1:.2f} %"


def _calibration(metrics: Metrics) -> str:
    if metrics.log_loss is None:
        return ""
    if metrics.ece is None:
        return f", log loss {metrics.log_loss:.3f}"
    return f", log loss {metrics.log_loss:.3f}, expected calibration error {100 * metrics.ece:.2f} %"


def _abstaining(found: Abstaining, texts: int) -> str:
    """Coverage and accuracy at a threshold, in a sentence."""
    answered = f"{found.answered:,} of {texts:,} texts ({100 * found.coverage:.1f} %)"
    start = f"with a probability of at least {found.below:g}: {answered}"
    if found.accuracy is None or found.accuracy_low is None or found.accuracy_high is None:
        return start
    interval = f"{100 * found.accuracy_low:.1f} to {100 * found.accuracy_high:.1f}"
    return f"{start}, accuracy {100 * found.accuracy:.2f} % (95 % interval {interval})"


def show_predictions(
    texts: Sequence[str], predictions: Sequence[Prediction], answers: Sequence[str | None]
) -> None:
    """Print one row per text: its labels, or none, their probabilities, and the most probable other label."""
    rows = []
    for text, found, answer in zip(texts, predictions, answers, strict=True):
        others = {label: p for label, p in found.probabilities.items() if label not in found.labels}
        first = max(others.items(), key=lambda item: item[1], default=None)
        sure = ", ".join(f"{found.probabilities[label]:.3f}" for label in found.labels)
        rows.append((text, answer or "", sure, f"{first[0]} {first[1]:.3f}" if first else ""))
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
