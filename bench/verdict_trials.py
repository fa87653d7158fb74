"""Other tests for the verdict with few seeds, tried on simulated means: their false claims and their power.

    python -m bench.verdict_trials --record FILE

A sweep is reduced to the mean of every rank and seed, which is normal: an effect of the seed, partly shared
by the ranks; chance, which is an adapter's luck with the validation texts and half shared by the ranks of a
seed; and what the texts do to a rank at every seed. The variances of the last two are known, as they nearly
are with many texts, so thousands of sweeps take a second. `bench.coverage` simulates every answer, and tests
the methods that are used.

Tests of two ranks: with the variance over seeds of their difference (`paired`, which is used); that variance
and that of the texts with Satterthwaite's degrees of freedom; the two ranks' own variances over seeds with
Welch's degrees of freedom, if the luck of a seed is nowhere opposite (`welch`); and the same with variances
moderated by empirical Bayes (Smyth 2004), where an outlier keeps its own (after Phipson et al. 2016) or not.

Tests of the rank to use and baselines without seeds: adjusted for all ranks and baselines; for the baselines;
for these and a factor of two; and as is used, with the seed part adjusted for the factor only.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, ndtri, polygamma, stdtrit
from scipy.stats import f

from bench import common
from rankwise.stats.verdict import CHOICE, CLOSE, LEVEL, PASSED_OVER

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
HalfWidth = Callable[[float], Floats]
"""One-sided level -> (sweeps, pairs)."""

UNSTABLE = {
    "none": (0, 1.0),
    "smallest, 3 times": (0, 3.0),
    "smallest, 5 times": (0, 5.0),
    "largest, 5 times": (-1, 5.0),
}
TRIGAMMA = np.geomspace(1e-3, 1e3, 20_000)


@dataclass(frozen=True)
class Setting:
    """Standard deviations are in units of that of chance in one adapter's mean."""

    ranks: int
    seeds: int
    unstable: str  # a key of UNSTABLE
    spread: float  # over seeds
    by_text: float  # variance of what the texts do to a rank, times the number of seeds
    shared: float  # fraction of the seed effect that is shared by the ranks

    @property
    def spreads(self) -> Floats:
        """(ranks,)."""
        place, times = UNSTABLE[self.unstable]
        found = np.full(self.ranks, self.spread if times == 1 else max(0.3, self.spread))
        found[place] *= times
        return found

    @property
    def error(self) -> float:
        """Standard error of a mean, for the sizes of differences and margins."""
        return float(np.sqrt((self.spread**2 + 1 + self.by_text) / self.seeds))


@dataclass(frozen=True)
class Sweeps:
    """Simulated sweeps of a setting."""

    at: Setting
    truth: Floats  # (ranks,)
    adapters: Floats  # (sweeps, ranks, seeds)

    @property
    def means(self) -> Floats:
        """(sweeps, ranks)."""
        return np.asarray(self.adapters.mean(axis=2))

    @property
    def gaps(self) -> Floats:
        """(sweeps, pairs)."""
        one, other = np.triu_indices(self.at.ranks, 1)
        return self.means[:, one] - self.means[:, other]


def simulate(rng: np.random.Generator, at: Setting, truth: Floats, sweeps: int) -> Sweeps:
    """Simulate sweeps with these true means."""
    shape = sweeps, at.ranks, at.seeds
    of_seed, chance = rng.standard_normal((2, sweeps, 1, at.seeds))
    own, own_chance = rng.standard_normal((2, *shape))
    luck = np.sqrt(at.shared) * of_seed + np.sqrt(1 - at.shared) * own
    texts = np.sqrt(at.by_text / at.seeds) * rng.standard_normal((sweeps, at.ranks, 1))
    noise = (chance + own_chance) / np.sqrt(2)
    return Sweeps(at, truth, truth[:, None] + at.spreads[:, None] * luck + noise + texts)


def methods(found: Sweeps) -> dict[str, HalfWidth]:
    """The tests of pairs of ranks."""
    at, freedom = found.at, found.at.seeds - 1
    one, other = np.triu_indices(at.ranks, 1)
    by_text, chance = 2 * at.by_text / at.seeds, 1 / at.seeds
    paired = (found.adapters[:, one] - found.adapters[:, other]).var(axis=2, ddof=1) / at.seeds
    own = found.adapters.var(axis=2, ddof=1) / at.seeds

    def bound(variance: Floats, freedom: Floats | int) -> HalfWidth:
        return lambda tail: np.sqrt(stdtrit(freedom, tail) ** 2 * variance + ndtri(tail) ** 2 * by_text)

    def welch(own: Floats, freedom: Floats | int) -> HalfWidth:
        total = own[:, one] + own[:, other]
        each = np.broadcast_to(freedom, own.shape)
        joint = total**2 / (own[:, one] ** 2 / each[:, one] + own[:, other] ** 2 / each[:, other])
        # The ranks share half of the chance, which is known; what is left is at least the other half.
        return bound(np.maximum(total - chance, chance), joint)

    whole = paired + by_text
    all_freedom = np.minimum(1e6, freedom * whole**2 / paired**2)
    return {
        "paired": bound(paired, freedom),
        "Satterthwaite": lambda tail: -stdtrit(all_freedom, tail) * np.sqrt(whole),
        "Welch": welch(own, freedom),
        "moderated": welch(*moderated(own, freedom)),
        "moderated, robust": welch(*moderated(own, freedom, robust=True)),
    }


def moderated(own: Floats, freedom: int, robust: bool = False) -> tuple[Floats, Floats]:
    """Posterior variances and degrees of freedom, by moments of the log variances (Smyth 2004).

    Args:
        own: (sweeps, ranks) variances.
        freedom: their degrees of freedom.
        robust: fit the prior without the largest variance, and leave outliers alone.
    """
    fitted = np.sort(own, axis=1)[:, :-1] if robust and own.shape[1] > 2 else own
    logs = np.log(np.maximum(fitted, 1e-12)) - digamma(freedom / 2) + np.log(freedom / 2)
    excess = logs.var(axis=1, ddof=1) - polygamma(1, freedom / 2)
    half = np.interp(-np.maximum(excess, 1e-6), -polygamma(1, TRIGAMMA), TRIGAMMA)
    prior = np.where(excess > 0, np.minimum(2 * half, 1e6), 1e6)[:, None]
    center = np.exp(logs.mean(axis=1, keepdims=True) + digamma(prior / 2) - np.log(prior / 2))
    # The ranks' variances have so many degrees of freedom at most.
    joint = np.broadcast_to(np.minimum(prior + freedom, own.shape[1] * freedom), own.shape)
    posterior = (prior * center + freedom * own) / (prior + freedom)
    if not robust:
        return posterior, joint
    outlying = f.sf(own / center, freedom, prior) < 0.2
    return np.where(outlying, own, posterior), np.where(outlying, freedom, joint)


def _table(at: Setting, values: Floats, sign: int = 1) -> Floats:
    """(sweeps, ranks, ranks) of values of pairs; `sign` -1 for differences, which turn round."""
    one, other = np.triu_indices(at.ranks, 1)
    table = np.zeros((len(values), at.ranks, at.ranks))
    table[:, one, other], table[:, other, one] = values, sign * values
    return table


@dataclass(frozen=True)
class Claims:
    """The claims of sweeps, by the rules of `stats.verdict`; a place of `ranks` means none is claimed."""

    apart: Bools  # (sweeps, pairs)
    best: NDArray[np.intp]
    enough: NDArray[np.intp]


def decide(found: Sweeps, half: HalfWidth, margin: float) -> Claims:
    """Test the pairs of ranks."""
    at, ranks = found.at, found.at.ranks
    gaps, own = _table(at, found.gaps, -1), np.eye(ranks, dtype=bool)
    better = np.all((gaps > _table(at, half(LEVEL / 2))) | own, axis=2)
    close = np.all((gaps + margin > _table(at, half(CLOSE))) | own, axis=2)
    bad = np.any((-gaps - margin > _table(at, half(PASSED_OVER / (ranks - 1)))) & ~own, axis=2)
    enough, going = np.full(len(gaps), ranks), np.ones(len(gaps), dtype=bool)
    for place in reversed(range(ranks)):
        enough[going & close[:, place]] = place
        going &= close[:, place] | bad[:, place]
    best = np.where(better.any(axis=1), better.argmax(axis=1), ranks)
    apart = np.abs(found.gaps) > half(LEVEL / 2 / found.gaps.shape[1])
    return Claims(apart, best, enough)


def chosen(found: Sweeps, claims: Claims) -> NDArray[np.intp]:
    """(sweeps,): the rank to use, by the rule of `Verdict.chosen`."""
    apart = _table(found.at, claims.apart.astype(float)) > 0
    leader = found.means.argmax(axis=1)
    smallest = (~apart[np.arange(len(leader)), leader]).argmax(axis=1)
    recommended = np.minimum(claims.best, claims.enough)
    return np.where(recommended < found.at.ranks, recommended, smallest)


def _rates(found: Sweeps, claims: Claims, margin: float) -> tuple[Floats, Floats]:
    """Percent of false and of true claims: told apart, best, enough; nan if no true claim is possible."""
    truth, ranks = found.truth, found.at.ranks
    one, other = np.triu_indices(ranks, 1)
    gap = truth[one] - truth[other]
    real = (np.sign(found.gaps) == np.sign(gap)) & (gap != 0)
    is_best = np.array(
        [*(place == truth.argmax() and (truth == truth.max()).sum() == 1 for place in range(ranks)), 0]
    )
    is_enough = np.array([*(truth > truth.max() - margin + 1e-12), 0])
    no_best, no_enough = claims.best == ranks, claims.enough == ranks
    false = [
        (claims.apart & ~real).any(axis=1),
        ~no_best & (is_best[claims.best] == 0),
        ~no_enough & (is_enough[claims.enough] == 0),
    ]
    true = [(claims.apart & real).any(axis=1), is_best[claims.best] > 0, is_enough[claims.enough] > 0]
    power = [100 * each.mean() for each in true]
    possible = [(gap != 0).any(), is_best.any(), True]
    return 100 * np.mean(false, axis=1), np.where(possible, power, np.nan)


def _settings(seeds: int, ranks: int, unstable: str) -> Iterator[Setting]:
    for spread, by_text, shared in product((0.0, 0.5, 2.0), (0.0, 1.0), (0.0, 0.5)):
        yield Setting(ranks, seeds, unstable, spread, by_text, shared)


def pairs(sweeps: int) -> Iterator[list[str]]:
    """Rows of the tests of pairs: the highest rates of false claims, and the mean power."""
    for seeds, ranks, unstable in product((3,), (2, 5), UNSTABLE):
        rng = np.random.default_rng([1, seeds, ranks, list(UNSTABLE).index(unstable)])
        false: dict[str, list[Floats]] = {}
        power: dict[str, list[Floats]] = {}
        for at in _settings(seeds, ranks, unstable):
            margin = 3 * at.error
            for last, first in ((0.0, 0.0), (0.0, -margin), (2 * margin, 0.0)):
                truth = np.array([first, *[0.0] * (ranks - 2), last])
                found = simulate(rng, at, truth, sweeps)
                for name, half in methods(found).items():
                    wrong, right = _rates(found, decide(found, half, margin), margin)
                    false.setdefault(name, []).append(wrong)
                    power.setdefault(name, []).append(right)
        for name in false:
            worst, mean = np.max(false[name], axis=0), np.nanmean(power[name], axis=0)
            numbers = [f"{each:.1f}" for each in worst] + [f"{each:.0f}" for each in mean]
            yield [str(seeds), str(ranks), unstable, name, *numbers]


def baselines(sweeps: int) -> Iterator[list[str]]:
    """Rows of the tests of the rank to use against baselines: the highest rates of false claims."""
    for seeds, number in product((2, 3, 5, 10), (1, 2, 5)):
        rng, worst = np.random.default_rng([2, seeds, number]), np.zeros(4)
        places = product((2, 3, 5, 8), ("none", "smallest, 5 times", "largest, 5 times"))
        for (ranks, unstable), by_text, shared in product(places, (0.1, 1.0, 30.0), (0.0, 0.5)):
            for spread, stair, margins in product((0.5, 2.0), (0.0, 0.3), (1, 4)):
                at = Setting(ranks, seeds, unstable, spread, by_text, shared)
                truth = np.arange(ranks, dtype=np.float64) * (at.error * stair)
                found = simulate(rng, at, truth, sweeps)
                worst = np.maximum(worst, _against(rng, found, number, margins * at.error))
        yield [str(seeds), str(number), *(f"{each:.1f}" for each in worst)]


def _against(rng: np.random.Generator, found: Sweeps, number: int, margin: float) -> Floats:
    """Percent of sweeps in which the rank to use is wrongly called better or worse than a baseline."""
    at, sweeps = found.at, len(found.adapters)
    place = chosen(found, decide(found, methods(found)["paired"], margin))
    level = found.truth[at.ranks // 2]
    texts = at.by_text / at.seeds
    measured = level + np.sqrt(texts) * rng.standard_normal((sweeps, number))
    own = found.adapters[np.arange(sweeps), place]
    gap, real = own.mean(axis=1, keepdims=True) - measured, found.truth[place][:, None] - level
    variance = own.var(axis=1, ddof=1, keepdims=True) / at.seeds
    rates = []
    for seed_tests, text_tests in (
        (at.ranks * number, at.ranks * number),
        (number, number),
        (CHOICE * number, CHOICE * number),
        (CHOICE, CHOICE * number),
    ):
        of_text = ndtri(LEVEL / 2 / text_tests) ** 2
        of_seed = np.maximum(stdtrit(at.seeds - 1, LEVEL / 2 / seed_tests) ** 2, of_text)
        apart = np.abs(gap) > np.sqrt(of_seed * variance + of_text * 2 * texts)
        wrong = apart & ((np.abs(real) < 1e-12) | (np.sign(gap) != np.sign(real)))
        rates.append(100 * wrong.any(axis=1).mean())
    return np.array(rates)


def main() -> None:
    """Print the tables, and write a record if requested."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sweeps", type=int, default=2000)
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    of_pairs = (
        "seeds",
        "ranks",
        "unstable",
        "test",
        "wrongly apart",
        "wrong best",
        "wrong enough",
        "apart",
        "best",
        "enough",
    )
    of_baselines = (
        "seeds",
        "baselines",
        "ranks times baselines",
        "baselines alone",
        "twice the baselines",
        "used",
    )
    body = "\n".join(
        [
            "Percent of sweeps: the highest rates of false claims of 36 settings, and the mean power.\n",
            common.table(of_pairs, list(pairs(options.sweeps))),
            "\nThe rank to use against baselines: the highest rates of false claims of 576 settings, "
            "adjusted for:\n",
            common.table(of_baselines, list(baselines(options.sweeps))),
        ]
    )
    print(body)
    if options.record:
        command = f"python -m bench.verdict_trials --sweeps {options.sweeps}"
        notes = {"work": "sweeps simulated by their means; the script's docstring has the model"}
        common.write_record(
            "Other tests for the verdict with few seeds", command, notes, body, options.record
        )


if __name__ == "__main__":
    main()
