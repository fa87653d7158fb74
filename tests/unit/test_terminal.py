"""Output fits the terminal without truncation, for any data."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from rankwise import Recipe
from rankwise.cli import terminal
from rankwise.commands.classifier import Prediction
from rankwise.commands.duration import Duration
from rankwise.commands.preview import preview
from rankwise.errors import DataError
from rankwise.progress.bars import ProgressBars
from rankwise.progress.console import SafeConsole
from rankwise.report.run import load
from rankwise.report.samples import sample_table
from rankwise.report.tables import Table, rank_table
from rankwise.stats.metrics import metrics
from rankwise.store.run_folder import RunFolder

Screen = Callable[[int], io.StringIO]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Return the output of printing to a terminal with a given number of columns."""

    def make(columns: int) -> io.StringIO:
        file = io.StringIO()
        console = Console(file=file, width=columns, markup=False, emoji=False, highlight=False)
        monkeypatch.setattr(terminal, "stdout", console)
        return file

    return make


def assert_whole(text: str, columns: int, table: Table) -> None:
    """No line is too long, nothing is truncated, and every word of every cell is present."""
    assert max(map(cell_len, text.splitlines())) <= columns
    assert "…" not in text
    words = set(text.split())
    for row in (table.columns, *table.rows):
        assert {word for cell in row for word in cell.split() if len(word) <= 20} <= words


@pytest.mark.parametrize("columns", [60, 80, 100, 140, 250])
def test_the_rank_table(run: RunFolder, screen: Screen, columns: int) -> None:
    large = load(run)
    for row in large.results.adapters:
        row.total_params += 1_234_567_890
    table, file = rank_table(large), screen(columns)
    terminal.show_table(table)
    shown = file.getvalue()
    assert_whole(shown.partition("\n")[2], columns, table)
    if columns == 250:
        assert len(shown.splitlines()) == 1 + 2 + 7 + 1  # title, header, ranks, cut, baselines, note
        assert "validation accuracy" in shown and "% trainable" in shown
    # Columns that wrap below repeat the rank.
    lines = shown.partition(table.note[:20])[0].splitlines()
    assert sum(line.startswith("rank") for line in lines) == {60: 3, 80: 2, 100: 2}.get(columns, 1)


@pytest.mark.parametrize("columns", [50, 80, 140])
def test_the_sample_table(run: RunFolder, screen: Screen, columns: int) -> None:
    table, file = sample_table(load(run)), screen(columns)
    terminal.show_table(table)
    assert_whole(file.getvalue().partition("\n")[2], columns, table)


def test_narrow_columns_are_not_spread(screen: Screen) -> None:
    file = screen(80)
    terminal.show_table(Table("", ("text", "label"), [("so glad", "joy")]))
    assert [line.rstrip() for line in file.getvalue().splitlines()] == [
        "text     label", "──────────────", "so glad  joy",
    ]  # fmt: skip


def test_numbers_stand_right_and_texts_left(screen: Screen) -> None:
    file = screen(80)
    terminal.show_table(Table("", ("label", "texts"), [("joy", "7"), ("anger", "1,234")]))
    assert file.getvalue().splitlines()[2:] == ["joy        7", "anger  1,234"]


def test_what_the_data_holds_is_shown_as_it_is(screen: Screen) -> None:
    file = screen(80)
    texts = ["[red]x[/red] [/]", ":smile: \\[b]", "\x1b[31mred", "日本語 😀", "a\nb", "\\"]
    terminal.show_table(Table("[b] :x:", ("text", "n"), [(text, "1") for text in texts]))
    shown = file.getvalue()
    for text in ("[b] :x:", "[red]x[/red] [/]", ":smile: \\[b]", "\ufffd[31mred", "日本語 😀", "a b"):
        assert text in shown
    assert "\x1b" not in shown


def test_many_classes_are_broken_into_blocks(screen: Screen) -> None:
    labels = [f"emotion{i:02}" for i in range(20)]
    random = np.random.default_rng(0)
    targets, logits = random.integers(0, 20, 300), random.normal(size=(300, 20)).astype(np.float32)
    file = screen(80)
    terminal.show_metrics(metrics("test", targets, logits, labels))
    shown = file.getvalue()
    lines = shown.split("Confusion")[1].splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("emotion07" in line for line in lines) >= 4  # a row in every section, and a column
    assert "test: 300 texts, accuracy" in shown
    assert all(label in shown for label in labels)


@pytest.mark.parametrize("columns", [80, 140])
def test_the_plan(screen: Screen, columns: int) -> None:
    file = screen(columns)
    terminal.show_plan(preview(Recipe.preset("emotion")))
    shown = file.getvalue()
    assert max(map(len, shown.splitlines())) <= columns
    assert all(part in shown for part in ("41,472", "124,486,656", "0.0333", "124,444,416", "steps: 2,500"))
    assert "…" not in shown


def test_a_plan_for_unknown_data(screen: Screen) -> None:
    file = screen(80)
    terminal.show_plan(preview(Recipe(base="gpt2", data="some/dataset")))
    assert file.getvalue().count("unknown until the data is read") == 2


def test_predictions(screen: Screen) -> None:
    file = screen(80)
    found = Prediction("joy", {"anger": 0.25, "joy": 0.7, "fear": 0.05})
    terminal.show_predictions(["i feel fine " * 20], [found], [found.label])
    shown = file.getvalue()
    assert "0.700" in shown and "anger 0.250" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_an_error_and_its_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(terminal, "stderr", Console(file=file, width=40, markup=False, emoji=False))
    terminal.show_error(
        DataError("bad [red]:x: \x1b[2J\nsecond line", path="a/b.csv", line=3, hint="try [b]")
    )
    assert file.getvalue() == "error: a/b.csv:3: bad [red]:x: \ufffd[2J\nsecond line\nhint: try [b]\n"


def progress(console: Console) -> None:
    with ProgressBars(console) as bars:
        bars.note("a [note]")
        bars.begin("test", 1200)
        bars.advance(1)
        bars.begin("predict", None)
        bars.advance(7)


def test_progress_on_a_terminal() -> None:
    file = io.StringIO()
    progress(Console(file=file, width=100, force_terminal=True, color_system=None, markup=False))
    shown = file.getvalue()
    assert "a [note]" in shown and "1/1,200 texts" in shown and "predict" in shown


def test_progress_in_a_pipe_is_a_line_a_stage() -> None:
    file = io.StringIO()
    progress(Console(file=file, markup=False, emoji=False))
    assert file.getvalue() == "a [note]\ntest (1,200)\npredict\n"


def test_characters_that_steer_the_terminal_are_never_printed() -> None:
    """Also in messages that no table or error escapes, such as the path of a run folder."""
    file = io.StringIO()
    SafeConsole(file=file, width=80).print("written to \x1b[2Jruns/\x9b1m [b]x[/b] :smile:", soft_wrap=True)
    assert file.getvalue() == "written to \ufffd[2Jruns/\ufffd1m [b]x[/b] :smile:\n"


def test_a_plan_in_which_the_epochs_vary(screen: Screen) -> None:
    file = screen(100)
    plan = preview(Recipe(base="gpt2", data="starter", vary={"epochs": (1, 3)}, batch_size=8))
    terminal.show_plan(plan, Duration(600.0, 65.0, 5.0, 12))
    shown = " ".join(file.getvalue().split())
    assert plan.steps is not None and plan.steps % 3 == 0
    assert f"steps: {plan.steps // 3:,} to {plan.steps:,} for each adapter" in shown
    assert "time: about 11 min (tuning 10 min, training 65 s, evaluation 5 s), from 12 steps" in shown
