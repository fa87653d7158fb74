"""Callbacks that report the progress of a long job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Validation:
    """Validation metrics of a bank's adapters after an epoch; log loss in nats per text."""

    adapters: Sequence[str]
    epoch: float  # passes over the training texts so far
    epochs: float  # length of these adapters' schedule
    step: int  # completed steps
    accuracy: Sequence[float]
    macro_f1: Sequence[float]
    log_loss: Sequence[float]


class Callback:
    """Base class of callbacks: every method does nothing."""

    def note(self, text: str) -> None:
        """Called with a message for the user."""

    def read(self, text: str) -> None:
        """Called with what was read of a file, and with how much of it is used."""

    def begin(self, stage: str, total: int | None) -> None:
        """Called when a stage begins; `total` is its number of units, None if unknown."""

    def advance(self, units: int) -> None:
        """Called when `units` more units of the stage are done."""

    def bank(self, purpose: str, ranks: Mapping[str, int]) -> None:
        """Called before a bank is trained: what for ("tune", "search" or "train"), and adapter -> rank."""

    def step(self, adapters: Sequence[str], number: int, steps: int, losses: Sequence[float]) -> None:
        """Called after step `number` of `steps`, from 1, with the loss of each adapter."""

    def validation(self, found: Validation) -> None:
        """Called after the adapters of a bank have been validated."""

    def end(self) -> None:
        """Called when the stage ends."""

    def finished(self, folder: Path) -> None:
        """Called when a run is finished and everything is written to its folder."""


class Callbacks(Callback):
    """Forwards every call to several callbacks, in order."""

    def __init__(self, *others: Callback) -> None:
        self.others = others

    def note(self, text: str) -> None:
        """Called with a message for the user."""
        for other in self.others:
            other.note(text)

    def read(self, text: str) -> None:
        """Called with what was read of a file, and with how much of it is used."""
        for other in self.others:
            other.read(text)

    def begin(self, stage: str, total: int | None) -> None:
        """Called when a stage begins; `total` is its number of units, None if unknown."""
        for other in self.others:
            other.begin(stage, total)

    def advance(self, units: int) -> None:
        """Called when `units` more units of the stage are done."""
        for other in self.others:
            other.advance(units)

    def bank(self, purpose: str, ranks: Mapping[str, int]) -> None:
        """Called before a bank is trained: what for ("tune", "search" or "train"), and adapter -> rank."""
        for other in self.others:
            other.bank(purpose, ranks)

    def step(self, adapters: Sequence[str], number: int, steps: int, losses: Sequence[float]) -> None:
        """Called after step `number` of `steps`, from 1, with the loss of each adapter."""
        for other in self.others:
            other.step(adapters, number, steps, losses)

    def validation(self, found: Validation) -> None:
        """Called after the adapters of a bank have been validated."""
        for other in self.others:
            other.validation(found)

    def end(self) -> None:
        """Called when the stage ends."""
        for other in self.others:
            other.end()

    def finished(self, folder: Path) -> None:
        """Called when a run is finished and everything is written to its folder."""
        for other in self.others:
            other.finished(folder)
