"""Who is told what a long job is doing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Validation:
    """Adapters of a bank on the validation split after an epoch; fractions, and nats a text."""

    adapters: Sequence[str]
    epoch: int  # from 1
    epochs: int
    step: int  # steps done, from 1
    accuracy: Sequence[float]
    macro_f1: Sequence[float]
    log_loss: Sequence[float]


class Callback:
    """Told of a job's stages. This one keeps silent."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def begin(self, stage: str, total: int | None) -> None:
        """A stage of so many units begins; None where their number is not known."""

    def advance(self, units: int) -> None:
        """So many units of the stage are done."""

    def step(self, adapters: Sequence[str], number: int, steps: int, losses: Sequence[float]) -> None:
        """These adapters of a bank have done step `number` of `steps`, from 1, with these losses."""

    def validation(self, found: Validation) -> None:
        """These adapters of a bank have been validated after an epoch."""

    def end(self) -> None:
        """The stage is over."""


class Callbacks(Callback):
    """Passes on what it is told to several others, in turn."""

    def __init__(self, *others: Callback) -> None:
        self.others = others

    def note(self, text: str) -> None:
        """Something worth a line."""
        for other in self.others:
            other.note(text)

    def begin(self, stage: str, total: int | None) -> None:
        """A stage of so many units begins; None where their number is not known."""
        for other in self.others:
            other.begin(stage, total)

    def advance(self, units: int) -> None:
        """So many units of the stage are done."""
        for other in self.others:
            other.advance(units)

    def step(self, adapters: Sequence[str], number: int, steps: int, losses: Sequence[float]) -> None:
        """These adapters of a bank have done step `number` of `steps`, from 1, with these losses."""
        for other in self.others:
            other.step(adapters, number, steps, losses)

    def validation(self, found: Validation) -> None:
        """These adapters of a bank have been validated after an epoch."""
        for other in self.others:
            other.validation(found)

    def end(self) -> None:
        """The stage is over."""
        for other in self.others:
            other.end()
