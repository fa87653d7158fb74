"""Tables of the tuning: the settings chosen for each rank, and every trial."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import compress
from typing import Any

from rankwise.data.writers import csv_line
from rankwise.report.tables import Table, percent
from rankwise.schema import Trial, TunedRank, Tuning
from rankwise.stats.wording import joined

RATE = "learning_rate"
"""The setting that the figure has on its axis."""
TITLES = {"lora_plus_ratio": "LoRA+ ratio", "lora_dropout": "LoRA dropout", "targets": "target modules"}
"""Setting -> its column title, unless that is the name with spaces."""
BEST = {"log-loss": "lowest log loss", "accuracy": "highest accuracy", "macro-f1": "highest macro-F1"}
"""Metric -> what is best by it."""
NOTES = {
    "at the edge": "the next lower or the next higher learning rate was not tried, and may be better",
    "lower rate": "a higher learning rate was better, but by less than the standard error",
    "wider grid": "learning rates were added because the best one was at the edge",
}
"""Note on a rank -> its meaning."""
TRIAL_COLUMNS = ("name", "rank", "rung", "passes")
RESULT_COLUMNS = ("log_loss", "log_loss_error", "accuracy", "macro_f1", "diverged", "added", "chosen")
"""Columns of tuning.csv, before and after those of the varied settings."""


def about(tuning: Tuning) -> str:
    """What was tuned on which texts, in plain English."""
    settings = joined([title(name) for name in tuning.varied])
    others = [title(name) for name in tuning.varied if name != RATE]
    best = f" At each learning rate, the figure shows the best {joined(others)}." if others else ""
    rule = "Of learning rates within one standard error of that, it uses the lowest. "
    return (
        f"Each rank uses the {settings} that had the {BEST[tuning.metric]} on {tuning.texts:,} tuning texts. "
        f"{rule if RATE in tuning.varied else ''}"
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
    """One row per rank: the varied settings of its final adapters, and the chosen trial."""
    trials = chosen_trials(tuning)
    rows = [_chosen_row(tuning, each, trials[each.rank]) for each in tuning.chosen]
    meanings = [
        f"{note.capitalize()}: {NOTES[note]}." for note in NOTES if any(note in row[-1] for row in rows)
    ]
    table = Table(
        "Settings of each rank",
        ("rank", *map(title, tuning.varied), "log loss", _second(tuning), "trials", "note"),
        rows,
        note=" ".join(
            [f"Log loss in nats and {_second(tuning)} in percent, on the tuning texts.", *meanings]
        ),
    )
    return _without_empty(table, {"note"})


def chosen_trials(tuning: Tuning) -> dict[int, Trial]:
    """Rank -> the trial whose settings its final adapters use."""
    by_name = {each.name: each for each in tuning.trials}
    return {each.rank: by_name[each.trial] for each in tuning.chosen}


def _chosen_row(tuning: Tuning, chosen: TunedRank, trial: Trial) -> tuple[str, ...]:
    own = [each for each in tuning.trials if each.rank == chosen.rank]
    holds = {
        "at the edge": chosen.at_edge,
        "lower rate": _is_lower(trial, own),
        "wider grid": _is_wider(own),
    }
    return (
        str(chosen.rank),
        *(_shown(chosen.settings.get(name)) for name in tuning.varied),
        _nats(trial.log_loss),
        _accuracy(trial, tuning),
        str(len(own)),
        _joined(holds),
    )


def _is_lower(chosen: Trial, trials: Sequence[Trial]) -> bool:
    """Whether a trial with the same schedule and another learning rate was better."""
    return any(
        each.loss is not None and chosen.loss is not None and each.loss < chosen.loss
        for each in trials
        if each.rung == chosen.rung
    )


def _is_wider(trials: Sequence[Trial]) -> bool:
    """Whether a rank tried learning rates that are not in the recipe's grid."""
    grid = {each.settings.get("learning_rate") for each in trials if each.rung == 1 and not each.added}
    return any(each.settings.get("learning_rate") not in grid for each in trials)


def trials_table(tuning: Tuning) -> Table:
    """One row per trial, by rank, rung and learning rate."""
    chosen = {each.trial for each in tuning.chosen}
    table = Table(
        "Every trial",
        (
            "rank", "rung", *map(title, tuning.varied), "passes", "log loss", "standard error",
            _second(tuning),
            "diverged at step", "note",
        ),
        [_trial_row(tuning, each, each.name in chosen) for each in _in_order(tuning)],
        note="Rung 1: a short schedule; rung 2: the full schedule, for the best settings of rung 1. "
        f"Passes: length of the schedule, in passes over {tuning.train_texts:,} training texts. "
        f"Log loss, with its standard error, in nats and {_second(tuning)} in percent, on the tuning texts. "
        f"Seed {tuning.seed}.",
    )  # fmt: skip
    return _without_empty(table, {"standard error", "diverged at step", "note"})


def _trial_row(tuning: Tuning, trial: Trial, is_chosen: bool) -> tuple[str, ...]:
    return (
        str(trial.rank),
        str(trial.rung),
        *(_shown(trial.settings.get(name)) for name in tuning.varied),
        f"{trial.epochs:g}",
        _nats(trial.log_loss),
        _nats(trial.log_loss_error),
        _accuracy(trial, tuning),
        "" if trial.diverged is None else f"{trial.diverged:,}",
        _joined({"added": trial.added, "chosen": is_chosen}),
    )


def _in_order(tuning: Tuning) -> list[Trial]:
    return sorted(tuning.trials, key=lambda each: (each.rank, each.rung, each.settings.get(RATE, 0)))


def _nats(value: float | None) -> str:
    """Empty if the trial diverged."""
    return "" if value is None else f"{value:.4f}"


def _second(tuning: Tuning) -> str:
    """Title of the column beside the log loss."""
    return "macro-F1" if tuning.metric == "macro-f1" else "accuracy"


def _accuracy(trial: Trial, tuning: Tuning) -> str:
    """Empty if the trial diverged."""
    value = trial.macro_f1 if tuning.metric == "macro-f1" else trial.accuracy
    return "" if value is None else percent(value)


def _without_empty(table: Table, optional: Collection[str]) -> Table:
    """The table without those optional columns that are empty."""
    cells = zip(*table.rows, strict=True)
    kept = [name not in optional or any(cell) for name, cell in zip(table.columns, cells, strict=True)]
    columns, *rows = [tuple(compress(row, kept)) for row in (table.columns, *table.rows)]
    return replace(table, columns=columns, rows=rows)


def _joined(holds: Mapping[str, bool]) -> str:
    return "; ".join(note for note, is_true in holds.items() if is_true)


def _shown(value: Any) -> str:
    """The value of a setting in a cell."""
    if value is None:
        return "default"
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def trials_csv(tuning: Tuning) -> str:
    """Every trial as CSV, unrounded. An accuracy is a fraction; log loss is in nats per text."""
    chosen = {each.trial for each in tuning.chosen}
    lines: list[list[Any]] = [[*TRIAL_COLUMNS, *tuning.varied, *RESULT_COLUMNS]]
    for each in _in_order(tuning):
        settings = [each.settings.get(name) for name in tuning.varied]
        result = [
            each.log_loss,
            each.log_loss_error,
            each.accuracy,
            each.macro_f1,
            each.diverged,
            each.added,
            each.name in chosen,
        ]
        lines.append([each.name, each.rank, each.rung, each.epochs, *settings, *result])
    return "".join(csv_line(cells, safe=True) for cells in lines)
