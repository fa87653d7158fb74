"""How often the verdict of `rankwise.stats` is right, by simulated sweeps whose truth is known.

    python -m bench.coverage --quick
    python -m bench.coverage --record docs/records/DATE-coverage.md

A simulated sweep is a table of right and wrong answers of every rank and seed on the same texts, by a
probit model: a text has a difficulty, which all ranks and seeds share; a rank finds some texts harder
than another rank does; a seed has luck, a part of which all ranks of the seed share; what is left is half
shared by the ranks of a seed, as they meet the same draws. Each rank's accuracy over all texts and all
seeds is known, and so is whether a claim is true. With one seed the truth is that of the adapters.

The grid is too large to visit, so settings are drawn from it, and those that FINDINGS named are always
in. A setting in which a claim is false in more than 5 % of sweeps is put to ten times as many new ones, and these
decide: the worst of many settings is above 5 % by chance alone.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from rankwise.stats.advice import Advice
from rankwise.stats.intervals import mean_accuracy_interval
from rankwise.stats.paired import pair_up
from rankwise.stats.verdict import LEVEL, Claims, decide, judge

Answers = NDArray[np.bool_]
Floats = NDArray[np.float64]

ITEMS = {"independent": (0.0, 0.0), "correlated": (2.0, 0.5), "nested": (30.0, 0.0)}
"""Standard deviations, that of what is left being 1: of a text's difficulty; of a rank's own part in it.

Nested: an adapter labels correctly all texts up to some difficulty, so that two adapters disagree one way only.
"""
TRUTHS: dict[str, Callable[[int], list[float]]] = {
    "equal": lambda ranks: [0.0] * ranks,
    "smallest at the edge": lambda ranks: [-1.0] + [0.0] * (ranks - 1),
    "all but the largest at the edge": lambda ranks: [-1.0] * (ranks - 1) + [0.0],
    "largest at the edge": lambda ranks: [0.0] * (ranks - 1) + [-1.0],
    "largest collapsed, smallest at the edge": lambda ranks: [-1.0] + [0.0] * (ranks - 2) + [-10.0],
    "two best, rest far below": lambda ranks: [-10.0] * (ranks - 2) + [0.0] * 2,
    "largest better by two margins": lambda ranks: [-2.0] * (ranks - 1) + [0.0],
}
"""Ranks, smallest first: their accuracy relative to the best, in margins."""
SPREADS: dict[str, Callable[[int, float], list[float]]] = {
    "equal": lambda ranks, spread: [spread] * ranks,
    "smallest unstable": lambda ranks, spread: [spread] + [0.0] * (ranks - 1),
    "largest unstable": lambda ranks, spread: [0.0] * (ranks - 1) + [spread],
}


@dataclass(frozen=True)
class Setting:
    """What a simulated sweep looks like."""

    ranks: int = 5
    seeds: int = 3
    texts: int = 500
    accuracy: float = 0.9  # of the best rank
    spread: float = 0.01  # standard deviation of a seed's accuracy, as a fraction
    unequal: str = "equal"  # a key of SPREADS
    items: str = "correlated"  # a key of ITEMS
    truth: str = "equal"  # a key of TRUTHS
    margin: float = 0.01
    shared_luck: float = 0.5  # part of the luck of a seed that all its ranks share

    @property
    def accuracies(self) -> list[float]:
        """True accuracy of each rank."""
        floor = 0.05
        return [max(floor, self.accuracy + self.margin * below) for below in TRUTHS[self.truth](self.ranks)]


@dataclass(frozen=True)
class Sweep:
    """A simulated sweep and its truth."""

    answers: list[Answers]
    baseline: Answers  # (texts,), as accurate as the best rank
    truth: Floats  # (ranks,)


def simulate(rng: np.random.Generator, at: Setting) -> Sweep:
    """A sweep of the setting."""
    difficulty, taste = ITEMS[at.items]
    variance = 1 + difficulty**2 + taste**2
    hard = _normal(rng, at.texts)
    luck, shared = _normal(rng, (at.seeds, 1)), _normal(rng, (at.seeds, at.texts))
    answers, truth = [], []
    for accuracy, spread in zip(at.accuracies, SPREADS[at.unequal](at.ranks, at.spread), strict=True):
        level, scale = _probit(accuracy, spread, variance)
        own = np.sqrt(at.shared_luck) * luck + np.sqrt(1 - at.shared_luck) * _normal(rng, (at.seeds, 1))
        rest = np.sqrt(0.5) * (shared + _normal(rng, (at.seeds, at.texts)))
        signal = level + scale * own + difficulty * hard + taste * _normal(rng, at.texts)
        answers.append(signal + rest > 0)
        adapter = float(ndtr((level + scale * own.mean()) / np.sqrt(variance)))
        truth.append(adapter if at.seeds == 1 else accuracy)
    level, _ = _probit(at.accuracy, 0.0, variance)
    baseline = level + difficulty * hard + taste * _normal(rng, at.texts) + _normal(rng, at.texts) > 0
    return Sweep(answers, baseline, np.array(truth))


def _normal(rng: np.random.Generator, shape: int | tuple[int, int]) -> NDArray[np.float32]:
    return rng.standard_normal(shape, dtype=np.float32)


def _probit(accuracy: float, spread: float, variance: float) -> tuple[float, float]:
    """Level and standard deviation over seeds, in probits, that have this accuracy and spread."""
    quantile = float(ndtri(accuracy))
    density = np.exp(-(quantile**2) / 2) / np.sqrt(2 * np.pi)
    scale = spread / density * np.sqrt(variance)
    return quantile * np.sqrt(variance + scale**2), scale


KINDS = ("best", "enough", "told apart", "beats baseline")


def false_claims(sweep: Sweep, margin: float) -> dict[str, bool]:
    """Which kinds of claim the verdict gets wrong; and whether any claim is made of the ranks."""
    truth, tables = sweep.truth, dict(enumerate((table.astype(float) for table in sweep.answers), 1))
    claims = decide(tables, margin)
    chosen = _chosen(claims, tables)
    return {
        "best": claims.best is not None and not _is_best(truth, claims.best - 1),
        "enough": claims.enough is not None and bool(truth[claims.enough - 1] <= truth.max() - margin + 1e-12),
        "told apart": _wrongly_apart(sweep),
        "beats baseline": _beats(sweep, chosen) and bool(truth[chosen - 1] <= sweep_baseline(sweep) + 1e-12),
    }


def sweep_baseline(sweep: Sweep) -> float:
    """True accuracy of the baseline."""
    return float(sweep.truth.max())


def _is_best(truth: Floats, place: int) -> bool:
    return bool(truth[place] > np.delete(truth, place).max() + 1e-12)


def _chosen(claims: Claims, tables: Mapping[int, Floats]) -> int:
    claimed = [rank for rank in (claims.best, claims.enough) if rank is not None]
    return min(claimed) if claimed else max(tables, key=lambda rank: (float(tables[rank].mean()), -rank))


def _wrongly_apart(sweep: Sweep) -> bool:
    pairs = pair_up([table.astype(float) for table in sweep.answers])
    one, other = np.triu_indices(len(sweep.answers), 1)
    apart = pairs.p() * len(one) < LEVEL
    gap = sweep.truth[one] - sweep.truth[other]
    return bool((apart & ((np.abs(gap) < 1e-12) | (np.sign(pairs.mean) != np.sign(gap)))).any())


def _beats(sweep: Sweep, rank: int) -> bool:
    table = sweep.answers[rank - 1].astype(float)
    pairs = pair_up([table, np.broadcast_to(sweep.baseline, table.shape).astype(float)])
    return bool(pairs.p()[0] * len(sweep.answers) < LEVEL and pairs.mean[0] > 0)


def rates(at: Setting, sweeps: int, seed: int = 1) -> dict[str, float]:
    """Percent of sweeps with a false claim, by kind."""
    rng = np.random.default_rng([seed, at.seeds, at.texts, at.ranks, round(1000 * at.accuracy)])
    counts = dict.fromkeys(KINDS, 0)
    for _ in range(sweeps):
        for kind, wrong in false_claims(simulate(rng, at), at.margin).items():
            counts[kind] += wrong
    return {kind: 100 * count / sweeps for kind, count in counts.items()}


def confirmed(at: Setting, sweeps: int, seed: int = 1) -> dict[str, float]:
    """The same, a setting with more than 5 % being put to ten times as many sweeps of its own."""
    found = rates(at, sweeps, seed)
    return found if max(found.values()) <= 100 * LEVEL else rates(at, 10 * sweeps, seed + 1000)


def coverage(at: Setting, sweeps: int, seed: int = 2) -> dict[str, float]:
    """Percent of sweeps whose intervals hold the truth: a rank's mean; all differences at once."""
    rng = np.random.default_rng([seed, at.seeds, at.texts, at.ranks, round(1000 * at.accuracy)])
    one, other = np.triu_indices(at.ranks, 1)
    held = {"mean": 0, "one difference": 0, "all differences": 0}
    for _ in range(sweeps):
        sweep = simulate(rng, at)
        low, high = mean_accuracy_interval(sweep.answers[0])
        pairs, gap = pair_up([table.astype(float) for table in sweep.answers]), sweep.truth[one] - sweep.truth[other]
        held["mean"] += bool(low <= sweep.truth[0] <= high)
        for name, tests in (("one difference", 1), ("all differences", len(one))):
            tail = LEVEL / 2 / tests
            missed = pairs.exceeds(gap, tail) | pairs.reversed().exceeds(-gap, tail)
            held[name] += not (missed[0] if tests == 1 else missed.any())
    return {name: 100 * count / sweeps for name, count in held.items()}


def power(at: Setting, sweeps: int, seed: int = 3) -> dict[str, float]:
    """Percent of sweeps that make a claim, by what it is."""
    rng = np.random.default_rng([seed, at.seeds, at.texts, at.ranks])
    counts = {"smallest that is enough": 0, "any enough": 0, "best": 0}
    for _ in range(sweeps):
        sweep = simulate(rng, at)
        claims = decide(dict(enumerate((table.astype(float) for table in sweep.answers), 1)), at.margin)
        within = [rank for rank, each in enumerate(sweep.truth, 1) if each > sweep.truth.max() - at.margin + 1e-12]
        counts["smallest that is enough"] += claims.enough == min(within)
        counts["any enough"] += claims.enough in within
        counts["best"] += claims.best is not None and _is_best(sweep.truth, claims.best - 1)
    return {name: 100 * count / sweeps for name, count in counts.items()}


def advice(at: Setting, sweeps: int, seed: int = 4) -> tuple[float, float, float, float, float]:
    """(percent open, of these percent with advice, percent of advice that settles it, median seeds, texts)."""
    rng = np.random.default_rng([seed, at.seeds, at.texts, at.ranks])
    given: list[Advice] = []
    still = 0
    for _ in range(sweeps):
        found = judge(dict(enumerate(simulate(rng, at).answers, 1)), at.margin).advice
        still += found is not None
        if found is not None and found.seeds and found.texts:
            given.append(found)
    settled = [_settles(rng, at, each) for each in given if _size(at, each) <= 3e7]
    sizes = [(each.seeds or 0, each.texts or 0) for each in given] or [(0, 0)]
    share = 100 * float(np.mean(settled)) if settled else float("nan")
    seeds, texts = np.median(np.array(sizes), axis=0)
    return 100 * still / sweeps, 100 * len(given) / max(1, still), share, float(seeds), float(texts)


def _size(at: Setting, advised: Advice) -> float:
    return at.ranks * (advised.seeds or 0) * (advised.texts or 0)


def _settles(rng: np.random.Generator, at: Setting, advised: Advice) -> bool:
    assert advised.seeds and advised.texts
    new = replace(at, seeds=advised.seeds, texts=advised.texts)
    return judge(dict(enumerate(simulate(rng, new).answers, 1)), at.margin).advice is None
