"""How many more texts or seeds would settle an open verdict.

The question is a sample size: with how many seeds and texts would every test of non-inferiority pass, with
good probability, if the open ranks are equally good? The variances are those seen, at the upper end of what
they may be, as few seeds say little of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtri, ndtri, stdtrit

from rankwise.stats.crossed import Floats
from rankwise.stats.paired import CONTINUITY, PSEUDO_TEXTS, Paired, pair_up

LEVEL = 0.05
FAILURES = 0.25
"""Share of sweeps, of this size and with these variances, that may still leave it open."""
DOUBT = 0.45
"""Probability that a variance over seeds is larger than the one counted with."""
LUCK = 0.3
"""Probability that the variance of one pair is overestimated by more than is taken off."""
MOST_SEEDS = 40
MULTIPLES = np.geomspace(1, 1000, 101)
"""Of the number of texts."""


@dataclass(frozen=True)
class Advice:
    """Sizes that would settle it; both None if none within reason would."""

    seeds: int | None
    texts: int | None


def advise(scores: Sequence[Floats], margin: float) -> Advice:
    """The smallest growth in seeds and texts, of both together, by which the ranks should be settled.

    Args:
        scores: (seeds, texts) of each rank that is open; at least two.
        margin: loss that is accepted, in units of the scores.
    """
    pairs = pair_up(scores)
    seeds = np.array([1] if pairs.seeds == 1 else range(pairs.seeds, MOST_SEEDS + 1))
    texts = np.ceil(pairs.texts * MULTIPLES)
    reach = _reach(pairs, len(scores), seeds[:, None, None], texts[:, None]).max(axis=-1)
    # The same sizes once more are no advice, though the next sweep might be luckier.
    more = (seeds[:, None] > pairs.seeds) | (texts >= 1.5 * pairs.texts)
    # Twice the seeds count as much as twice the texts.
    cost = np.where(more & (reach <= margin), seeds[:, None] / pairs.seeds + texts / pairs.texts, np.inf)
    if not np.isfinite(cost).any():
        return Advice(None, None)
    row, column = np.unravel_index(np.argmin(cost), cost.shape)
    return Advice(int(seeds[row]), int(texts[column]))


def _reach(pairs: Paired, ranks: int, seeds: Floats, texts: Floats) -> Floats:
    """(seeds, texts, pairs): the margin at which a pair of equal ranks passes both ways, nearly surely."""
    of_seed, chance, shared = _upper(pairs, ranks)
    by_seed, by_text = (of_seed + chance / texts) / seeds, shared / texts
    # The pairs fail together at most as often as their failures add up, half of them to each side.
    stray = -ndtri(FAILURES / (2 * len(pairs.mean))) * np.sqrt(by_seed + by_text)
    seen = by_seed
    if pairs.seeds > 1:
        # The variance over seeds that will be seen then may be above the true one.
        seen = by_seed * stdtrit(seeds - 1, LEVEL) ** 2 * chdtri(seeds - 1, FAILURES) / (seeds - 1)
    bound = np.sqrt(seen + ndtri(LEVEL) ** 2 * by_text)
    return np.asarray(bound + stray + (0 if pairs.disagreement is None else CONTINUITY / texts))


def _upper(pairs: Paired, ranks: int) -> tuple[Floats, Floats, Floats]:
    """Variances of a single seed, of a single answer, and of a text, at their upper ends; (pairs,) each."""
    seeds, texts, variance = pairs.seeds, pairs.texts, pairs.variance
    informative = texts / 10 if pairs.disagreement is None else texts * pairs.disagreement
    doubt = (variance.by_text + variance.chance) / np.sqrt(1 + informative)
    shared = texts * (variance.by_text + doubt) + PSEUDO_TEXTS / texts
    if seeds == 1:
        return np.zeros_like(shared), np.zeros_like(shared), shared
    freedom = (ranks - 1) * (seeds - 1)
    pooled = variance.by_seed.mean() * freedom / float(chdtri(freedom, 1 - DOUBT))
    # A pair that seems to vary more than the others does so partly by luck.
    own = variance.by_seed * (seeds - 1) / float(chdtri(seeds - 1, LUCK))
    chance = seeds * texts * variance.chance
    of_seed = np.maximum(0.0, seeds * np.maximum(pooled, own) - chance / texts)
    return of_seed, chance, shared
