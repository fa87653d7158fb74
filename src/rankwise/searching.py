"""Which settings a search tries, how long each of them trains, and which one is best.

A search of the trials a to i. A trial that is promoted starts again on the next rung, three times as long::

    rung 1    1/9 of the schedule    a b c d e f g h i     log loss on validation; every trial starts here
    rung 2    1/3 of the schedule    b e h                 the best third of rung 1 so far
    rung 3    the full schedule      e h                   the best third of rung 2, but two at least
    best                             e                     the lowest log loss on the full schedule

This is successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943) in its asynchronous form (ASHA;
Li et al. 2020, arXiv 1810.05934), with a reduction factor of 3: no trial waits for a rung to fill. Whenever a
place is free, the longest schedule that a trial has earned starts in it, or else a new trial.

Every rung has a complete schedule of its own, as in `rankwise.tuning`. ASHA evaluates one long schedule at
milestones. But before the learning rate decays, a high one looks worse than it is at the end, so milestones
favor low learning rates. Short complete schedules are judged after the decay, as the full one is. The best
learning rate of a short schedule tends to be higher than that of a long one, and only the last rung can
correct that, so at least two trials reach it. The price is that a promoted trial repeats its first steps: a
search of many trials costs a third of all full schedules, instead of a quarter.

Everything here is a pure function of the recipe and of the trials done so far, so a resumed search goes on
where it stopped.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from rankwise.errors import UsageError, either, option
from rankwise.recipe import Recipe
from rankwise.schema import SearchTrial, Trial
from rankwise.tuning import MIN_STEPS, OF_PROBE, label

FACTOR = 3
"""A rung is this many times as long as the previous one, and the best 1 / FACTOR of it are promoted."""
RUNGS = 3
"""Number of rungs, if the shortest has at least `MIN_STEPS` steps."""
MOST_DRAWS = 100
"""Maximum number of random draws per trial, because draws may be equal."""
MOST_PLACES = 16
"""Default maximum of adapters in the bank at once. More places decide on promotions later."""


@dataclass(frozen=True)
class Candidate:
    """Settings to try."""

    rank: int
    setting: Mapping[str, Any]  # settings other than the rank, by name in the recipe

    @property
    def name(self) -> str:
        """Such as `r4-lr3e-3`."""
        return f"r{self.rank}-{label(self.setting)}"

    @property
    def values(self) -> dict[str, Any]:
        """The settings by name, including the rank."""
        return {"rank": self.rank, **self.setting}


@dataclass(frozen=True)
class Attempt:
    """The training of a candidate on one rung."""

    candidate: Candidate
    rung: int  # from 1
    share: float  # length of its schedule as a share of the full one

    @property
    def name(self) -> str:
        """Such as `r4-lr3e-3-1of9`; on the full schedule, the candidate's name."""
        part = "" if self.share == 1 else f"-1of{round(1 / self.share)}"
        return f"{self.candidate.name}{part}"


@dataclass(frozen=True)
class Search:
    """The candidates of a search, and the rules by which they are trained."""

    candidates: Sequence[Candidate]
    shares: Sequence[float]  # of each rung, ascending; the last is 1
    places: int  # number of adapters that train at once
    finalists: int  # minimum number of candidates on every rung, unless there are fewer

    @cached_property
    def rungs(self) -> list[list[Attempt]]:
        """Rung -> the possible attempt of each candidate."""
        return [
            [Attempt(candidate, rung, share) for candidate in self.candidates]
            for rung, share in enumerate(self.shares, 1)
        ]

    @cached_property
    def attempts(self) -> dict[str, Attempt]:
        """Every possible attempt, by name."""
        return {attempt.name: attempt for rung in self.rungs for attempt in rung}

    @property
    def expected(self) -> int:
        """About the number of attempts that will be trained; the order of results decides on the rest."""
        sizes = [len(self.candidates)]
        for _ in self.shares[1:]:
            sizes.append(min(sizes[-1], max(self.finalists, sizes[-1] // FACTOR)))
        return sum(sizes)


def next_attempts(search: Search, done: Sequence[Trial], training: Sequence[str]) -> list[Attempt]:
    """The attempts to start now; none if no place is free, or if there is nothing to start yet.

    The search is complete if nothing is training and there is nothing to start.

    Args:
        search: the candidates and the rules.
        done: finished attempts, including those that diverged.
        training: names of the attempts in training.
    """
    losses = {trial.name: trial.log_loss for trial in done}
    started = [*losses, *training]
    found: list[Attempt] = []
    while len(training) + len(found) < search.places:
        attempt = next(_startable(search, losses, {*started, *(each.name for each in found)}), None)
        if attempt is None:
            break
        found.append(attempt)
    return found


def best(search: Search, done: Sequence[Trial]) -> Trial | None:
    """The attempt with the lowest log loss on the full schedule so far; None if there is none yet."""
    last = {attempt.name for attempt in search.rungs[-1]}
    finished = [trial for trial in done if trial.name in last and trial.log_loss is not None]
    return min(finished, key=lambda trial: trial.log_loss or 0.0, default=None)


def best_first(search: Search, done: Sequence[Trial]) -> list[SearchTrial]:
    """The trials of a finished search: by the length of the schedule completed, then by log loss."""
    by_name = {trial.name: trial for trial in done}
    found = [
        _result(each, [by_name[rung[i].name] for rung in search.rungs if rung[i].name in by_name], search)
        for i, each in enumerate(search.candidates)
    ]
    return sorted(
        found, key=lambda trial: (-trial.share, math.inf if trial.log_loss is None else trial.log_loss)
    )


def _result(candidate: Candidate, attempts: Sequence[Trial], search: Search) -> SearchTrial:
    completed = [each for each in attempts if each.log_loss is not None]
    last, share = attempts[-1], search.shares[len(completed) - 1] if completed else 0.0
    return SearchTrial(
        name=candidate.name,
        rank=candidate.rank,
        settings=dict(candidate.setting),
        share=share,
        log_loss=completed[-1].log_loss if completed else None,
        accuracy=completed[-1].accuracy if completed else None,
        log_losses=[each.log_loss for each in attempts],
        end="diverged" if last.log_loss is None else "finished" if share == 1 else "stopped",
        diverged=last.diverged,
    )


Losses = Mapping[str, float | None]
"""Name of a finished attempt -> its log loss; None if it diverged."""


def _startable(search: Search, losses: Losses, started: set[str]) -> Iterator[Attempt]:
    """What could start in a free place, the most urgent first."""
    steps = list(zip(search.rungs, search.rungs[1:], strict=False))
    for rung, above in reversed(steps):
        yield from _unstarted(_winners(rung, losses), above, started)
    yield from (attempt for attempt in search.rungs[0] if attempt.name not in started)
    for rung, above in steps:
        if any(attempt.name in started and attempt.name not in losses for attempt in rung):
            return  # the rung is not complete, so its best are not known yet
        missing = search.finalists - sum(
            attempt.name in started and _is_sound(attempt, losses) for attempt in above
        )
        yield from _unstarted(_ranked(rung, losses), above, started, missing)


def _winners(rung: Sequence[Attempt], losses: Losses) -> list[Attempt]:
    """The best 1 / FACTOR of the attempts of a rung that have finished."""
    return _ranked(rung, losses)[: sum(attempt.name in losses for attempt in rung) // FACTOR]


def _ranked(rung: Sequence[Attempt], losses: Losses) -> list[Attempt]:
    """The finished attempts of a rung by log loss, without those that diverged."""
    found = [(loss, i) for i, attempt in enumerate(rung) if (loss := losses.get(attempt.name)) is not None]
    return [rung[i] for _, i in sorted(found)]


def _unstarted(
    promoted: Sequence[Attempt], above: Sequence[Attempt], started: set[str], most: int | None = None
) -> list[Attempt]:
    """The attempts on the rung above of candidates that are to be promoted, if they have not started yet."""
    order = [attempt.candidate for attempt in promoted]
    left = [attempt for attempt in above if attempt.name not in started and attempt.candidate in order]
    ordered = sorted(left, key=lambda attempt: order.index(attempt.candidate))
    return ordered if most is None else ordered[: max(0, most)]


def _is_sound(attempt: Attempt, losses: Losses) -> bool:
    """Whether an attempt has not diverged."""
    return losses.get(attempt.name, 0.0) is not None


def candidates(recipe: Recipe, trials: int | None = None) -> list[Candidate]:
    """The settings to try, in a random order that the recipe's first seed determines.

    Args:
        recipe: its ranks, learning rates and varied settings are searched; without tuning, the learning rate
            is not.
        trials: number of random draws; None for every combination. A learning rate is drawn log-uniformly
            between the lowest and the highest of the list, to three digits; the others from their lists.

    Raises:
        UsageError: there is nothing to search, or fewer than two trials are asked for.
    """
    if trials is not None and trials < 2:
        raise UsageError(f"trials {trials}: a search needs at least 2")
    settings = list(recipe.grid()) if recipe.tune.enabled else [{"learning_rate": recipe.train.learning_rate}]
    grid = _distinct(_candidate(rank, setting) for rank in recipe.lora.ranks for setting in settings)
    if len(grid) < 2:
        raise UsageError(
            "there is nothing to search: every setting has one value",
            hint=f"list several, such as {option('ranks', (1, 4))}, "
            f"{option('learning_rates', (1e-3, 1e-2))} or "
            + either("--vary weight_decay=0,0.01", 'vary={"weight_decay": (0, 0.01)}'),
        )
    draw = random.Random(recipe.train.seeds[0])
    lists = {name: list(dict.fromkeys(setting[name] for setting in settings)) for name in settings[0]}
    if trials is None or len(lists["learning_rate"]) == 1:
        return sorted(grid, key=lambda _: draw.random())[:trials]
    draws = (_drawn(recipe.lora.ranks, lists, draw) for _ in range(MOST_DRAWS * trials))
    return list(islice(_distinct(draws), trials))


def _candidate(rank: int, setting: Mapping[str, Any]) -> Candidate:
    """The candidate with these settings, without those that mean nothing to a linear probe."""
    return Candidate(rank, {name: value for name, value in setting.items() if rank or name in OF_PROBE})


def _distinct(found: Iterable[Candidate]) -> list[Candidate]:
    return list({each.name: each for each in found}.values())


def _drawn(ranks: Sequence[int], lists: Mapping[str, Sequence[Any]], draw: random.Random) -> Candidate:
    """A random candidate; `random()` is the one method whose values no version of Python changes."""
    rank = ranks[int(draw.random() * len(ranks))]
    setting = {name: values[int(draw.random() * len(values))] for name, values in lists.items()}
    low, high = math.log(min(lists["learning_rate"])), math.log(max(lists["learning_rate"]))
    rate = math.exp(low + draw.random() * (high - low))
    return _candidate(rank, setting | {"learning_rate": float(f"{rate:.3g}")})


def searched(found: Sequence[Candidate]) -> list[str]:
    """Names of the settings that differ between candidates, `rank` first."""
    names = dict.fromkeys(name for each in found for name in each.values)
    return [name for name in names if len({str(each.values.get(name)) for each in found}) > 1]


def shares(recipe: Recipe, steps_per_epoch: int) -> list[float]:
    """The length of each rung's schedule as a share of the full one, the shortest first.

    A rung on which some candidate would train for fewer than `MIN_STEPS` steps is left out.

    Args:
        recipe: what to train.
        steps_per_epoch: number of steps per epoch.

    Raises:
        UsageError: the full schedule is too short for two rungs.
    """
    epochs = min(recipe.tune.vary.get("epochs", (recipe.train.epochs,)))
    steps = epochs * steps_per_epoch
    lengths = [float(FACTOR) ** (rung - RUNGS + 1) for rung in range(RUNGS)]
    found = [share for share in lengths if round(share * steps) >= MIN_STEPS]
    if len(found) < 2:
        enough = math.ceil(FACTOR * MIN_STEPS / steps_per_epoch)
        raise UsageError(
            f"{steps} steps are too few to search: trials are first compared after a third of the schedule, "
            f"and at least {MIN_STEPS} steps are needed for that",
            hint=f"set {option('epochs', enough)} or more, or a smaller {option('batch_size')}",
        )
    return found


def places(given: int | None, fitting: int) -> int:
    """Number of adapters that train at once.

    Args:
        given: the number asked for; None for the default.
        fitting: how many of the largest adapters fit in memory.

    Raises:
        UsageError: fewer than one is asked for.
    """
    if given is not None and given < 1:
        raise UsageError(f"places {given}: at least 1 adapter must train at a time")
    return given or min(fitting, MOST_PLACES)
