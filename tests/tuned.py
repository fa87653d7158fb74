"""Synthetic results of a tuning, for runs that are not trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from rankwise.schema import Results, Trial, TunedRank, Tuning
from rankwise.store import files
from rankwise.store.run_folder import RunFolder

RATES = (3e-4, 1e-3, 3e-3, 1e-2)
OPTIMA = {0: 0.02, 1: 9e-3, 2: 4e-3, 4: 3e-3, 8: 2.6e-3, 16: 2.4e-3}
"""Rank -> learning rate with the lowest log loss."""
ERROR = 0.004
"""Standard error of every log loss; too small to change a choice."""
TOO_HIGH = 0.08
"""Learning rates of at least this, divided by the square root of the rank, diverge."""


def made_tuning(
    optima: Mapping[int, float] = OPTIMA,
    *,
    rates: Sequence[float] = RATES,
    added: Sequence[float] = (3e-2,),
    others: Mapping[str, Sequence[Any]] | None = None,
    finalists: int = 2,
) -> Tuning:
    """Trials of every combination of settings, and those of the best few with the full schedule.

    Args:
        optima: rank -> learning rate with the lowest log loss.
        rates: learning rates of the grid; if empty, the learning rate is not varied.
        added: learning rates beyond the grid.
        others: other varied settings; their first value is the best.
        finalists: number of trials of a rank that go on to the full schedule.
    """
    grids: dict[str, Sequence[Any]] = {"learning_rate": (*rates, *added), **(others or {})}
    grids = {name: values for name, values in grids.items() if values}
    trials, chosen = [], []
    for rank, optimum in optima.items():
        short = [
            _trial(rank, 1, dict(zip(grids, values, strict=True)), optimum, grids, added)
            for values in product(*grids.values())
        ]
        best = sorted((each for each in short if each.log_loss is not None), key=_loss)
        full = [_trial(rank, 2, each.settings, optimum, grids, added) for each in best[:finalists]]
        winner = min(full or best, key=_loss)
        trials += [*short, *full]
        ends = {min(rates), max((*rates, *added))} if rates else set()
        at_edge = winner.settings.get("learning_rate") in ends
        chosen.append(TunedRank(rank=rank, trial=winner.name, settings=winner.settings, at_edge=at_edge))
    return Tuning(texts=1_600, train_texts=14_400, seed=110, varied=list(grids), trials=trials, chosen=chosen)


def _loss(trial: Trial) -> float:
    assert trial.log_loss is not None
    return trial.log_loss


def _trial(
    rank: int,
    rung: int,
    settings: Mapping[str, Any],
    optimum: float,
    grids: Mapping[str, Sequence[Any]],
    added: Sequence[float],
) -> Trial:
    rate = float(settings.get("learning_rate", optimum))
    worse = sum(
        0.01 * list(grids[name]).index(value) for name, value in settings.items() if name != "learning_rate"
    )
    loss = (
        (0.34 if rung == 1 else 0.2)
        + 0.35 * abs(math.log10(rate / optimum)) ** 1.6
        + worse
        + 0.05 / (1 + rank)
    )
    lost = rate * math.sqrt(rank) >= TOO_HIGH
    return Trial(
        name=f"tune{rung}-r{rank}-" + "-".join(f"{value}" for value in settings.values()),
        rank=rank,
        rung=rung,
        settings=dict(settings),
        epochs=0.25 if rung == 1 else 2.0,
        log_loss=None if lost else loss,
        log_loss_error=None if lost else ERROR,
        accuracy=None if lost else max(0.2, 1 - loss / 2.5),
        diverged=37 if lost else None,
        added=rate in added,
    )


def tune(run: RunFolder, tuning: Tuning) -> Results:
    """Write a tuning into results.json, and the chosen settings into its adapters."""
    results = run.read_results()
    settings = {each.rank: each.settings for each in tuning.chosen}
    adapters = [row.model_copy(update={"settings": settings.get(row.rank, {})}) for row in results.adapters]
    tuned = results.model_copy(update={"adapters": adapters, "tuning": tuning})
    files.write_text(run.results, tuned.model_dump_json(indent=1) + "\n")
    return tuned
