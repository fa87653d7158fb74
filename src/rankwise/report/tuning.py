"""Tables of the tuning: the settings chosen for each rank, and every trial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rankwise.data.writers import csv_line
from rankwise.report.tables import Table, percent
from rankwise.schema import Trial, TunedRank, Tuning

RATE = "learning_rate"
"""The setting that the figure has on its axis."""
TITLES = {"lora_plus_ratio": "LoRA+ ratio", "lora_dropout": "LoRA dropout", "targets": "target modules"}
"""Setting -> its column title, unless that is the name with spaces."""
TRIAL_COLUMNS = ("name", "rank", "rung", "passes")
RESULT_COLUMNS = ("log_loss", "accuracy", "diverged", "added", "chosen")
"""Columns of tuning.csv, before and after those of the varied settings."""


def about(tuning: Tuning) -> str:
    """What was tuned on which texts, in plain English."""
    settings = _listed([title(name) for name in tuning.varied])
    others = [title(name) for name in tuning.varied if name != RATE]
    best = f" At each learning rate, the figure shows the best {_listed(others)}." if others else ""
    return (
        f"Each rank uses the {settings} that had the lowest log loss on {tuning.texts:,} tuning texts. "
        "These texts are from train; no trial trained on them, and validation was not used."
        + (best if RATE in tuning.varied else "")
    )


def title(setting: str) -> str:
    """The column title of a setting.

    >>> title("weight_decay"), title("lora_plus_ratio")
    ('weight decay', 'LoRA+ ratio')
    """
    return TITLES.get(setting, setting.replace("_", " "))


def chosen_table(tuning: Tuning) -> Table:
    """One row per rank: the varied settings of its final adapters, and how the chosen trial did."""
    trials = chosen_trials(tuning)
    rows = [_chosen_row(tuning, each, trials[each.rank]) for each in tuning.chosen]
    return _without_empty_notes(
        Table(
            "Settings of each rank",
            ("rank", *map(title, tuning.varied), "log loss", "accuracy", "trials", "note"),
            rows,
            note="Log loss in nats per text and accuracy in percent, of the chosen trial on the tuning texts. "
            "At the edge: no lower or no higher learning rate was tried, so a better one may lie beyond. "
            "Extended: rates were added because the best one was at the edge.",
        )
    )


def chosen_trials(tuning: Tuning) -> dict[int, Trial]:
    """Rank -> the trial whose settings its final adapters use."""
    by_name = {each.name: each for each in tuning.trials}
    return {each.rank: by_name[each.trial] for each in tuning.chosen}


def _chosen_row(tuning: Tuning, chosen: TunedRank, trial: Trial) -> tuple[str, ...]:
    own = [each for each in tuning.trials if each.rank == chosen.rank]
    notes = [
        "at the edge" if chosen.at_edge else "",
        "extended" if any(each.added for each in own) else "",
    ]
    return (
        str(chosen.rank),
        *(_shown(chosen.settings.get(name)) for name in tuning.varied),
        *_scores(trial),
        str(len(own)),
        _notes(notes),
    )


def trials_table(tuning: Tuning) -> Table:
    """One row per trial, by rank, rung and learning rate."""
    chosen = {each.trial for each in tuning.chosen}
    rows = [
        (
            str(each.rank),
            str(each.rung),
            *(_shown(each.settings.get(name)) for name in tuning.varied),
            f"{each.epochs:g}",
            *_scores(each),
            _trial_notes(each, each.name in chosen),
        )
        for each in _in_order(tuning)
    ]
    return _without_empty_notes(
        Table(
            "Every trial",
            ("rank", "rung", *map(title, tuning.varied), "passes", "log loss", "accuracy", "note"),
            rows,
            note="Rung 1: a short schedule; rung 2: the full schedule, for the best settings of rung 1. "
            f"Passes: length of the schedule, in passes over {tuning.train_texts:,} training texts. "
            f"Log loss in nats per text and accuracy in percent, on the tuning texts. Seed {tuning.seed}.",
        )
    )


def _in_order(tuning: Tuning) -> list[Trial]:
    return sorted(tuning.trials, key=lambda each: (each.rank, each.rung, each.settings.get(RATE, 0)))


def _trial_notes(trial: Trial, is_chosen: bool) -> str:
    diverged = "" if trial.diverged is None else f"diverged at step {trial.diverged:,}"
    return _notes([diverged, "added" if trial.added else "", "chosen" if is_chosen else ""])


def _scores(trial: Trial) -> tuple[str, str]:
    """Log loss and accuracy on the tuning texts; empty if the trial diverged."""
    return (
        "" if trial.log_loss is None else f"{trial.log_loss:.4f}",
        "" if trial.accuracy is None else percent(trial.accuracy),
    )


def _without_empty_notes(table: Table) -> Table:
    """The table without its last column, if that is empty."""
    if any(row[-1] for row in table.rows):
        return table
    return Table(table.title, table.columns[:-1], [row[:-1] for row in table.rows], table.keys, table.note)


def _notes(notes: Sequence[str]) -> str:
    return "; ".join(note for note in notes if note)


def _shown(value: Any) -> str:
    """The value of a setting in a cell."""
    if value is None:
        return "default"
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def trials_csv(tuning: Tuning) -> str:
    """Every trial as CSV, unrounded. An accuracy is a fraction; log loss is in nats per text."""
    chosen = {each.trial for each in tuning.chosen}
    lines: list[list[Any]] = [[*TRIAL_COLUMNS, *tuning.varied, *RESULT_COLUMNS]]
    for each in _in_order(tuning):
        settings = [each.settings.get(name) for name in tuning.varied]
        result = [each.log_loss, each.accuracy, each.diverged, each.added, each.name in chosen]
        lines.append([each.name, each.rank, each.rung, each.epochs, *settings, *result])
    return "".join(csv_line(cells, safe=True) for cells in lines)
