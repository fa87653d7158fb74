"""history.jsonl, read back: losses and validations of each adapter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from rankwise.store.run_folder import RunFolder


@dataclass
class Curve:
    """How one adapter learned. Keys are passes over the training texts so far."""

    losses: dict[float, float] = field(default_factory=dict)  # training loss of a step
    accuracy: dict[float, float] = field(default_factory=dict)  # on the validation split
    log_loss: dict[float, float] = field(default_factory=dict)  # on the validation split


def read_curves(run: RunFolder) -> dict[str, Curve]:
    """Adapter name -> its curve; empty where there is no history.

    A run that was interrupted and taken up again may hold a step twice; the later one counts.
    """
    curves: dict[str, Curve] = {}
    for line in _lines(run):
        # A line of another form is none of ours.
        with suppress(KeyError, IndexError, TypeError, ValueError):
            for k, name in enumerate(line["adapters"]):
                _add(curves.setdefault(name, Curve()), line, k)
    return curves


def _add(curve: Curve, line: dict[str, Any], k: int) -> None:
    """What a line says of its k-th adapter."""
    epoch = float(line["epoch"])
    match line["kind"]:
        case "step":
            curve.losses[epoch] = float(line["losses"][k])
        case "validation":
            curve.accuracy[epoch] = float(line["accuracy"][k])
            curve.log_loss[epoch] = float(line["log_loss"][k])


def _lines(run: RunFolder) -> Iterator[dict[str, Any]]:
    """The objects of the file; a line that a crash has torn is passed over."""
    try:
        text = run.history.read_text("utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found
