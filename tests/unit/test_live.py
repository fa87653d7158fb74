"""The live display of a running sweep, on terminals of any size."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from rankwise.progress.bars import ProgressBars
from rankwise.progress.board import Board, line
from rankwise.progress.lines import LogLines
from rankwise.progress.pace import Pace
from rankwise.training.callbacks import Validation


def shown(board: Board, columns: int, lines: int) -> str:
    file = io.StringIO()
    table = board.table(columns, lines)
    Console(file=file, width=columns).print(table or "")
    return file.getvalue()


def board(ranks: int, seeds: int, epochs: int) -> Board:
    """Rank r of seed s has accuracy r + s points after each epoch, and a loss of 1."""
    made = Board()
    names = [f"r{rank}-s{seed}" for seed in range(seeds) for rank in range(ranks)]
    made.bank("train", {f"r{rank}-s{seed}": rank for seed in range(seeds) for rank in range(ranks)})
    for epoch in range(1, epochs + 1):
        made.step(names, [1.0] * len(names))
        points = [(int(name[1:].partition("-")[0]) + int(name.partition("s")[2])) / 100 for name in names]
        made.validation(Validation(names, epoch, epochs, epoch, points, points, points))
    return made


def test_a_line_an_adapter_a_column_an_epoch() -> None:
    caption, *lines = shown(board(2, 2, 3), 100, 40).splitlines()
    assert caption == "loss: training, last 20 steps; epoch: accuracy on validation in %"
    assert lines[0].split() == ["adapter", "loss", "epoch", "1", "epoch", "2", "epoch", "3"]
    assert lines[2].split() == ["r0-s0", "1.000", "0.00", "0.00", "0.00"]
    assert lines[5].split() == ["r1-s1", "1.000", "2.00", "2.00", "2.00"]


def test_the_loss_is_the_mean_of_the_last_steps() -> None:
    made = Board()
    for loss in (9.0, *[1.0] * 19, 3.0):
        made.step(["r1-s1"], [loss])
    assert "1.100" in shown(made, 80, 20)


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_it_fits_narrow_terminals_with_the_latest_epoch(columns: int) -> None:
    text = shown(board(4, 1, 12), columns, 40)
    assert max(map(cell_len, text.splitlines())) <= columns
    assert "epoch 12" in text and "…" not in text


def test_forty_adapters_become_a_line_a_rank() -> None:
    text = shown(board(8, 5, 1), 80, 24)
    lines = text.splitlines()
    assert len(lines) <= 24 - 2 and lines[1].startswith("rank")
    assert lines[3].split() == ["0", "1.000", "2.00"]  # the mean of seeds 0 to 4


def test_more_ranks_than_lines_are_counted() -> None:
    text = shown(board(40, 1, 1), 80, 24)
    assert len(text.splitlines()) <= 24 - 2
    assert "and 23 more" in text


def test_nothing_before_the_first_step() -> None:
    assert Board().table(80, 24) is None


def told(console: Console) -> None:
    """The events of a sweep with two epochs."""
    with ProgressBars(console) as bars:
        bars.begin("data", None)
        bars.end()
        bars.bank("train", {"r1-s1": 1})
        bars.begin("train", 4)
        for number in (1, 2, 3, 4):
            bars.step(["r1-s1"], number, 4, [0.5])
            if number % 2 == 0:
                bars.begin("validation", 10)
                bars.advance(10)
                bars.end()
                bars.validation(Validation(["r1-s1"], number // 2, 2, number, [0.9], [0.8], [0.3]))
                if number < 4:
                    bars.begin("train", 4)
                    bars.advance(number)


def test_a_sweep_on_a_terminal() -> None:
    file = io.StringIO()
    told(Console(file=file, width=100, height=30, force_terminal=True, color_system=None, markup=False))
    last = file.getvalue().rpartition("adapter")[2]
    assert last.splitlines()[2].split() == ["r1-s1", "0.500", "90.00", "90.00"]
    assert "4/4 steps" in last and "10/10 texts" in last and "data" not in last
    header = next(line.split() for line in last.splitlines() if line.startswith("stage"))
    assert header == ["stage", "done", "elapsed", "left"]


def test_a_sweep_in_a_pipe_says_each_thing_once() -> None:
    file = io.StringIO()
    told(Console(file=file, width=80, markup=False))
    assert file.getvalue().splitlines() == [
        "data",
        "train (4)",
        "validation (10)",
        "epoch 1/2, validation accuracy: r1-s1 90.00",
        "epoch 2/2, validation accuracy: r1-s1 90.00",
    ]


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_a_long_job_in_a_log_says_how_far_it_is_every_thirty_seconds() -> None:
    file, now = io.StringIO(), Clock()
    lines = LogLines(Console(file=file, width=80), now)
    lines.bank("train", {"r1-s1": 1})
    lines.begin("train", 2500)
    for number in range(1, 121):
        now.seconds += 0.5
        lines.step(["r1-s1", "r2-s1"], number, 2500, [0.4, 0.42])
    lines.begin("validation", 1000)
    for _ in range(6):
        now.seconds += 10
        lines.advance(100)
    assert file.getvalue().splitlines() == [
        "train (2,500)",
        "train 60/2,500 steps, loss 0.41, 20 min left",
        "train 120/2,500 steps, loss 0.41, 20 min left",
        "validation (1,000)",
        "validation 300/1,000 texts",
        "validation 600/1,000 texts",
    ]


def test_the_rest_is_expected_at_the_pace_so_far() -> None:
    now = Clock()
    pace = Pace(now)
    assert pace.left("train", 100, 200) is None  # a resumed run
    now.seconds = 50.0
    assert pace.left("train", 125, 200) == 150.0
    assert pace.left("test", 0, 10) is None


def test_the_line_of_an_epoch() -> None:
    found = Validation(["a", "b"], 2, 3, 9, [0.5, 1.0], [0, 0], [0.7, 0.1])
    assert line(found).endswith("validation accuracy: a 50.00, b 100.00")
    assert line(found, "tune") == "log loss on the tuning texts: a 0.700, b 0.100"


def test_trials_leave_the_board_before_the_final_adapters_enter() -> None:
    made = Board()
    made.bank("tune", {"tune1-r4-lr1e-3": 4})
    made.step(["tune1-r4-lr1e-3"], [1.0])
    made.bank("train", {"r4-s1": 4})
    made.step(["r4-s1"], [0.5])
    assert "tune1" not in shown(made, 80, 20) and "r4-s1" in shown(made, 80, 20)
