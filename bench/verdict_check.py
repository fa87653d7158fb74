"""A second check of the verdict: sweeps simulated by another model than `bench.coverage`'s.

Answers follow a logistic item-response model: texts have a heavy-tailed difficulty (Student's t with two
degrees of freedom), some suit or trouble a single rank, some labels are wrong for everyone, and the luck of
an answer is shared, text by text, with all answers, with the rank's other seeds, with the seed's other
ranks, or with none. Seed effects are t-distributed, two-point, or an unlucky seed that loses points. The
curve of mean accuracy over ability is inverted by quadrature, so that the true accuracy of every rank, and
of every trained adapter, is known exactly.

A claim is wrong over all seeds if it is wrong of the ranks' true accuracies, and wrong of the adapters if
it is wrong of the true accuracies, over all texts, of the adapters that were trained. Cells whose error
rate is above the nominal one are simulated again with fresh random numbers and more sweeps.

    python -m bench.verdict_check [--sweeps N] [--again N] [--only WORD] [--record FILE]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from importlib.metadata import version
from itertools import product
from math import sqrt
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from bench import common
from rankwise.stats.verdict import Verdict, judge
from rankwise.stats.wording import headline

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

NOMINAL = 0.05
TINY = 1e-9
FIVE = (1, 2, 4, 8, 16)
LARGEST = 60_000  # texts that are simulated where advice asks for more
ERRORS = ("best", "enough", "apart", "family", "baseline")


@dataclass(frozen=True)
class World:
    """How answers come about."""

    scale: float = 1.5  # of the texts' difficulty
    special: float = 0.2  # share of texts that suit or trouble a rank of its own
    noise: float = 0.03  # share of wrong labels
    with_all: float = 0.1  # share of answers whose luck is the text's
    with_rank: float = 0.15  # the rank's, on this text, at every seed
    with_seed: float = 0.25  # the seed's, on this text, at every rank


ORDINARY = World()
STEADY = World(special=0.5, with_all=0, with_rank=0.95, with_seed=0)
TWINS = World(special=0, noise=0.02, with_all=0, with_rank=0, with_seed=0.98)
NESTED = replace(TWINS, with_seed=1)
FIXED = replace(TWINS, with_seed=0, with_all=1)
LOOSE = World(special=0.5, with_all=0, with_rank=0, with_seed=0)
CLEAN = World(noise=0)


@dataclass(frozen=True)
class Cell:
    """One situation."""

    name: str
    accuracy: tuple[float, ...]  # true, of each rank
    seeds: int
    texts: int
    spread: tuple[float, ...] | float = 0.0  # standard deviation over seeds, of each rank
    kind: str = "t"  # of the seed effects
    common: float = 0.0  # standard deviation of what a seed does to all ranks
    margin: float = 0.005
    world: World = ORDINARY
    baseline: float | None = None  # true accuracy of two baselines
    follow: bool = False  # whether a second sweep of the advised size is judged
    power: bool = False

    @property
    def ranks(self) -> tuple[int, ...]:
        """1, 2, 4 and so on."""
        return tuple(2**i for i in range(len(self.accuracy)))


@dataclass
class Tally:
    """What was counted over a cell's sweeps."""

    sweeps: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def rate(self, name: str) -> float:
        """Share of the sweeps."""
        return self.counts[name] / self.sweeps

    def error(self, name: str) -> float:
        """Standard error of the share, that of the nominal rate at least."""
        rate = max(self.rate(name), NOMINAL)
        return sqrt(rate * (1 - rate) / self.sweeps)


@lru_cache(8)
def _curve(world: World) -> tuple[Floats, Floats]:
    """Abilities, and the mean accuracy at each, before wrong labels."""
    middle = (np.arange(2_000) + 0.5) / 2_000
    ease = world.scale * (2 * middle - 1) / np.sqrt(2 * middle * (1 - middle))
    ability = np.linspace(-25, 25, 2_501)
    total = np.zeros_like(ability)
    for shift, weight in ((-1.5, world.special / 2), (0.0, 1 - world.special), (1.5, world.special / 2)):
        with np.errstate(over="ignore"):
            total += weight * (1 / (1 + np.exp(-(ability[:, None] + ease + shift)))).mean(1)
    return ability, total


def _ability(accuracy: Floats, world: World) -> Floats:
    ability, curve = _curve(world)
    clean = (accuracy - world.noise) / (1 - 2 * world.noise)
    return np.interp(clean, curve, ability)


def _effects(random: np.random.Generator, kind: str, shape: tuple[int, ...]) -> Floats:
    """Seed effects of mean 0 and standard deviation about 1."""
    if kind == "t":
        return np.asarray(np.clip(random.standard_t(3, shape) / sqrt(3), -5, 5))
    if kind == "two-point":
        return np.asarray(random.choice([-1.0, 1.0], shape))
    if kind == "unlucky":
        return np.where(random.random(shape) < 0.2, -2.0, 0.5)
    if kind == "rare":
        return np.where(random.random(shape) < 0.1, -3.0, 1 / 3)
    return np.asarray(random.uniform(-sqrt(3), sqrt(3), shape))


def _trained(cell: Cell, random: np.random.Generator) -> Floats:
    """True accuracies of the adapters of one sweep, (ranks, seeds)."""
    ranks = len(cell.accuracy)
    spread = np.broadcast_to(np.asarray(cell.spread), ranks)[:, None]
    own = spread * _effects(random, cell.kind, (ranks, cell.seeds))
    together = cell.common * _effects(random, "t", (1, cell.seeds))
    return np.asarray(cell.accuracy)[:, None] + own + together


def _answers(adapters: Floats, world: World, texts: int, random: np.random.Generator) -> Bools:
    """Right or wrong, (ranks, seeds, texts)."""
    ranks, seeds = adapters.shape
    place = random.random(texts)
    ease = world.scale * (2 * place - 1) / np.sqrt(2 * place * (1 - place) + 1e-12)
    kind = random.random((ranks, 1, texts), np.float32)
    special = 1.5 * ((kind < world.special / 2) * -1.0 + (kind > 1 - world.special / 2))
    ability = _ability(adapters, world)[:, :, None]
    with np.errstate(over="ignore"):
        chance = 1 / (1 + np.exp(-(ability + ease + special).astype(np.float32)))
    right = _luck((ranks, seeds, texts), world, random) < chance
    return np.asarray(right ^ (random.random(texts) < world.noise))


def _luck(shape: tuple[int, int, int], world: World, random: np.random.Generator) -> NDArray[np.float32]:
    """Uniform numbers, each shared in one of four ways."""
    ranks, seeds, texts = shape
    luck = random.random(shape, np.float32)
    way = random.random(shape, np.float32)
    start = 0.0
    sources = (
        (world.with_all, (1, 1, texts)),
        (world.with_rank, (ranks, 1, texts)),
        (world.with_seed, (1, seeds, texts)),
    )
    for share, size in sources:
        if share:
            taken = (way >= start) & (way < start + share)
            luck = np.where(taken, random.random(size, np.float32), luck)
        start += share
    return luck


def _sweep(cell: Cell, random: np.random.Generator) -> tuple[Floats, Verdict]:
    """The adapters' true accuracies and the verdict on their answers."""
    adapters = _trained(cell, random)
    known = adapters
    if cell.baseline is not None:
        known = np.vstack([adapters, np.full((2, cell.seeds), cell.baseline)])
    answers = _answers(known, cell.world, cell.texts, random)
    scores = dict(zip(cell.ranks, answers, strict=False))
    baselines = {} if cell.baseline is None else {"one": answers[-2, 0], "another": answers[-1, 0]}
    return adapters, judge(scores, cell.margin, baselines=baselines)


def _count(cell: Cell, adapters: Floats, found: Verdict, counts: Counter[str]) -> None:
    truth = dict(zip(cell.ranks, cell.accuracy, strict=True))
    trained = dict(zip(cell.ranks, map(float, adapters.mean(1)), strict=True))
    _wrong(cell, truth, found, counts, "")
    _wrong(cell, trained, found, counts, " of the adapters")
    counts["some best"] += found.claims.best is not None
    counts["some enough"] += found.claims.enough is not None
    counts["settled"] += found.recommended is not None
    counts["right"] += found.claims.best == cell.ranks[int(np.argmax(cell.accuracy))]
    counts["parted"] += any(pair.apart and _sign(truth, pair.rank, pair.other) for pair in found.pairs)
    counts["weak"] += _weak(found)
    counts["odd"] += _odd(found)
    if cell.baseline is not None:
        counts["baseline"] += any(
            (beat.apart and (truth[found.chosen] - cell.baseline) * beat.difference <= TINY)
            for beat in found.baselines
        )


def _sign(truth: dict[int, float], rank: int, other: int | str) -> int:
    gap = truth[rank] - truth[int(other)]
    return 0 if abs(gap) < TINY else int(np.sign(gap))


def _wrong(cell: Cell, truth: dict[int, float], found: Verdict, counts: Counter[str], of: str) -> None:
    """Count the claims that the true accuracies belie, and the intervals that miss them."""
    best, enough = found.claims.best, found.claims.enough
    counts["best" + of] += best is not None and _lead(truth, best) <= TINY
    counts["enough" + of] += enough is not None and _lead(truth, enough) <= TINY - cell.margin
    counts["apart" + of] += any(
        pair.apart and _sign(truth, pair.rank, pair.other) != np.sign(pair.difference) for pair in found.pairs
    )
    counts["family" + of] += not all(
        pair.low - TINY <= truth[pair.rank] - truth[int(pair.other)] <= pair.high + TINY
        for pair in found.pairs
    )
    counts["missed" + of] += sum(
        not score.low - TINY <= truth[score.rank] <= score.high + TINY for score in found.ranks
    )


def _lead(truth: dict[int, float], rank: int) -> float:
    return truth[rank] - max(value for other, value in truth.items() if other != rank)


def _weak(found: Verdict) -> bool:
    """Whether the best rank is not told apart from every other."""
    best = found.claims.best
    return best is not None and not all(
        found.apart(best, score.rank) for score in found.ranks if score.rank != best
    )


def _odd(found: Verdict) -> bool:
    """Whether p and interval, or the recommendation and the headline, contradict one another."""
    split = any(pair.apart != (not pair.low <= 0 <= pair.high) for pair in found.pairs)
    silent = found.recommended is not None and f"ank {found.recommended}" not in headline(found)
    return split or silent


def simulate(cell: Cell, sweeps: int, round_: int) -> Tally:
    """Judge so many sweeps of a situation."""
    tally = Tally()
    random = np.random.default_rng([crc32(repr(cell).encode()), round_])
    while tally.sweeps < sweeps:
        adapters, found = _sweep(cell, random)
        if cell.follow:
            if found.advice is None or found.advice.texts is None or found.advice.seeds is None:
                tally.counts["no advice"] += 1
                tally.sweeps += 1
                continue
            texts = min(found.advice.texts, LARGEST)
            tally.counts["cut"] += texts < found.advice.texts
            tally.counts["followed"] += 1
            adapters, found = _sweep(replace(cell, seeds=found.advice.seeds, texts=texts), random)
        _count(cell, adapters, found, tally.counts)
        tally.sweeps += 1
    return tally


def _equal() -> Iterator[Cell]:
    for texts, seeds in product((30, 100, 500, 2_000), (1, 2, 3, 5)):
        yield Cell("five equal ranks", (0.82,) * 5, seeds, texts, 0.007, common=0.007)
    for seeds in (1, 3):
        yield Cell("five equal ranks, no seed effect", (0.82,) * 5, seeds, 500)
        yield Cell("five equal ranks, six texts", (0.6,) * 5, seeds, 6, 0.01)
        yield Cell("five equal ranks, 99.5 % right", (0.995,) * 5, seeds, 200, world=CLEAN)
    for seeds in (2, 3, 5):
        same = World(special=0, with_rank=0)
        yield Cell("one rank entered four times", (0.82,) * 4, seeds, 2_000, 0.01, common=0.01, world=same)
        steady = "five equal ranks, answers alike at every seed"
        yield Cell(steady, (0.82,) * 5, seeds, 500, world=STEADY)


def _near() -> Iterator[Cell]:
    levels = (0.6, 0.81, 0.81, 0.81, 0.82)
    for seeds, texts in ((1, 500), (1, 2_000), (1, 10_000), (3, 500), (3, 2_000), (5, 500)):
        spread = 0.003 if seeds > 1 else 0.0
        yield Cell("rank 16 better than 2, 4, 8 by one point, rank 1 far below", levels, seeds, texts, spread)
    for seeds in (1, 3):
        spread = 0.002 if seeds > 1 else 0.0
        two = (0.7, 0.7, 0.7, 0.82, 0.82)
        yield Cell("ranks 8 and 16 equally the best by far", two, seeds, 2_000, spread)
        four = (0.815, 0.815, 0.815, 0.815, 0.82)
        yield Cell("four ranks lose exactly the margin", four, seeds, 10_000, spread)
        walk = (0.75, 0.77, 0.815, 0.815, 0.82)
        yield Cell("two lose far more, two lose exactly the margin", walk, seeds, 10_000, spread)


def _unstable() -> Iterator[Cell]:
    name = "smallest loses exactly the margin, its seeds vary by {:.1f} points ({})"
    for sd, seeds, ranks in product((0.01, 0.02), (2, 3, 5), (3, 5, 8)):
        spread = (sd,) + (0.0,) * (ranks - 1)
        levels = (0.815,) + (0.82,) * (ranks - 1)
        yield Cell(f"{name.format(100 * sd, 't')}, {ranks} ranks", levels, seeds, 10_000, spread)
    for kind, seeds in product(("uniform", "two-point", "unlucky"), (2, 3, 5)):
        yield Cell(f"{name.format(1, kind)}, 3 ranks", (0.815, 0.82, 0.82), seeds, 10_000, (0.01, 0, 0), kind)
    for sd, seeds in product((0.0025, 0.005), (2, 3, 5)):
        yield Cell(
            f"smallest loses exactly the margin, all vary by {100 * sd:.2f} points, 3 ranks",
            (0.815, 0.82, 0.82),
            seeds,
            3_000,
            sd,
        )
    for seeds, texts in product((2, 3, 5), (500, 3_000)):
        name = "smallest loses exactly the margin, answers alike at every seed, 3 ranks"
        yield Cell(name, (0.815, 0.82, 0.82), seeds, texts, world=STEADY)


def _twins() -> Iterator[Cell]:
    for world, seeds, texts in product((TWINS, NESTED), (1, 2, 3), (300, 1_000, 10_000)):
        kind = "nested" if world is NESTED else "nearly identical"
        yield Cell(
            f"{kind} adapters, the smaller loses exactly the margin", (0.815, 0.82), seeds, texts, world=world
        )
    for texts in (100, 300, 1_000):
        yield Cell(
            "nested adapters, the smaller loses exactly the margin, which is 2 points",
            (0.80, 0.82),
            1,
            texts,
            world=NESTED,
            margin=0.02,
        )


def _limits() -> Iterator[Cell]:
    for seeds, texts in product((2, 3, 5), (100, 300, 1_000, 10_000)):
        name = "nested adapters, alike at every seed, the smaller loses exactly the margin"
        yield Cell(name, (0.815, 0.82), seeds, texts, world=FIXED)
    luck = "loses 5 points at one seed in ten"
    for seeds in (3, 5, 10):
        yield Cell(
            f"nearly identical, the smallest {luck}, which is the margin",
            (0.815, 0.82, 0.82),
            seeds,
            10_000,
            (0.015, 0, 0),
            "rare",
            world=TWINS,
        )
        yield Cell(
            f"nearly identical and equal, the largest {luck}",
            (0.82,) * 3,
            seeds,
            10_000,
            (0, 0, 0.015),
            "rare",
            world=TWINS,
        )


def _single() -> Iterator[Cell]:
    for ranks in (2, 3, 5):
        levels = (0.81,) + (0.82,) * (ranks - 1)
        yield Cell(
            f"seeds vary by 1 point, true loss twice the margin, {ranks} ranks", levels, 1, 10_000, 0.01
        )


def _one_unstable() -> Iterator[Cell]:
    for where, seeds, kind in product((0, 4), (2, 3, 5), ("t", "two-point", "unlucky")):
        spread = tuple(0.02 if rank == where else 0.0 for rank in range(5))
        name = f"five equal ranks, rank {FIVE[where]} varies by 2 points ({kind})"
        yield Cell(name, (0.82,) * 5, seeds, 2_000, spread, kind)


def _baselines() -> Iterator[Cell]:
    for ranks, seeds in product((2, 8), (1, 3, 5)):
        name = f"{ranks} equal ranks and two baselines as good"
        yield Cell(name, (0.82,) * ranks, seeds, 500, world=LOOSE, baseline=0.82)
    for seeds, where in product((2, 3, 5), (None, 0, 4)):
        spread = tuple(0.02 if rank == where else 0.005 for rank in range(5))
        unstable = "" if where is None else f", rank {FIVE[where]} varies by 2 points"
        name = f"five equal ranks and two baselines as good{unstable}"
        yield Cell(name, (0.82,) * 5, seeds, 2_000, spread, baseline=0.82)


def _advised() -> Iterator[Cell]:
    for ranks, seeds, texts in ((2, 1, 1_000), (2, 3, 1_000), (2, 3, 5_000), (3, 3, 5_000)):
        spread = 0.003 if seeds > 1 else 0.0
        name = f"advice followed, true difference 0, {ranks} ranks"
        yield Cell(name, (0.82,) * ranks, seeds, texts, spread, follow=True)


def _power() -> Iterator[Cell]:
    for gap, seeds, texts in product((0.0, 0.005, 0.01, 0.02, 0.05), (1, 3, 5), (500, 2_000, 10_000)):
        levels = (0.82 - gap, 0.82 - gap, 0.82)
        name = f"largest of three ranks better by {100 * gap:.1f} points"
        yield Cell(name, levels, seeds, texts, 0.003 if seeds > 1 else 0.0, power=True)


def cells() -> Iterator[Cell]:
    """All situations."""
    plain = (_equal, _near, _unstable, _twins, _limits, _single, _one_unstable, _baselines, _advised)
    for group in (*plain, _power):
        yield from group()


def _high(cell: Cell, tally: Tally) -> list[str]:
    """Errors that are above their nominal rate; one seed's are judged of its adapters."""
    of = " of the adapters" if cell.seeds == 1 and not cell.follow else ""
    names = [name if name == "baseline" else name + of for name in ERRORS]
    return [name for name in names if tally.rate(name) > NOMINAL]


def _percent(tally: Tally, name: str) -> str:
    return f"{100 * tally.rate(name):.1f}"


def _both(cell: Cell, tally: Tally, name: str) -> str:
    """A rate over all seeds and, for one seed, that of the adapters."""
    told = _percent(tally, name)
    if cell.seeds == 1 and not cell.follow and np.any(cell.spread):
        told += f" / {_percent(tally, name + ' of the adapters')}"
    return told


def _row(cell: Cell, tally: Tally) -> list[str]:
    of = " of the adapters" if cell.seeds == 1 and not cell.follow else ""
    covered = 1 - tally.counts["missed" + of] / (tally.sweeps * len(cell.ranks))
    return [
        cell.name,
        str(cell.seeds),
        f"{cell.texts:,}",
        str(tally.sweeps),
        *(_both(cell, tally, name) for name in ("best", "enough", "apart")),
        f"{100 * covered:.1f}",
        f"{100 - 100 * tally.rate('family' + of):.1f}",
        "" if cell.baseline is None else _percent(tally, "baseline"),
        _percent(tally, "settled"),
    ]


ERROR_HEADER = (
    "situation",
    "seeds",
    "texts",
    "sweeps",
    "wrong best",
    "wrong enough",
    "wrongly apart",
    "rank intervals cover",
    "all pairs covered",
    "wrong of baseline",
    "some rank recommended",
)
POWER_HEADER = (
    "situation",
    "seeds",
    "texts",
    "sweeps",
    "best is claimed of it",
    "some truly different pair told apart",
    "some enough",
    "wrong enough",
    "some rank recommended",
)


def _power_row(cell: Cell, tally: Tally) -> list[str]:
    same = len(set(cell.accuracy)) == 1
    return [
        cell.name,
        str(cell.seeds),
        f"{cell.texts:,}",
        str(tally.sweeps),
        "" if same else _percent(tally, "right"),
        "" if same else _percent(tally, "parted"),
        _percent(tally, "some enough"),
        _both(cell, tally, "enough"),
        _percent(tally, "settled"),
    ]


@cache
def _labels() -> dict[str, str]:
    return {
        "best": "wrong best",
        "enough": "wrong enough",
        "apart": "wrongly apart",
        "family": "some pair not covered",
        "baseline": "wrong of a baseline",
    }


def _again(found: Sequence[tuple[Cell, Tally]], sweeps: int) -> list[list[str]]:
    """Cells above the nominal rate, simulated afresh."""
    rows = []
    for cell, tally in found:
        high = _high(cell, tally)
        if not high:
            continue
        fresh = simulate(cell, sweeps, 1)
        for name in high:
            label = _labels()[name.removesuffix(" of the adapters")]
            excess = (fresh.rate(name) - NOMINAL) / sqrt(NOMINAL * (1 - NOMINAL) / fresh.sweeps)
            rows.append([cell.name, str(cell.seeds), f"{cell.texts:,}", label, _percent(tally, name)])
            rows[-1] += [f"{_percent(fresh, name)} ± {100 * fresh.error(name):.1f}", f"{excess:+.1f}"]
            print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    return rows


def _advice_line(cell: Cell, tally: Tally) -> str:
    followed = tally.counts["followed"]
    share = 100 * tally.counts["settled"] / max(followed, 1)
    return (
        f"- {cell.name}, {cell.seeds} seeds, {cell.texts:,} texts: advice in {followed} of {tally.sweeps} "
        f"sweeps, cut to {LARGEST:,} texts in {tally.counts['cut']}; followed, some rank is recommended in "
        f"{share:.0f} ± {100 * sqrt(share * (100 - share) / max(followed, 1)) / 100:.0f} %"
    )


def _report(found: Sequence[tuple[Cell, Tally]], again: list[list[str]]) -> str:
    plain = [(cell, tally) for cell, tally in found if not cell.power]
    power = [(cell, tally) for cell, tally in found if cell.power]
    advice = [_advice_line(cell, tally) for cell, tally in plain if cell.follow]
    bests, weak = (sum(tally.counts[name] for _, tally in found) for name in ("some best", "weak"))
    odd = sum(tally.counts["odd"] for _, tally in found)
    parts = [
        "All rates in percent. Of one seed, a / b: a judged over all seeds, b of the adapters trained; "
        "coverage is then that of the adapters' true values.\n",
        common.table(ERROR_HEADER, [_row(*one) for one in plain]),
        "\n## Above the nominal 5 %, simulated again\n",
        common.table(
            ("situation", "seeds", "texts", "error", "first", "again", "standard errors above 5 %"), again
        ),
        "\n## Power\n",
        common.table(POWER_HEADER, [_power_row(*one) for one in power]),
        "\n## Advice\n",
        *advice,
        f"\nOf {sum(tally.sweeps for _, tally in found):,} verdicts, p and interval or recommendation and "
        f"headline contradict one another in {odd}; of {bests:,} that name a best rank, {weak:,} do not tell "
        "it apart from some other (the claim's tests are not the pairs').",
    ]
    return "\n".join(parts)


def _processor() -> str:
    """The processor's name, as Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else common.cpu_name()


def main() -> None:
    """Simulate, print the tables and record them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", type=int, default=400)
    parser.add_argument("--again", type=int, default=1_000)
    parser.add_argument("--only", default="", help="situations whose name has this in it")
    parser.add_argument("--record", type=Path, help="Markdown file to write the tables to")
    options = parser.parse_args()
    found = []
    start = time.perf_counter()
    for cell in cells():
        if options.only in cell.name:
            tally = simulate(cell, options.sweeps // (2 if cell.power or cell.follow else 1), 0)
            found.append((cell, tally))
            seconds = time.perf_counter() - start
            print(f"{seconds:.0f} s | " + " | ".join(_row(cell, tally)), file=sys.stderr, flush=True)
    body = _report(found, _again(found, options.again))
    print(body)
    only = f"--only '{options.only}' " if options.only else ""
    command = f"python -m bench.verdict_check {only}--sweeps {options.sweeps} --again {options.again}"
    notes = {
        "processor": _processor(),
        "numpy and scipy": f"{version('numpy')}, {version('scipy')}",
        "work": "sweeps simulated by a logistic item-response model; margin 0.5 points unless said",
    }
    if options.record:
        common.write_record(
            "The verdict, checked by a second simulator", command, notes, body, options.record
        )


if __name__ == "__main__":
    main()
