"""Which settings each rank tries before its adapters are trained, and which it keeps.

Trials of a rank, here with four learning rates and two finalists::

    rung 1    short schedule      3e-4    1e-3    3e-3    1e-2     log loss on the tuning texts
                                  0.91    0.64    0.52    0.49
              added                                           3e-2     the best rate was the highest
                                                              diverged
    rung 2    full schedule                       0.31    0.34     the two finalists
              added                       0.36                     the best rate was the lowest of the rung
    best                                          3e-3             the rates on either side are worse
    chosen                              1e-3                       within a standard error (0.06) of the best

The lowest rate that is about as good as the best one is chosen, by the rule of one standard error (Breiman,
Friedman, Olshen and Stone 1984, section 3.4.3), because a higher rate is closer to those at which some seeds
fail. The standard error is that of a mean, not of the difference, so the rule gives up a little log loss.

The rungs are those of successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943), with two of them.
Every trial has a complete schedule of its own, because the loss in the middle of a long schedule says little
about its end. The second rung is needed because the best learning rate depends on the schedule's length.

`next_trials` and `chosen` are pure functions of the recipe and of the trials done so far, so a resumed run
goes on where it stopped, and a run with further ranks only tries those.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from rankwise.errors import UsageError, option
from rankwise.recipe import Recipe
from rankwise.schema import Trial, TunedRank

SEED = 20_011
"""Seed of every trial. A seed of the final adapters would favor settings that suit that seed."""
MOST_ADDED = 3
"""Maximum number of trials that are added to a rung of a rank to bracket its best learning rate."""
FACTOR = math.sqrt(10)
"""Step from the edge of a grid with a single learning rate."""
MOST_FACTOR = 10.0
"""Largest step beyond the edge of a grid."""
OF_PROBE = ("learning_rate", "weight_decay", "epochs")
"""Settings that matter to a linear probe, which has no low-rank factors."""
LONGEST = 80
"""Characters of a combination of settings in a name."""
SHORT = {
    "learning_rate": "lr",
    "alpha": "alpha",
    "alpha_mode": "",
    "epochs": "e",
    "last_layers": "last",
    "lora_dropout": "drop",
    "lora_plus_ratio": "plus",
    "targets": "",
    "weight_decay": "wd",
}
"""Setting -> its abbreviation in names of adapters."""
_UNTUNED = f"{option('tune', False)} trains every rank at {option('learning_rate')}"
"""A hint that always helps."""


@dataclass(frozen=True)
class PlannedTrial:
    """A trial that is to be trained."""

    rank: int
    rung: int
    setting: Mapping[str, Any]  # the settings that vary, by name in the recipe
    share: float  # length of its schedule as a share of the full one
    added: bool = False

    @property
    def name(self) -> str:
        """Such as `tune1-r4-lr3e-3`."""
        return f"tune{self.rung}-r{self.rank}-{label(self.setting)}"


def label(setting: Mapping[str, Any]) -> str:
    """A short name of a combination of settings.

    >>> label({"learning_rate": 0.003, "targets": ("q_proj", "v_proj"), "weight_decay": 0.0})
    'lr3e-3-q_proj+v_proj-wd0'
    """
    whole = "-".join(f"{SHORT[name]}{_value(name, value)}" for name, value in setting.items())
    if len(whole) <= LONGEST:
        return whole
    return f"{whole[:LONGEST]}-{zlib.crc32(whole.encode()):08x}"  # it is part of the names of files


def _value(name: str, value: Any) -> str:
    """A value without loss, so that different values have different names."""
    if name == "learning_rate":
        return format(Decimal(repr(float(value))).normalize(), "e").replace("e+", "e")
    if name == "targets":
        return "+".join(value).replace("/", "-")
    return value if isinstance(value, str) else repr(value).removesuffix(".0")


def next_trials(
    recipe: Recipe, ranks: Sequence[int], done: Sequence[Trial], share: float
) -> list[PlannedTrial]:
    """The trials to train next, of all ranks together; none if every rank can choose.

    Args:
        recipe: what to train.
        ranks: the ranks to tune; 0 is a linear probe.
        done: finished trials, including those that diverged.
        share: length of the short schedule as a share of the full one.
    """
    trials = [trial for rank in ranks for trial in _short(recipe, rank, _of(rank, done), share)]
    if trials or not has_full_rung(recipe, share):
        return trials
    return [trial for rank in ranks for trial in _full(recipe, rank, _of(rank, done))]


def chosen(ranks: Sequence[int], done: Sequence[Trial]) -> list[TunedRank]:
    """The settings of each rank, from its trials with the longest schedule.

    They are those of the trial with the lowest log loss, but for the learning rate. This is the lowest one
    whose log loss is within one standard error of the lowest.
    """
    return [_chosen(rank, _of(rank, done)) for rank in sorted(ranks)]


def grid_of(recipe: Recipe, rank: int) -> list[dict[str, Any]]:
    """The combinations of values that a rank tries at first."""
    found = []
    for setting in recipe.grid():
        own = {name: value for name, value in setting.items() if rank or name in OF_PROBE}
        if own not in found:
            found.append(own)
    return found


def has_full_rung(recipe: Recipe, share: float) -> bool:
    """Whether the best settings are tried on the full schedule."""
    return recipe.tune.finalists > 1 and share < 1


def cost(recipe: Recipe, ranks: Sequence[int], share: float) -> tuple[int, float]:
    """Expected number of trials, and their length in full schedules.

    It counts the grid, one more rate if the grid has only two, which cannot bracket the best one, and on the
    full schedule the finalists and one more. Further ones may be added.
    """
    grids = [grid_of(recipe, rank) for rank in ranks]
    short = sum(len(grid) + _has_two_rates(grid) for grid in grids)
    full = sum(min(recipe.tune.finalists, len(grid_of(recipe, rank))) + 1 for rank in ranks)
    full = full if has_full_rung(recipe, share) else 0
    return short + full, short * share + full


def rounds(recipe: Recipe, rank: int, share: float) -> int:
    """How often trials of a rank are expected to start together: as `cost`, the additions on their own."""
    return 1 + _has_two_rates(grid_of(recipe, rank)) + (2 if has_full_rung(recipe, share) else 0)


def _has_two_rates(grid: Sequence[Mapping[str, Any]]) -> bool:
    return len({each["learning_rate"] for each in grid}) == 2


def _of(rank: int, done: Iterable[Trial]) -> list[Trial]:
    return [trial for trial in done if trial.rank == rank]


def _short(recipe: Recipe, rank: int, done: Sequence[Trial], share: float) -> Iterator[PlannedTrial]:
    """The trials of rung 1 that are left: the grid, then rates beyond its edge if the best one is there."""
    rung = [trial for trial in done if trial.rung == 1]
    tried = [trial.settings for trial in rung]
    missing = [setting for setting in grid_of(recipe, rank) if setting not in tried]
    around = [] if missing else _around(_best(rung), rung, rung)
    for setting in missing or around:
        yield PlannedTrial(rank, 1, setting, share, added=not missing)


def _full(recipe: Recipe, rank: int, done: Sequence[Trial]) -> Iterator[PlannedTrial]:
    """The trials of rung 2 that are left: the finalists, then the rates next to the best one."""
    first, rung = ([trial for trial in done if trial.rung == number] for number in (1, 2))
    finalists = sorted((trial for trial in first if trial.loss is not None), key=_order)
    if not finalists:
        return
    tried = [trial.settings for trial in rung]
    leaders = [trial.settings for trial in finalists[: recipe.tune.finalists]]
    missing = [setting for setting in leaders if setting not in tried]
    around = [] if missing else _around(_best(rung), rung, done)
    for setting in missing or around:
        yield PlannedTrial(rank, 2, setting, 1.0, added=not missing)


def _order(trial: Trial) -> tuple[float, float]:
    """Best first: by log loss or another metric, then by learning rate. Diverged trials are last."""
    return (math.inf if trial.loss is None else trial.loss), trial.settings["learning_rate"]


def _best(trials: Sequence[Trial]) -> Trial:
    return min(trials, key=_order)


def _around(best: Trial, rung: Sequence[Trial], done: Sequence[Trial]) -> list[dict[str, Any]]:
    """The settings with the learning rates next to the best trial's that its rung has not tried.

    With a trial on either side of it, the best learning rate is bracketed. A rate that diverged on any rung
    counts as tried. None if enough trials were added already.

    Args:
        best: the best trial of the rung.
        rung: all trials of the rung.
        done: all trials of the rank; their learning rates and those beyond their edges are the candidates.
    """
    room = MOST_ADDED - sum(trial.added for trial in rung)
    missing = [
        dict(best.settings) | {"learning_rate": rate}
        for rate in _neighbors(best, done)
        if not _is_tried(best, rate, rung, done)
    ]
    return missing[: max(0, room)]


def _neighbors(best: Trial, done: Sequence[Trial]) -> tuple[float, float]:
    """The next lower and the next higher learning rate, which may be new."""
    rate = best.settings["learning_rate"]
    rates = sorted({trial.settings["learning_rate"] for trial in done if _alike(trial, best)})
    i = rates.index(rate)
    # A wide gap in the recipe's rates is no reason for another one as wide.
    down = min(rates[1] / rates[0], MOST_FACTOR) if len(rates) > 1 else FACTOR
    up = min(rates[-1] / rates[-2], MOST_FACTOR) if len(rates) > 1 else FACTOR
    lower = rates[i - 1] if i else float(f"{rate / down:.2g}")
    higher = rates[i + 1] if i + 1 < len(rates) else float(f"{rate * up:.2g}")
    return lower, higher


def _is_tried(best: Trial, rate: float, rung: Sequence[Trial], done: Sequence[Trial]) -> bool:
    at_rate = [trial for trial in done if _alike(trial, best) and trial.settings["learning_rate"] == rate]
    return any(trial in rung or trial.loss is None for trial in at_rate)


def _alike(a: Trial, b: Trial) -> bool:
    """Whether two trials differ in the learning rate at most."""
    return a.settings | {"learning_rate": None} == b.settings | {"learning_rate": None}


def _chosen(rank: int, done: Sequence[Trial]) -> TunedRank:
    full = [trial for trial in done if trial.rung == 2 and trial.loss is not None]
    rung = full or done
    best = _best(rung)
    at_edge = not all(_is_tried(best, rate, rung, done) for rate in _neighbors(best, done))
    taken = min(_as_good(best, rung), key=lambda trial: float(trial.settings["learning_rate"]))
    return TunedRank(rank=rank, trial=taken.name, settings=dict(taken.settings), at_edge=at_edge)


def _as_good(best: Trial, rung: Sequence[Trial]) -> list[Trial]:
    """The trials that differ from the best one in the learning rate at most, and hardly in log loss."""
    if best.loss is None:
        return [best]
    limit = best.loss + (best.loss_error or 0.0)
    return [trial for trial in rung if trial.loss is not None and trial.loss <= limit and _alike(trial, best)]


PER_CLASS = 20
"""Minimum number of tuning texts per class, on average."""
MOST_TEXTS = 2_000
"""Default maximum of tuning texts: settings differ by far more than the error of the log loss on so many."""
MOST_SHARE = 1 / 3
"""Maximum default share of train."""
SHARE = 0.25
"""Default length of the short schedule as a share of the full one."""
DEFAULT_STEPS = 20
"""Minimum length of the short schedule in steps, unless the recipe sets its share."""
MIN_STEPS = 10
"""The same if it does: with fewer, the loss says nothing about the end of a longer schedule."""


def tuning_size(recipe: Recipe, texts: int, classes: int) -> int:
    """Number of training texts to hold out for tuning.

    Args:
        recipe: what to train.
        texts: number of training texts.
        classes: number of classes with training texts.

    Raises:
        UsageError: that would be fewer than `PER_CLASS` per class, or there are too few texts to train on.
    """
    least, given = PER_CLASS * classes, recipe.tune.tuning_texts
    if given is None:
        size = max(least, min(texts // 10, MOST_TEXTS))
        if size > MOST_SHARE * texts:
            raise UsageError(
                f"tuning needs {PER_CLASS} texts per class, {size:,} for {classes} classes, "
                f"and that is more than a third of the {texts:,} training texts",
                hint=f"{_UNTUNED}; or set {option('tuning_texts')}",
            )
        return size
    if not least <= given < texts:
        raise UsageError(
            f"tuning_texts {given:,}: of {texts:,} training texts with {classes} classes, at least {least:,} "
            f"({PER_CLASS} per class) and at most {texts - 1:,} can be held out",
            hint=_UNTUNED,
        )
    return given


def share_of(recipe: Recipe, steps: int) -> float:
    """Length of the short schedule as a share of the full one.

    Args:
        recipe: what to train.
        steps: steps of the full schedule.

    Raises:
        UsageError: the short schedule has fewer than `MIN_STEPS` steps.

    >>> share_of(Recipe(), 1000), share_of(Recipe(), 40), share_of(Recipe(), 15)
    (0.25, 0.5, 1.0)
    """
    given, hint = recipe.tune.tuning_share, _UNTUNED
    share = max(SHARE, min(1.0, DEFAULT_STEPS / steps)) if given is None else given
    if round(share * steps) >= MIN_STEPS:
        return share
    if steps >= MIN_STEPS:
        enough = math.ceil(100 * MIN_STEPS / steps) / 100
        hint = f"set {option('tuning_share', enough)} or more; or {hint}"
    raise UsageError(
        f"tuning_share {share:g} of {steps} steps leaves {round(share * steps)} per trial, "
        f"and at least {MIN_STEPS} are needed",
        hint=hint,
    )


def fewest_epochs(recipe: Recipe) -> int:
    """The shortest of the schedules that are tried, in epochs."""
    return min(map(int, recipe.tune.vary.get("epochs") or (recipe.train.epochs,)))


def varied(recipe: Recipe) -> list[str]:
    """Names of the settings that vary."""
    return list(next(recipe.grid()))
