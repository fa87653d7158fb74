"""How often the intervals and tests of `rankwise.stats` are right, by simulated sweeps.

    python -m bench.coverage --record docs/records/DATE-coverage.md

A simulated sweep is a table of right and wrong answers of every rank and seed on the same texts, by a
probit model: a text has a difficulty, which all ranks and seeds share; a rank finds some texts harder
than another rank does; a seed has luck, half of it shared by all ranks of the seed; what is left is
half shared by the ranks of a seed, as they meet the same draws. Each rank's accuracy over all texts
and all seeds is known, and so is whether an interval holds it.

Beside the method of `rankwise.stats` the same sweeps are put to two bootstraps (percentiles):
texts and seeds both resampled (Owen 2007), and seeds alone.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path

import numpy as np
import scipy
from numpy.typing import NDArray
from scipy.stats import norm

from rankwise import stats
from rankwise.report.ranks import smallest_enough

RANKS = (1, 2, 4, 8, 16)
DIFFICULTY, TASTE = 2.0, 0.5
"""Standard deviations, that of what is left being 1: of a text's difficulty; of a rank's own part in it."""
RESAMPLES = 400


@dataclass(frozen=True)
class Setting:
    """What a simulated sweep looks like."""

    seeds: int
    texts: int
    accuracy: float
    spread: float  # standard deviation of a seed's accuracy, as a fraction
    difficulty: float = DIFFICULTY  # 0: answers to a text are independent of each other


def sweep(rng: np.random.Generator, at: Setting, accuracies: Sequence[float]) -> list[stats.Answers]:
    """Answers of ranks of these true accuracies, each (seeds, texts)."""
    taste = TASTE if at.difficulty else 0.0
    variance = 1 + at.difficulty**2 + taste**2
    texts, seeds, cells = at.texts, (at.seeds, 1), (at.seeds, at.texts)
    hard, luck, shared = rng.normal(size=texts), rng.normal(size=seeds), rng.normal(size=cells)
    found = []
    for accuracy in accuracies:
        quantile = float(norm.ppf(accuracy))
        scale = at.spread / float(norm.pdf(quantile)) * np.sqrt(variance)
        level = quantile * np.sqrt(variance + scale**2)
        own = scale * np.sqrt(0.5) * (luck + rng.normal(size=seeds))
        rest = np.sqrt(0.5) * (shared + rng.normal(size=cells))
        found.append(level + at.difficulty * hard + taste * rng.normal(size=texts) + own + rest > 0)
    return found


class Bootstrap:
    """Percentile intervals of a (seeds, texts) table's mean, with the same draws for every table."""

    def __init__(self, rng: np.random.Generator, at: Setting) -> None:
        self.seeds = rng.multinomial(at.seeds, [1 / at.seeds] * at.seeds, RESAMPLES) / at.seeds
        self.texts = rng.multinomial(at.texts, [1 / at.texts] * at.texts, RESAMPLES) / at.texts

    def both(self, table: NDArray[np.float64]) -> tuple[float, float]:
        """Texts and seeds resampled."""
        means = ((self.seeds @ table) * self.texts).sum(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        return float(low), float(high)

    def over_seeds(self, table: NDArray[np.float64]) -> tuple[float, float]:
        """Seeds resampled alone."""
        low, high = np.quantile(self.seeds @ table.mean(axis=1), [0.025, 0.975])
        return float(low), float(high)


def coverage(at: Setting, sweeps: int, seed: int = 1) -> dict[str, float]:
    """Percent of sweeps of five equal ranks whose 95 % interval holds the truth, by method."""
    rng = np.random.default_rng([seed, at.seeds, at.texts])
    bootstrap = Bootstrap(rng, at)
    held: dict[str, int] = {}
    for _ in range(sweeps):
        answers = sweep(rng, at, [at.accuracy] * len(RANKS))
        one, other = answers[0].astype(float), answers[1].astype(float)
        found = stats.differences(dict(enumerate(answers)))[0, 1]
        two = stats.difference(answers[0], answers[1])
        intervals = {
            "mean": (*stats.mean_accuracy_interval(answers[0]), at.accuracy),
            "difference, 5 ranks": (found.low, found.high, 0.0),
            "difference, 2 ranks": (two.low, two.high, 0.0),
            "mean, both resampled": (*bootstrap.both(one), at.accuracy),
            "difference, both resampled": (*bootstrap.both(one - other), 0.0),
            "difference, seeds resampled": (*bootstrap.over_seeds(one - other), 0.0),
        }
        for name, (low, high, truth) in intervals.items():
            held[name] = held.get(name, 0) + (low <= truth <= high)
    return {name: 100 * count / sweeps for name, count in held.items()}


def false_differences(at: Setting, sweeps: int, seed: int = 2) -> float:
    """Percent of sweeps of five equal ranks in which any two are told apart, after Holm's correction."""
    rng = np.random.default_rng([seed, at.seeds, at.texts])
    wrong = 0
    for _ in range(sweeps):
        found = stats.differences(dict(enumerate(sweep(rng, at, [at.accuracy] * len(RANKS)))))
        pairs = combinations(range(len(RANKS)), 2)
        wrong += min(stats.holm([found[pair].p for pair in pairs])) < 0.05
    return 100 * wrong / sweeps


def false_verdicts(at: Setting, margin: float, below: int, sweeps: int, seed: int = 3) -> float:
    """Percent of sweeps that call a rank enough whose accuracy is a whole margin below that of the best.

    `below` ranks, the smaller ones, lie just at the margin's edge; the others are equally good.
    """
    rng = np.random.default_rng([seed, at.seeds, at.texts])
    accuracies = [at.accuracy - margin * (i < below) for i in range(len(RANKS))]
    wrong = 0
    for _ in range(sweeps):
        answers = dict(zip(RANKS, sweep(rng, at, accuracies), strict=True))
        best = max(answers, key=lambda rank: (float(answers[rank].mean()), -rank))
        found = stats.differences(answers)
        to_best = {rank: found[rank, best] for rank in RANKS if rank != best}
        enough = smallest_enough(best, to_best, margin)
        wrong += enough is not None and RANKS.index(enough) < below
    return 100 * wrong / sweeps


def settings() -> Iterator[Setting]:
    """The settings of the record."""
    for seeds, texts in product((3, 5), (150, 500, 2000)):
        for accuracy, spread in product((0.6, 0.9, 0.97), (0.0, 0.005, 0.01)):
            yield Setting(seeds, texts, accuracy, spread)
        yield Setting(seeds, texts, 0.9, 0.005, difficulty=0.0)


def tables(sweeps: int) -> Iterator[str]:
    """The lines of the record, as they are found."""
    names = None
    for at in settings():
        found = coverage(at, sweeps)
        if names is None:
            names = list(found)
            yield f"\n95 % intervals: percent of {sweeps:,} simulated sweeps in which they hold the truth\n\n"
            yield _line("seeds", "texts", "accuracy", "spread, points", "texts", *names)
            yield _line(*["---"] * (5 + len(names)))
        kind = "unequal" if at.difficulty else "all alike"
        yield _line(*_columns(at), kind, *(f"{found[name]:.1f}" for name in names))
    yield f"\nErrors, in percent of {sweeps:,} sweeps of five ranks: equal ranks told apart (Holm); a rank "
    yield "at the margin's edge called enough, one or four ranks of five being there.\n\n"
    yield _line("seeds", "texts", "accuracy", "spread, points", "told apart", "margin, points", "one", "four")
    yield _line(*["---"] * 8)
    for seeds, texts, accuracy, spread in product((1, 3, 5), (500, 2000), (0.9, 0.97), (0.0, 0.005, 0.01)):
        at, margin = Setting(seeds, texts, accuracy, spread), 0.02 if texts == 500 else 0.01
        if seeds == 1 and spread:
            continue  # one seed says nothing of others, and is not said to
        told = false_differences(at, sweeps)
        edge = [false_verdicts(at, margin, below, sweeps) for below in (1, 4)]
        yield _line(*_columns(at), f"{told:.1f}", f"{100 * margin:g}", *(f"{each:.1f}" for each in edge))


def _columns(at: Setting) -> tuple[str, ...]:
    return f"{at.seeds}", f"{at.texts:,}", f"{at.accuracy:g}", f"{100 * at.spread:g}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    """Print the tables, and write them where a record is wanted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sweeps", type=int, default=1000)
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    start, lines = time.perf_counter(), []
    for line in tables(options.sweeps):
        print(line, end="", flush=True)
        lines.append(line)
    where = f"Python {platform.python_version()}, NumPy {np.__version__}, SciPy {scipy.__version__}"
    seconds = f"{time.perf_counter() - start:.0f} s"
    lines.append(f"\n`python -m bench.coverage --sweeps {options.sweeps}`: {seconds}, {where}.\n")
    print(lines[-1])
    if options.record:
        options.record.write_text("# Coverage of the intervals\n" + "".join(lines), "utf-8")


if __name__ == "__main__":
    main()
