"""Which rank is enough: the claims that the scores of a sweep support.

Every claim is based on a test, and each kind of claim is false in at most 5 % of sweeps:

- A rank is the **best** if it is significantly better than every other rank tried, at 2.5 % each (two-sided
  5 %). All tests must pass, so no correction is needed (intersection-union: Berger 1982, Technometrics 24).
- A rank is **enough** if it is shown to lose less than the margin to every other rank tried, at 4.5 % each.
  Ranks are tested in a fixed order, from the largest down, until one fails, so testing several ranks does
  not inflate the error (Maurer, Hothorn and Lehmacher 1995). A rank that is shown to lose *more* than the
  margin is skipped: it could not have been called enough.
- Two ranks are **told apart** if their p-value, times the number of pairs, is below 5 % (Bonferroni). The
  intervals are simultaneous in the same way, and contain 0 exactly if p is 5 % or more.
- A rank **beats a baseline** by a test of its own family: the chosen rank against each baseline. The level is
  halved, because the rank was chosen on the same data (`CHOICE`), and divided among the baselines. The luck
  of the rank's seeds is the same against every baseline without seeds, so the seed part of the variance is
  not adjusted for their number, only the text part. Intervals and p-values are adjusted alike. A single rank
  is not chosen, and its differences are adjusted for the number of baselines.

The linear probe (rank 0) is a baseline, not a candidate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations

import numpy as np
from numpy.typing import NDArray

from rankwise.stats.advice import Advice, advise
from rankwise.stats.crossed import Floats, is_binary
from rankwise.stats.intervals import mean_accuracy_interval, mean_interval
from rankwise.stats.paired import Paired, pair_up

LEVEL = 0.05
"""Maximum fraction of sweeps with a false claim of one kind."""
CLOSE = 0.045
"""Level of a non-inferiority test. The rest of the 5 % covers two small sources of error: ranks that are
skipped, and the skewed distribution over seeds of accuracies near 1."""
PASSED_OVER = 0.01
"""Level at which a rank is shown to lose more than the margin, over all ranks it is compared with."""
CHOICE = 2
"""Number of tests that the choice of the rank counts as. In simulations, it at most doubles the false claims
about the rank and a baseline, however many ranks there are: the rank is not the one with the highest mean,
but the smallest that is enough or left open, so it rarely owes its place to luck."""
PROBE = "the linear probe (rank 0)"

Scores = Mapping[int, NDArray[np.bool_] | Floats]
"""Rank -> (seeds, texts) scores for the same seeds and texts; higher is better."""


@dataclass(frozen=True)
class Metric:
    """What the scores measure, and how to format it."""

    name: str = "validation accuracy"
    unit: str = "points"
    scale: float = 100.0  # conversion from scores to the unit
    digits: int = 2
    percent: bool = True  # whether levels are in percent (differences are in `unit`)
    negated: bool = False  # whether scores are the metric times -1, as for a loss

    def amount(self, value: float) -> str:
        """Format a difference, such as `0.5 points`."""
        number = f"{self.scale * value:.4g}"
        return f"{number} {self.unit.removesuffix('s') if number == '1' else self.unit}"

    def level(self, score: float) -> str:
        """Format a mean score as a value of the metric, such as `93.00 %`."""
        return f"{self._number(score)} {'%' if self.percent else self.unit}"

    def change(self, difference: float) -> str:
        """Format a difference of scores as one of the metric, without its unit, such as `-0.10`."""
        return self._number(difference, "+")

    def _number(self, score: float, sign: str = "") -> str:
        return f"{self.scale * (-score if self.negated else score):{sign}.{self.digits}f}"


ACCURACY = Metric()
LOG_LOSS = Metric("validation log loss", "nats", 1.0, 4, percent=False, negated=True)
MACRO_F1 = Metric("validation macro-F1")


@dataclass(frozen=True)
class RankScore:
    """A rank's mean score, with its 95 % interval over texts and, if there are several, seeds."""

    rank: int
    mean: float
    low: float
    high: float
    spread: float | None  # standard deviation over seeds; None for one seed


@dataclass(frozen=True)
class Comparison:
    """Score of `rank` minus that of `other`; interval and p-value have the same adjustment."""

    rank: int
    other: int | str  # a rank, or the name of a baseline
    difference: float
    low: float  # simultaneous 95 % interval
    high: float
    p: float  # two-sided p-value of no difference

    @property
    def apart(self) -> bool:
        """Whether the difference is significant."""
        return self.p < LEVEL


@dataclass(frozen=True)
class Claims:
    """The claims about the candidate ranks."""

    best: int | None
    enough: int | None
    passed_over: tuple[int, ...]  # skipped ranks, shown to lose more than the margin

    @property
    def recommended(self) -> int | None:
        """The smallest rank that is enough or the best; None if undecided."""
        return min((rank for rank in (self.enough, self.best) if rank is not None), default=None)


@dataclass(frozen=True)
class Verdict:
    """The verdict on the ranks of a sweep, with the evidence."""

    metric: Metric
    margin: float
    seeds: int
    texts: int
    binary: bool  # whether every score is 0 or 1
    ranks: tuple[RankScore, ...]
    pairs: tuple[Comparison, ...]
    leader: int  # candidate with the highest mean, the smallest in case of ties; not a claim
    claims: Claims
    baselines: tuple[Comparison, ...]  # `chosen` versus each
    advice: Advice | None  # if the verdict is undecided

    @property
    def recommended(self) -> int | None:
        """The smallest rank that is enough or the best; None if undecided."""
        return self.claims.recommended

    @property
    def chosen(self) -> int:
        """The rank to use: the recommended one, or the smallest that is not told apart from the leader.

        If the verdict is open, that rank costs the least of those that are not shown to be worse.
        """
        if self.recommended is not None:
            return self.recommended
        return min(rank for rank in self.candidates if not self.apart(rank, self.leader))

    @property
    def candidates(self) -> tuple[int, ...]:
        """The ranks that may be recommended."""
        return _candidates([each.rank for each in self.ranks])

    def apart(self, rank: int, other: int) -> bool:
        """Whether the difference between two ranks is significant."""
        return any(pair.apart and {pair.rank, pair.other} == {rank, other} for pair in self.pairs)


def judge(
    scores: Scores,
    margin: float,
    metric: Metric | None = None,
    baselines: Mapping[str, NDArray[np.bool_] | Floats] | None = None,
    step: float | None = None,
) -> Verdict:
    """Judge the ranks of a sweep by their scores.

    Args:
        scores: rank -> (seeds, texts), with the same seeds and texts for all.
        margin: accepted loss, in units of the scores; above 0.
        metric: the metric of the scores; validation accuracy by default.
        baselines: name -> (texts,) scores on the same texts, or (seeds, texts).
        step: as in `paired.pair_up`.

    Raises:
        ValueError: the tables differ in shape or contain non-finite values, or the margin is not positive.
    """
    tables = _checked(scores, margin)
    if not all(np.isfinite(table).all() for table in (baselines or {}).values()):
        raise ValueError("scores of baselines are finite")
    candidates = {rank: tables[rank] for rank in _candidates(list(tables))}
    seeds, texts = next(iter(tables.values())).shape
    found = Verdict(
        metric=metric or Metric(),
        margin=margin,
        seeds=seeds,
        texts=texts,
        binary=step is None and all(is_binary(table) for table in tables.values()),
        ranks=tuple(_score(rank, table, metric or Metric(), step) for rank, table in tables.items()),
        pairs=_compare_all(tables, step),
        leader=max(candidates, key=lambda rank: (round(float(candidates[rank].mean()), 12), -rank)),
        claims=decide(candidates, margin, step),
        baselines=(),
        advice=None,
    )
    probe = {PROBE: tables[0]} if 0 in tables and len(tables) > 1 else {}
    rivals = {**probe, **(baselines or {})}
    against: tuple[Comparison, ...] = ()
    if rivals:
        pairs, tests = pair_with_baselines(
            tables[found.chosen], list(rivals.values()), len(candidates) > 1, step
        )
        against = _comparisons([(found.chosen, name) for name in rivals], pairs, tests)
    open_tables = [tables[rank] for rank in _open(found)]
    advice = advise(open_tables, margin, step) if len(open_tables) > 1 else None
    return replace(found, baselines=against, advice=advice)


def decide(scores: Mapping[int, Floats], margin: float, step: float | None = None) -> Claims:
    """Test which rank is the best, and which is enough."""
    return _decide(scores, [margin], step)[0]


def verdict_curve(
    scores: Scores, margins: Sequence[float], step: float | None = None
) -> list[tuple[float, int | None]]:
    """For each margin, (margin, the recommended rank): the smallest that is enough or the best, or None.

    A best rank loses nothing to any other, so it is enough at every margin. Otherwise wider margins are
    easier to meet, with one exception: a large rank that loses more than a narrow margin is skipped, and the
    same rank ends the procedure at a wider margin, at which its loss is undecided.
    """
    tables = _checked(scores, min(margins))
    candidates = {rank: tables[rank] for rank in _candidates(list(tables))}
    claims = _decide(candidates, margins, step)
    return [(margin, each.recommended) for margin, each in zip(margins, claims, strict=True)]


def _decide(scores: Mapping[int, Floats], margins: Sequence[float], step: float | None) -> list[Claims]:
    """The claims at each margin, from differences that are computed once."""
    ranks = sorted(scores)
    if len(ranks) == 1:
        return [Claims(None, None, ())] * len(margins)
    places = list(permutations(range(len(ranks)), 2))
    pairs = pair_up([scores[rank] for rank in ranks], places, step)
    return [_claims(ranks, pairs, places, margin) for margin in margins]


def _claims(ranks: Sequence[int], pairs: Paired, places: list[tuple[int, int]], margin: float) -> Claims:
    better = _all(pairs.exceeds(0.0, LEVEL / 2), places, len(ranks))
    close = _all(pairs.exceeds(-margin, CLOSE), places, len(ranks))
    level = PASSED_OVER / (len(ranks) - 1)
    bad = ~_all(~pairs.reversed().exceeds(margin, level), places, len(ranks))
    enough, passed_over = None, []
    for place in reversed(range(len(ranks))):
        if close[place]:
            enough = ranks[place]
        elif bad[place]:
            passed_over.append(ranks[place])
        else:
            break
    best = [rank for rank, shown in zip(ranks, better, strict=True) if shown]
    return Claims(best[0] if best else None, enough, tuple(passed_over))


def _checked(scores: Scores, margin: float) -> dict[int, Floats]:
    tables = {rank: np.asarray(scores[rank], dtype=np.float64) for rank in sorted(scores)}
    if len({table.shape for table in tables.values()}) != 1:
        raise ValueError("ranks need scores of the same seeds and texts")
    if not all(table.ndim == 2 and table.size and np.isfinite(table).all() for table in tables.values()):
        raise ValueError("scores are finite (seeds, texts) tables")
    if not margin > 0:
        raise ValueError(f"a margin is above 0, not {margin}")
    return tables


def _candidates(ranks: list[int]) -> tuple[int, ...]:
    return tuple(rank for rank in ranks if rank) or tuple(ranks)


def _all(shown: NDArray[np.bool_], places: list[tuple[int, int]], ranks: int) -> NDArray[np.bool_]:
    """(ranks,): whether a rank passed the test against every other rank."""
    table = np.ones((ranks, ranks), dtype=bool)
    table[tuple(np.array(places).T)] = shown
    return np.asarray(table.all(axis=1))


def _score(rank: int, table: Floats, metric: Metric, step: float | None) -> RankScore:
    if step is None and is_binary(table):
        low, high = mean_accuracy_interval(table.astype(bool))
    else:
        low, high = mean_interval(table, step=step)
    if metric.percent:
        low, high = max(0.0, low), min(1.0, high)
    spread = float(table.mean(axis=1).std(ddof=1)) if len(table) > 1 else None
    return RankScore(rank, float(table.mean()), low, high, spread)


def _compare_all(tables: Mapping[int, Floats], step: float | None) -> tuple[Comparison, ...]:
    if len(tables) == 1:
        return ()
    names = list(combinations(tables, 2))
    return _comparisons(names, pair_up(list(tables.values()), None, step), len(names))


def pair_with_baselines(
    table: Floats,
    baselines: Sequence[NDArray[np.bool_] | Floats],
    is_chosen: bool,
    step: float | None = None,
) -> tuple[Paired, int]:
    """The rank minus each baseline, and the number of tests to adjust these differences for.

    With three seeds and two baselines without seeds, the seed part of the variance of a chosen rank is tested
    at 2.5 % / 2 on each side, 6.2 standard errors, and the text part at 2.5 % / 4. At 2.5 % / 10, for five
    ranks and two baselines, the seed part would be 14.1 standard errors.

    Args:
        table: (seeds, texts) scores of the rank.
        baselines: (texts,) scores of baselines without seeds, or (seeds, texts); at least one.
        is_chosen: whether the rank was chosen among several on the same data.
        step: as in `paired.pair_up`.
    """
    arrays = [np.asarray(each, dtype=np.float64) for each in baselines]
    against = [np.broadcast_to(each, table.shape) for each in arrays]
    pairs = pair_up([table, *against], [(0, place) for place in range(1, len(arrays) + 1)], step)
    if not is_chosen:
        return pairs, len(arrays)
    # Baselines without seeds share the luck of the rank's seeds; one with seeds has its own.
    lucks = sum(each.ndim > 1 for each in arrays) + any(each.ndim == 1 for each in arrays)
    return pairs.at_text_level(lucks / len(arrays)), CHOICE * lucks


def _comparisons(names: Sequence[tuple[int, int | str]], pairs: Paired, tests: int) -> tuple[Comparison, ...]:
    """Comparisons adjusted for a number of tests (Bonferroni)."""
    low, high = pairs.interval(1 - LEVEL / tests)
    p = np.minimum(1.0, tests * pairs.p())
    columns = zip(names, pairs.mean.tolist(), low.tolist(), high.tolist(), p.tolist(), strict=True)
    return tuple(Comparison(*name, *values) for name, *values in columns)


def _open(found: Verdict) -> list[int]:
    """The leader and the candidates not told apart from it; empty if the verdict is decided.

    A rank that is the best is better than each of the others, so nothing is left to settle.
    """
    ranks = [rank for rank in found.candidates if rank == found.leader or not found.apart(rank, found.leader)]
    smallest = found.recommended
    is_decided = smallest is not None and (smallest <= min(ranks) or smallest == found.claims.best)
    return [] if is_decided else ranks
