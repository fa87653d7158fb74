"""Error rates and coverage of the verdict of `rankwise.stats`, from simulated sweeps with known truth.

    python -m bench.coverage --quick
    python -m bench.coverage --record docs/records/DATE-coverage.md

A simulated sweep is a table of right and wrong answers of every rank and seed on the same texts, from a
probit model with these effects: the difficulty of a text, shared by all ranks and seeds; an interaction of
rank and text; a seed effect, partly shared by all ranks of the seed; and a residual, half of which is shared
by the ranks of a seed, because they see the same random draws. The accuracy of each rank over all texts and
seeds is known, and so is whether a claim is true. With one seed, the truth refers to the adapters. Two
baselines are as accurate as the best rank, or as the smallest; one may have seeds of its own, as a linear
probe has.

The grid is too large to enumerate, so settings are sampled from it; some hard ones are always included. A
setting in which a claim is false in more than 5 % of sweeps is simulated again with ten times as many
sweeps, and only these count, because the worst of many settings exceeds 5 % by chance.

The spread over seeds is at most a third of the error rate. If it is half, the distribution over seeds of
accuracies near 1 is so skewed that no test with few seeds is exact; the last table shows such settings.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import scipy
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from rankwise.stats.advice import Advice
from rankwise.stats.intervals import mean_accuracy_interval
from rankwise.stats.paired import Paired, pair_up
from rankwise.stats.verdict import LEVEL, Claims, decide, judge, pair_with_baselines

Answers = NDArray[np.bool_]
Floats = NDArray[np.float64]

ITEMS = {"independent": (0.0, 0.0), "correlated": (2.0, 0.5), "nested": (30.0, 0.0)}
"""Standard deviations relative to the residual: of text difficulty, and of its interaction with the rank.

Nested: an adapter labels all texts up to some difficulty correctly, so adapters only disagree one way.
"""
TRUTHS: dict[str, Callable[[int], list[float]]] = {
    "equal": lambda ranks: [0.0] * ranks,
    "smallest at the edge": lambda ranks: [-1.0] + [0.0] * (ranks - 1),
    "all but the largest at the edge": lambda ranks: [-1.0] * (ranks - 1) + [0.0],
    "largest at the edge": lambda ranks: [0.0] * (ranks - 1) + [-1.0],
    "largest collapsed, smallest at the edge": lambda ranks: [-1.0] + [0.0] * (ranks - 2) + [-10.0],
    "two best, rest far below": lambda ranks: [-10.0] * (ranks - 2) + [0.0] * 2,
    "smallest worse by two margins": lambda ranks: [-2.0] + [0.0] * (ranks - 1),
    "largest better by two margins": lambda ranks: [-2.0] * (ranks - 1) + [0.0],
}
"""Accuracy of each rank, smallest first, relative to the best, in units of the margin."""
SPREADS: dict[str, Callable[[int, float], list[float]]] = {
    "equal": lambda ranks, spread: [spread] * ranks,
    "smallest unstable": lambda ranks, spread: [spread] + [0.0] * (ranks - 1),
    "largest unstable": lambda ranks, spread: [0.0] * (ranks - 1) + [spread],
}


@dataclass(frozen=True)
class Setting:
    """The parameters of a simulated sweep."""

    ranks: int = 5
    seeds: int = 3
    texts: int = 500
    accuracy: float = 0.9  # of the best rank
    spread: float = 0.01  # standard deviation of a seed's accuracy, as a fraction
    unequal: str = "equal"  # a key of SPREADS
    items: str = "correlated"  # a key of ITEMS
    truth: str = "equal"  # a key of TRUTHS
    margin: float = 0.01
    shared_luck: float = 0.5  # fraction of the seed effect shared by all ranks
    against: str = "best"  # the rank whose accuracy the baselines have: the best or the smallest
    below: float = 0.0  # accuracy of that rank minus that of the baselines
    probe: bool = False  # whether one of the baselines has seeds, with the same spread

    @property
    def accuracies(self) -> list[float]:
        """True accuracy of each rank."""
        floor = 0.05
        return [max(floor, self.accuracy + self.margin * below) for below in TRUTHS[self.truth](self.ranks)]

    @property
    def baseline(self) -> float:
        """True accuracy of the baselines."""
        return (self.accuracies[0] if self.against == "smallest" else max(self.accuracies)) - self.below


@dataclass(frozen=True)
class Sweep:
    """A simulated sweep and the truth."""

    answers: list[Answers]
    baselines: list[Answers]  # (texts,), or (seeds, texts) for a probe
    truth: Floats  # (ranks,)
    baseline_truth: float


def simulate(rng: np.random.Generator, at: Setting) -> Sweep:
    """Simulate a sweep of the setting."""
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
    baselines = []
    for is_probe in (False, at.probe):
        level, scale = _probit(at.baseline, at.spread * is_probe, variance)
        rest = _normal(rng, (at.seeds, at.texts)) if is_probe else _normal(rng, at.texts)
        own = _normal(rng, (at.seeds, 1)) if is_probe else 0.0
        signal = level + scale * own + difficulty * hard + taste * _normal(rng, at.texts)
        baselines.append(signal + rest > 0)
    return Sweep(answers, baselines, np.array(truth), at.baseline)


def _normal(rng: np.random.Generator, shape: int | tuple[int, int]) -> NDArray[np.float32]:
    return rng.standard_normal(shape, dtype=np.float32)


def _probit(accuracy: float, spread: float, variance: float) -> tuple[float, float]:
    """Mean and standard deviation over seeds, in probits, for a given accuracy and spread."""
    quantile = float(ndtri(accuracy))
    density = np.exp(-(quantile**2) / 2) / np.sqrt(2 * np.pi)
    scale = spread / density * np.sqrt(variance)
    return quantile * np.sqrt(variance + scale**2), scale


KINDS = ("best", "enough", "told apart", "beats baseline")
INTERVALS = ("mean", "one difference", "all differences")


def false_claims(sweep: Sweep, margin: float) -> list[bool]:
    """For each kind of claim, whether the verdict makes a false one."""
    truth, tables = sweep.truth, dict(enumerate((table.astype(float) for table in sweep.answers), 1))
    claims = decide(tables, margin)
    enough = claims.enough is not None and truth[claims.enough - 1] <= truth.max() - margin + 1e-12
    return [
        claims.best is not None and not _is_best(truth, claims.best - 1),
        bool(enough),
        _wrongly_apart(sweep),
        _wrongly_against(sweep, claims),
    ]


def _is_best(truth: Floats, place: int) -> bool:
    return bool(truth[place] > np.delete(truth, place).max() + 1e-12)


def _chosen(sweep: Sweep, claims: Claims) -> int:
    """The rank to use, by the rule of `Verdict.chosen`."""
    if claims.recommended is not None:
        return claims.recommended
    means = [round(float(table.mean()), 12) for table in sweep.answers]
    leader, ranks = int(np.argmax(means)), len(means)
    pairs, _ = _pairs(sweep)
    apart = np.zeros((ranks, ranks), dtype=bool)
    apart[np.triu_indices(ranks, 1)] = pairs.p() * len(pairs.mean) < LEVEL
    return int(np.argmin((apart | apart.T)[leader])) + 1


def _pairs(sweep: Sweep) -> tuple[Paired, Floats]:
    """The pairs of ranks, and their true differences."""
    one, other = np.triu_indices(len(sweep.answers), 1)
    return pair_up([table.astype(float) for table in sweep.answers]), sweep.truth[one] - sweep.truth[other]


def _wrongly_apart(sweep: Sweep) -> bool:
    pairs, gap = _pairs(sweep)
    apart = pairs.p() * len(gap) < LEVEL
    return bool((apart & ((np.abs(gap) < 1e-12) | (np.sign(pairs.mean) != np.sign(gap)))).any())


def _against(sweep: Sweep, rank: int) -> tuple[Paired, NDArray[np.bool_]]:
    """A rank minus each baseline, and whether these differences are significant."""
    table = sweep.answers[rank - 1].astype(float)
    pairs, tests = pair_with_baselines(table, sweep.baselines, is_chosen=len(sweep.answers) > 1)
    return pairs, tests * pairs.p() < LEVEL


def _wrongly_against(sweep: Sweep, claims: Claims) -> bool:
    """Whether the rank to use is wrongly called better or worse than a baseline."""
    chosen = _chosen(sweep, claims)
    pairs, apart = _against(sweep, chosen)
    gap = sweep.truth[chosen - 1] - sweep.baseline_truth
    return bool((apart & ((abs(gap) < 1e-12) | (np.sign(pairs.mean) != np.sign(gap)))).any())


def held(sweep: Sweep) -> list[bool]:
    """For each kind of interval, whether it covers the truth: of a mean; of one and of all differences."""
    low, high = mean_accuracy_interval(sweep.answers[0])
    pairs, gap = _pairs(sweep)
    tails = LEVEL / 2, LEVEL / 2 / len(gap)
    one, every = (pairs.exceeds(gap, tail) | pairs.reversed().exceeds(-gap, tail) for tail in tails)
    return [bool(low <= sweep.truth[0] <= high), not one[0], not every.any()]


def measure(at: Setting, sweeps: int, seed: int = 1) -> dict[str, float]:
    """Percent of sweeps with a false claim of each kind, and with intervals that cover the truth."""
    rng = np.random.default_rng([seed, at.seeds, at.texts, at.ranks, round(1000 * at.accuracy)])
    counts = np.zeros(len(KINDS) + len(INTERVALS))
    for _ in range(sweeps):
        sweep = simulate(rng, at)
        counts += [*false_claims(sweep, at.margin), *held(sweep)]
    return dict(zip((*KINDS, *INTERVALS), (100 * counts / sweeps).tolist(), strict=True))


def worst(found: Mapping[str, float]) -> float:
    """The highest rate of false claims."""
    return max(found[kind] for kind in KINDS)


def confirmed(at: Setting, sweeps: int, seed: int = 1) -> dict[str, float]:
    """The same, repeating settings with more than 5 % with ten times as many new sweeps."""
    found = measure(at, sweeps, seed)
    return found if worst(found) <= 100 * LEVEL else measure(at, 10 * sweeps, seed + 1000)


def power(at: Setting, sweeps: int, seed: int = 3) -> dict[str, float]:
    """Percent of sweeps with a claim, by kind."""
    rng = np.random.default_rng([seed, at.seeds, at.texts, at.ranks])
    counts = {"smallest that is enough": 0, "any enough": 0, "best": 0}
    for _ in range(sweeps):
        sweep = simulate(rng, at)
        claims = decide(dict(enumerate((table.astype(float) for table in sweep.answers), 1)), at.margin)
        within = [
            rank for rank, each in enumerate(sweep.truth, 1) if each > sweep.truth.max() - at.margin + 1e-12
        ]
        counts["smallest that is enough"] += claims.enough == min(within)
        counts["any enough"] += claims.enough in within
        counts["best"] += claims.best is not None and _is_best(sweep.truth, claims.best - 1)
    return {name: 100 * count / sweeps for name, count in counts.items()}


def beaten(at: Setting, sweeps: int, seed: int = 5) -> tuple[float, float]:
    """Percent of (sweep, baseline) in which the rank to use beats the baseline.

    The second number is for comparison: the same, with p multiplied by the numbers of ranks and baselines.
    """
    rng = np.random.default_rng([seed, at.seeds, at.texts, at.ranks])
    counts = np.zeros(2)
    for _ in range(sweeps):
        sweep = simulate(rng, at)
        claims = decide(dict(enumerate((table.astype(float) for table in sweep.answers), 1)), at.margin)
        pairs, apart = _against(sweep, _chosen(sweep, claims))
        tests = at.ranks * len(sweep.baselines)
        all_adjusted = tests * pairs.at_text_level(1.0).p() < LEVEL
        better = pairs.mean > 0
        counts += (apart & better).mean(), (all_adjusted & better).mean()
    one, other = 100 * counts / sweeps
    return float(one), float(other)


def advice(at: Setting, sweeps: int, seed: int = 4) -> tuple[float, float, float, float, float]:
    """Percent undecided; of these, with advice; of these, settled by it; median seeds and texts advised."""
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


def drawn(rng: np.random.Generator, number: int) -> Iterator[Setting]:
    """Settings sampled from the grid."""
    for place in range(number):
        seeds, texts = rng.choice([1, 2, 3, 5, 10]), rng.choice([30, 150, 500, 2000, 10_000])
        accuracy = rng.choice([0.6, 0.9, 0.97, 0.99])
        spread = rng.choice([0.0, 0.003, 0.01, 0.02])
        # Near the point where a rank at the margin risks being called enough.
        margin = rng.choice([1.0, 2.0, 4.0]) * np.sqrt(0.3 * accuracy * (1 - accuracy) / texts)
        yield Setting(
            ranks=int(rng.choice([2, 3, 5, 8])),
            seeds=int(seeds),
            texts=int(texts),
            accuracy=float(accuracy),
            spread=float(min(spread, (1 - accuracy) / 3)),
            unequal=str(rng.choice(list(SPREADS))),
            items=str(rng.choice(list(ITEMS))),
            truth=str(rng.choice(list(TRUTHS))),
            margin=float(np.clip(round(margin, 4), 0.001, 0.05)),
            against="smallest" if place % 4 > 1 else "best",
            probe=bool(seeds > 1 and place % 2),
        )


def hard() -> Iterator[Setting]:
    """Settings with a high risk of false claims."""
    for ranks, seeds in ((2, 2), (2, 3), (3, 2), (8, 5)):
        unstable = Setting(ranks, seeds, 10_000, 0.9, 0.02, "smallest unstable")
        yield replace(unstable, truth="smallest at the edge")
        yield replace(unstable, truth="equal", unequal="largest unstable")
        yield replace(unstable, truth="equal", unequal="largest unstable", probe=True)
    for seeds, texts in ((1, 150), (1, 2000), (3, 500), (3, 2000)):
        edge = Setting(2, seeds, texts, 0.97, 0.0, truth="smallest at the edge", margin=0.02)
        yield from (replace(edge, items=items) for items in ITEMS)
    for ranks, seeds, texts in ((5, 1, 30), (5, 1, 2000), (5, 3, 300), (2, 5, 2000), (8, 3, 2000)):
        yield Setting(ranks, seeds, texts, 0.9, 0.01 * (seeds > 1), truth="equal")
    yield Setting(2, 1, 10_000, 0.9, 0.01, truth="smallest worse by two margins")
    yield Setting(5, 1, 2000, 0.9, 0.0, truth="two best, rest far below")
    yield Setting(5, 5, 10_000, 0.9, 0.002, truth="all but the largest at the edge")
    yield Setting(5, 5, 10_000, 0.9, 0.002, truth="largest collapsed, smallest at the edge")


def same_rank() -> Iterator[Setting]:
    """One rank entered as five ranks with separate seeds."""
    for seeds, texts in ((1, 500), (2, 500), (3, 500), (3, 2000), (5, 2000), (10, 2000)):
        yield Setting(5, seeds, texts, 0.9, 0.01 * (seeds > 1), shared_luck=0.0)


def powers() -> Iterator[Setting]:
    """Settings in which a claim is true."""
    for truth in ("equal", "smallest worse by two margins", "largest better by two margins"):
        for ranks, seeds, texts, spread, margin in (
            (2, 3, 2000, 0.003, 0.01),
            (5, 1, 2000, 0.0, 0.01),
            (5, 2, 2000, 0.003, 0.01),
            (5, 3, 2000, 0.003, 0.01),
            (5, 5, 2000, 0.003, 0.01),
            (5, 10, 2000, 0.003, 0.01),
            (5, 3, 10_000, 0.003, 0.01),
            (5, 5, 2000, 0.003, 0.02),
        ):
            yield Setting(ranks, seeds, texts, 0.93, spread, truth=truth, margin=margin)


def against_baselines() -> Iterator[Setting]:
    """Settings in which every rank is better than the baselines."""
    for seeds, below in product((1, 2, 3, 5, 10), (0.02, 0.05, 0.08)):
        yield Setting(5, seeds, 2000, 0.82, 0.01 * (seeds > 1), below=below)
    for seeds, below in product((3, 5), (0.02, 0.05, 0.08)):
        yield Setting(5, seeds, 2000, 0.82, 0.01, below=below, probe=True)


def advised() -> Iterator[Setting]:
    """Settings that mostly end undecided although a claim is true."""
    for ranks, seeds, texts, spread, margin in (
        (2, 1, 500, 0.0, 0.02),
        (5, 1, 1000, 0.0, 0.02),
        (2, 2, 500, 0.003, 0.02),
        (3, 2, 1000, 0.003, 0.02),
        (2, 3, 2000, 0.0, 0.01),
        (5, 3, 2000, 0.003, 0.01),
        (3, 5, 1000, 0.005, 0.01),
    ):
        yield Setting(ranks, seeds, texts, 0.93, spread, margin=margin)
    yield Setting(5, 3, 2000, 0.93, 0.003, truth="smallest worse by two margins", margin=0.01)
    yield Setting(5, 3, 2000, 0.93, 0.01, "smallest unstable", margin=0.01)


@dataclass(frozen=True)
class Effort:
    """The amount of simulation."""

    settings: int
    sweeps: int
    advice: int  # sweeps in which the advice is followed


QUICK, FULL = Effort(20, 100, 40), Effort(120, 500, 150)


def tables(effort: Effort) -> Iterator[str]:
    """Yield the lines of the record as they are computed."""
    grid = [*hard(), *drawn(np.random.default_rng(0), effort.settings)]
    found = [(at, confirmed(at, effort.sweeps)) for at in grid]
    yield from _false_table(found)
    yield from _coverage_table(found)
    yield "\n## One rank entered five times\n\nPercent of sweeps in which no two are told apart.\n\n"
    yield _head("seeds", "texts", "cannot be told apart")
    for at in same_rank():
        yield _line(at.seeds, f"{at.texts:,}", f"{100 - confirmed(at, effort.sweeps)['told apart']:.1f}")
    yield "\n## Power\n\nPercent of sweeps that make a true claim. Accuracy 0.93, correlated texts.\n\n"
    yield _head("truth", *SIZES, "smallest enough found", "some rank enough", "best found")
    for at in powers():
        yield _line(at.truth, *_sizes(at), *(f"{each:.0f}" for each in power(at, effort.sweeps).values()))
    yield from _baseline_table(effort)
    yield "\n## Advice\n\nSweeps that end undecided, and new sweeps of the sizes advised, in percent.\n\n"
    yield _head("truth", *SIZES, "open", "given advice", "settled by it", "median seeds", "median texts")
    for at in advised():
        still, given, settled, seeds, texts = advice(at, effort.advice)
        yield _line(
            at.truth, *_sizes(at), *(f"{x:.0f}" for x in (still, given, settled, seeds)), f"{texts:,.0f}"
        )

    yield "\n## Skewed spreads\n\nFalse claims where the spread over seeds is half the error rate.\n\n"
    yield _head("truth", *SIZES, *KINDS)
    for at in skewed():
        rates = measure(at, 4 * effort.sweeps)
        yield _line(at.truth, *_sizes(at), *(f"{rates[kind]:.1f}" for kind in KINDS))


def _baseline_table(effort: Effort) -> Iterator[str]:
    """Power against baselines, and what it would be if all ranks and baselines were adjusted for."""
    yield "\n## Power against baselines\n\nPercent of comparisons in which the rank to use beats a baseline. "
    yield "Five equal ranks with an accuracy of 0.82, 2,000 correlated texts, two baselines. Last column: "
    yield "if p were multiplied by the number of ranks and that of baselines.\n\n"
    yield _head(
        "seeds",
        "spread, points",
        "with a probe of several seeds",
        "better by, points",
        "beaten",
        "adjusted for all",
    )
    for at in against_baselines():
        sizes = (at.seeds, f"{100 * at.spread:.3g}", "yes" if at.probe else "no", f"{100 * at.below:.3g}")
        yield _line(*sizes, *(f"{each:.0f}" for each in beaten(at, effort.sweeps)))


def skewed() -> Iterator[Setting]:
    """Settings with a spread over seeds of half the error rate."""
    for seeds, unequal in ((3, "smallest unstable"), (5, "smallest unstable"), (10, "equal")):
        at = Setting(2, seeds, 10_000, 0.97, 0.015, unequal, shared_luck=0.0)
        yield replace(at, truth="equal" if unequal == "equal" else "smallest at the edge")


SIZES = ("ranks", "seeds", "texts", "spread, points", "unstable", "margin, points")


def _sizes(at: Setting) -> tuple[str, ...]:
    unstable = at.unequal.removesuffix(" unstable") if at.spread and at.unequal != "equal" else ""
    spread, margin = f"{100 * at.spread:.3g}", f"{100 * at.margin:.3g}"
    return f"{at.ranks}", f"{at.seeds}", f"{at.texts:,}", spread, unstable, margin


def _false_table(found: list[tuple[Setting, dict[str, float]]]) -> Iterator[str]:
    """The worst settings of each kind of claim, and the worst rates for each truth."""
    over = [(at, rates) for at, rates in found if worst(rates) > 100 * LEVEL]
    yield f"\n## False claims\n\n{len(found)} settings, of which {len(over)} are above 5 % (below). "
    yield "Percent of sweeps, the worst and the mean of the settings of each truth.\n\n"
    yield _head("truth", "settings", *KINDS)
    for truth in TRUTHS:
        these = [rates for at, rates in found if at.truth == truth]
        if these:
            columns = [np.array([rates[kind] for rates in these]) for kind in KINDS]
            yield _line(truth, len(these), *(f"{x.max():.1f} ({x.mean():.1f})" for x in columns))
    yield "\nThe ten worst settings:\n\n"
    yield _head("truth", *SIZES, "accuracy", "texts are", *KINDS)
    for at, rates in sorted(found, key=lambda each: -worst(each[1]))[:10]:
        about = (f"{at.accuracy:g}", at.items)
        yield _line(at.truth, *_sizes(at), *about, *(f"{rates[kind]:.1f}" for kind in KINDS))


def _coverage_table(found: list[tuple[Setting, dict[str, float]]]) -> Iterator[str]:
    """Ranges of coverage for each number of seeds."""
    yield "\n## Coverage\n\nPercent of sweeps whose 95 % intervals hold the truth: lowest, median and "
    yield "highest of the settings. Few: fewer than 10 wrong answers a seed are expected. One difference is "
    yield "not adjusted for the number of pairs; all differences are, and hold the truth together.\n\n"
    yield _head("seeds", "errors", "settings", *INTERVALS)
    for seeds in sorted({at.seeds for at, _ in found}):
        for few in (False, True):
            these = [
                each for at, each in found if at.seeds == seeds and few == (at.texts * (1 - at.accuracy) < 10)
            ]
            columns = [np.array([each[name] for each in these]) for name in INTERVALS] if these else []
            ranges = [f"{x.min():.1f}, {np.median(x):.1f}, {x.max():.1f}" for x in columns]
            if these:
                yield _line(seeds, "few" if few else "10 or more", len(these), *ranges)


def _head(*cells: str) -> str:
    return _line(*cells) + _line(*["---"] * len(cells))


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |\n"


def _machine() -> str:
    cpu = Path("/proc/cpuinfo")
    names = [line for line in cpu.read_text().splitlines() if "model name" in line] if cpu.exists() else []
    name = names[0].partition(":")[2].strip() if names else platform.processor()
    python = f"Python {platform.python_version()}, NumPy {np.__version__}, SciPy {scipy.__version__}"
    return f"{name or platform.machine()}, {python}"


def main() -> None:
    """Print the tables, and write a record if requested."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="few settings and sweeps; takes a minute")
    parser.add_argument("--sweeps", type=int, help="sweeps of a setting")
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    effort = QUICK if options.quick else FULL
    if options.sweeps:
        effort = replace(effort, sweeps=options.sweeps, advice=min(effort.advice, options.sweeps))
    start, lines = (
        time.perf_counter(),
        [f"# The verdict on ranks, put to simulated sweeps\n\n{_about(effort)}\n"],
    )
    print(lines[0])
    for line in tables(effort):
        print(line, end="", flush=True)
        lines.append(line)
    sweeps = f" --sweeps {options.sweeps}" if options.sweeps else ""
    command = f"python -m bench.coverage{' --quick' * options.quick}{sweeps}"
    lines.append(f"\n`{command}`: {time.perf_counter() - start:.0f} s, {_machine()}.\n")
    print(lines[-1])
    if options.record:
        options.record.write_text("".join(lines), "utf-8")


def _about(effort: Effort) -> str:
    error = 100 * np.sqrt(LEVEL * (1 - LEVEL) / effort.sweeps)
    return (
        f"{time.strftime('%Y-%m-%d')}. {effort.sweeps:,} sweeps a setting; the docstring of "
        f"`bench/coverage.py` has the model. The standard error of 5 % is then {error:.1f}. A setting above "
        "5 % was put to ten times as many sweeps of its own, and these are shown."
    )


if __name__ == "__main__":
    main()
