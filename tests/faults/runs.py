"""Functions run by the server's child processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from rankwise.cli import app as cli
from rankwise.cli import terminal
from rankwise.training import checkpoint
from rankwise.training.checkpoint import AdapterProgress, BankPlan, Checkpoint, SweepState
from rankwise.training.state import AdapterState
from tests.faults.disk import Disk


def command(arguments: list[str], at: int = 0, fault: int | str = "kill", saves_only: bool = False) -> int:
    """Run a command with a fault at the n-th disk operation. The last output line is their total."""
    sys.argv = ["rankwise", *arguments]
    with Disk(at, fault, saves_only=saves_only).installed() as disk:
        try:
            cli.main()
        except SystemExit as end:
            print(disk.count, flush=True)
            return end.code if isinstance(end.code, int) else 0
    return 0


def command_signalled(arguments: list[str], stage: str, units: int, number: int) -> int:
    """Run a command; send it a signal twice when a stage has completed a number of units."""
    seen = {"stage": "", "units": 0}

    class Bars(terminal.ProgressBars):
        def begin(self, name: str, total: int | None) -> None:
            super().begin(name, total)
            seen.update(stage=name if name == stage else name.split()[0], units=0)
            press()

        def advance(self, units: int) -> None:
            super().advance(units)
            seen["units"] = int(str(seen["units"])) + units
            press()

        def step(self, adapters: Sequence[str], number: int, steps: int, losses: Sequence[float]) -> None:
            super().step(adapters, number, steps, losses)
            seen["units"] = number
            press()

    def press() -> None:
        if (seen["stage"], seen["units"]) == (stage, units):
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)

    setattr(terminal, "ProgressBars", Bars)  # noqa: B010
    return command(arguments)


def save(folder: str, value: int, at: int, fault: int | str) -> int:
    """Save a checkpoint with a fault at the n-th operation. The last output line is their total."""
    with Disk(at, fault).installed() as disk:
        checkpoint.save(Path(folder), sample(value))
    print(disk.count, flush=True)
    return 0


def sample(value: int) -> Checkpoint:
    """A checkpoint of one adapter whose weights are all equal."""
    progress = AdapterProgress(parameters=300, steps=value)
    state = SweepState(
        recipe={},
        fingerprint={"train": "0"},
        environment={},
        banks=[BankPlan(adapters=["r1-s1"])],
        progress={"r1-s1": progress},
        trained_tokens=value,
    )
    numbers = torch.full((300,), float(value))
    adapter = AdapterState(numbers, numbers.clone(), numbers.clone(), [1.0] * value)
    return Checkpoint(state, {"r1-s1": adapter})
