"""Error rates and coverage of the verdict by macro-F1 of several labels, from sweeps with known truth.

    python -m bench.multi_label_verdict [--sweeps N] [--record FILE]

The counterpart of `bench.coverage` for texts with any number of labels. Each text has each label with the
label's frequency, independently. An adapter finds a label, or invents one, by a probit model whose effects
are those of `bench.coverage`: the difficulty of a text, shared by all ranks and seeds; an interaction of rank
and text; a seed effect, half of which is shared by all ranks of the seed; and a residual for each label, half
of which is shared by the ranks of a seed. Labels are invented as often as they are missed.

The macro-F1 of a rank over all texts and seeds is integrated numerically, and so is the loss of a rank "at
the edge", whose macro-F1 is below that of the others by exactly the margin. With one seed, the truth refers
to the adapters. Thresholds are not part of the simulation: the decisions are given.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from bench import common
from rankwise.stats.intervals import mean_interval
from rankwise.stats.multi_label import macro_f1_step
from rankwise.stats.paired import label_set_pseudo_values, pair_up
from rankwise.stats.verdict import LEVEL, decide

Floats = NDArray[np.float64]

DIFFICULTY, TASTE = 2.0, 0.5
"""Standard deviations of a text's difficulty, and of its interaction with the rank; the residual has 1."""
VARIANCE = 1 + DIFFICULTY**2 + TASTE**2
NODES, SHARES = np.polynomial.hermite_e.hermegauss(21)
"""Quadrature of a normal seed effect."""
HEADER = (
    *("ranks", "seeds", "texts", "labels", "rarest, %", "spread, points", "margin, points"),
    *("told apart", "best", "enough", "mean", "one difference", "all differences"),
)


@dataclass(frozen=True)
class Setting:
    """The parameters of simulated sweeps."""

    ranks: int
    seeds: int
    texts: int
    labels: int
    rarest: float  # frequency of the rarest label; the most frequent one has 0.4
    found: float = 0.8  # probability that a label is found
    spread: float = 0.1  # standard deviation of the seed effect, in probits
    margin: float = 0.01

    @property
    def frequencies(self) -> Floats:
        """(labels,) the frequency of each label."""
        return np.geomspace(0.4, self.rarest, self.labels)


def macro_f1(at: Setting, found: float, effect: Floats) -> Floats:
    """(effects,) macro-F1 over all texts of adapters with these seed effects.

    Args:
        at: the setting.
        found: probability that a label is found, without a seed effect.
        effect: (effects,) in probits.
    """
    often = at.frequencies[:, None]
    hits = often * ndtr(ndtri(found) + effect)
    invented = (1 - often) * ndtr(-(_caution(at, found)[:, None] + effect))
    return np.asarray((2 * hits / (hits + invented + often)).mean(axis=0))


def _caution(at: Setting, found: float) -> Floats:
    """(labels,) probits of not inventing a label: labels are invented as often as they are missed."""
    often = at.frequencies
    return np.asarray(-ndtri(often * (1 - found) / (1 - often)))


def mean_f1(at: Setting, found: float) -> float:
    """Macro-F1 over all texts and seeds."""
    return float(macro_f1(at, found, at.spread * NODES) @ SHARES / SHARES.sum())


def simulate(rng: np.random.Generator, at: Setting, found: Floats) -> tuple[list[Floats], Floats, float]:
    """Scores (seeds, texts) of each rank, the true macro-F1 of each, and the step.

    Args:
        rng: source of the draws.
        at: the setting.
        found: (ranks,) probability that each rank finds a label.
    """
    real = rng.random((at.texts, at.labels)) < at.frequencies
    present = real.any(axis=0)  # the verdict's macro-F1 is that of the labels with texts
    real = real[:, present]
    hard = DIFFICULTY * rng.standard_normal((at.texts, 1))
    luck = rng.standard_normal(at.seeds)
    shared = rng.standard_normal((at.seeds, *real.shape))
    scores, truth = [], []
    for each in found:
        taste = TASTE * rng.standard_normal((at.texts, 1))
        effect = at.spread * (luck + rng.standard_normal(at.seeds)) / np.sqrt(2)
        level = np.where(real, ndtri(each), _caution(at, float(each))[present])
        rest = (shared + rng.standard_normal(shared.shape)) / np.sqrt(2)
        right = np.sqrt(VARIANCE) * (level + effect[:, None, None]) + hard + taste + rest > 0
        scores.append(np.stack([label_set_pseudo_values(said, real) for said in right == real]))
        of_seeds = macro_f1(at, float(each), effect).mean()
        truth.append(float(of_seeds) if at.seeds == 1 else mean_f1(at, float(each)))
    return scores, np.array(truth), macro_f1_step(real)


def measure(at: Setting, sweeps: int) -> list[float]:
    """Percent of sweeps with each false claim, and with intervals that hold the truth."""
    rng = np.random.default_rng([at.ranks, at.seeds, at.texts, at.labels, round(1000 * at.rarest)])
    equal = np.full(at.ranks, at.found)
    edge, target = equal.copy(), mean_f1(at, at.found) - at.margin
    edge[0] = brentq(lambda found: mean_f1(at, found) - target, 0.3, at.found)
    counts = np.zeros(6)
    for _ in range(sweeps):
        scores, truth, step = simulate(rng, at, equal)
        counts += [*_false(scores, truth, step, at.margin), False, *_held(scores, truth, step)]
        scores, truth, step = simulate(rng, at, edge)
        claims = decide(dict(enumerate(scores, 1)), at.margin, step)
        counts[2] += claims.enough is not None and truth[claims.enough - 1] <= truth.max() - at.margin + 1e-9
    return list(map(float, 100 * counts / sweeps))


def _false(scores: list[Floats], truth: Floats, step: float, margin: float) -> tuple[bool, bool]:
    """Whether two ranks are falsely told apart, and whether one is falsely called the best."""
    pairs, gap = pair_up(scores, None, step), _gaps(truth)
    apart = pairs.p() * len(gap) < LEVEL
    wrong = (np.abs(gap) < 1e-9) | (np.sign(pairs.mean) != np.sign(gap))
    best = decide(dict(enumerate(scores, 1)), margin, step).best
    others = np.delete(truth, best - 1) if best else truth
    return bool((apart & wrong).any()), best is not None and bool(truth[best - 1] <= others.max() + 1e-9)


def _held(scores: list[Floats], truth: Floats, step: float) -> list[bool]:
    """Whether an interval of a mean, of one difference, and of all differences hold the truth."""
    low, high = mean_interval(scores[0])
    pairs, gap = pair_up(scores, None, step), _gaps(truth)
    tails = LEVEL / 2, LEVEL / 2 / len(gap)
    one, every = (pairs.exceeds(gap, tail) | pairs.reversed().exceeds(-gap, tail) for tail in tails)
    return [bool(low <= truth[0] <= high), not one[0], not every.any()]


def _gaps(truth: Floats) -> Floats:
    """The true differences of all pairs of ranks."""
    one, other = np.triu_indices(len(truth), 1)
    return np.asarray(truth[one] - truth[other])


def settings() -> Iterator[Setting]:
    """The settings of the table."""
    for seeds, texts, labels, rarest in (
        *((1, 500, 6, 0.05), (3, 500, 6, 0.05), (5, 500, 6, 0.05)),
        *((1, 2000, 6, 0.05), (3, 2000, 6, 0.05), (5, 2000, 6, 0.05)),
        *((3, 200, 6, 0.05), (3, 500, 20, 0.02), (3, 500, 6, 0.01)),
    ):
        for ranks in (2, 5):
            yield Setting(ranks, seeds, texts, labels, rarest)
    yield Setting(5, 3, 2000, 6, 0.05, spread=0.0)
    yield Setting(5, 3, 500, 6, 0.05, margin=0.03)
    for ranks in (2, 5):
        yield Setting(ranks, 1, 2000, 6, 0.05, margin=0.05)
        yield Setting(ranks, 3, 2000, 6, 0.05, spread=0.02, margin=0.03)
        yield Setting(ranks, 5, 2000, 6, 0.05, spread=0.02, margin=0.03)


def body(sweeps: int) -> str:
    """The table with its explanation."""
    rows = []
    for at in settings():
        level = float(np.std(macro_f1(at, at.found, at.spread * np.array([-1.0, 1.0])))) * 100
        sizes = [f"{at.ranks}", f"{at.seeds}", f"{at.texts:,}", f"{at.labels}", f"{100 * at.rarest:g}"]
        rows.append(
            [*sizes, f"{level:.1f}", f"{100 * at.margin:g}", *(f"{rate:.1f}" for rate in measure(at, sweeps))]
        )
        print("| " + " | ".join(rows[-1]) + " |", flush=True)
    error = 100 * np.sqrt(LEVEL * (1 - LEVEL) / sweeps)
    return (
        f"Percent of {sweeps:,} sweeps; the standard error of 5 % is {error:.1f}. The first three columns of "
        "percentages are false claims, each of which should be at most 5: two equal ranks told apart, one of "
        "equal ranks called the best, and the smallest rank called enough although its macro-F1 is below "
        "the others' by exactly the margin. Where the margin is small beside the spread, no rank is ever "
        "shown to be enough, so only the rows with a larger margin put this claim to the test. The last "
        "three are 95 % intervals that hold the truth, of equal ranks: of a rank's mean; of one difference; "
        "of all differences together.\n\n" + common.table(HEADER, rows)
    )


def main() -> None:
    """Simulate, print the table, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sweeps", type=int, default=400)
    parser.add_argument("--record", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    command = f"python -m bench.multi_label_verdict --sweeps {options.sweeps}"
    title = "The verdict by macro-F1 of several labels, put to simulated sweeps"
    common.write_record(title, command, {}, body(options.sweeps), options.record)


if __name__ == "__main__":
    main()
