"""Reads history.jsonl: losses and validations of each adapter."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from pydantic import BaseModel, ValidationError


@dataclass(frozen=True)
class Curve:
    """The learning curve of one adapter. Keys are epochs, fractional within an epoch."""

    losses: dict[float, float] = field(default_factory=dict)  # training loss of a step, nats
    accuracy: dict[float, float] = field(default_factory=dict)  # on the validation split, a fraction
    log_loss: dict[float, float] = field(default_factory=dict)  # on the validation split, nats


class _Event(BaseModel):
    """A line of history.jsonl: a step or a validation, with a value for each adapter."""

    adapters: list[str]
    epoch: float = 0.0  # validation events only
    epochs: list[float] = []  # step events only, like losses; of each adapter
    losses: list[float] = []
    accuracy: list[float] = []  # validation events only, like log_loss
    log_loss: list[float] = []


def parse_curves(lines: Iterable[str]) -> dict[str, Curve]:
    """Adapter name -> its curve.

    A resumed run may contain a step twice; the later one is used. Lines truncated by a crash are skipped.
    """
    curves: dict[str, Curve] = {}
    for line in lines:
        with suppress(ValidationError):
            _add(curves, _Event.model_validate_json(line))
    return curves


def _add(curves: dict[str, Curve], event: _Event) -> None:
    for name in event.adapters:
        curves.setdefault(name, Curve())
    for name, epoch, value in zip(event.adapters, event.epochs, event.losses, strict=False):
        curves[name].losses[epoch] = value
    for name, value in zip(event.adapters, event.accuracy, strict=False):
        curves[name].accuracy[event.epoch] = value
    for name, value in zip(event.adapters, event.log_loss, strict=False):
        curves[name].log_loss[event.epoch] = value
