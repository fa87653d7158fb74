"""How many more texts or seeds would settle an undecided verdict.

This is a sample size calculation: with how many seeds and texts would every non-inferiority test pass, with
good probability, if the undecided ranks are equally good? Variances are set to upper confidence limits of
their estimates, because a few seeds estimate them poorly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtri, ndtri, stdtrit

from rankwise.stats.crossed import PSEUDO_TEXTS, Floats
from rankwise.stats.paired import CONTINUITY, Paired, pair_up

LEVEL = 0.05
FAILURES = 0.25
"""Accepted probability that a sweep of the advised size is still undecided."""
DOUBT = 0.45
"""Probability that the true variance over seeds exceeds the assumed one."""
LUCK = 0.3
"""Probability that the variance of a single pair is overestimated by more than the correction."""
MOST_SEEDS = 40
MULTIPLES = np.geomspace(1, 1000, 101)
"""Multiples of the number of texts to consider."""


@dataclass(frozen=True)
class Advice:
    """Numbers of seeds and texts that would settle the verdict; both None if no realistic ones would."""

    seeds: int | None
    texts: int | None


def advise(scores: Sequence[Floats], margin: float, step: float | None = None) -> Advice:
    """The smallest combined increase in seeds and texts that should settle the ranks.

    Args:
        scores: (seeds, texts) of each undecided rank; at least two.
        margin: accepted loss, in units of the scores.
        step: as in `paired.pair_up`.
    """
    pairs = pair_up(scores, None, step)
    seeds = np.array([1] if pairs.seeds == 1 else range(pairs.seeds, MOST_SEEDS + 1))
    texts = np.ceil(pairs.texts * MULTIPLES)
    reach = _reach(pairs, len(scores), seeds[:, None, None], texts[:, None]).max(axis=-1)
    # Repeating the same size is no useful advice, even though the next sweep might be luckier.
    more = (seeds[:, None] > pairs.seeds) | (texts >= 1.5 * pairs.texts)
    # Doubling the seeds costs as much as doubling the texts.
    cost = np.where(more & (reach <= margin), seeds[:, None] / pairs.seeds + texts / pairs.texts, np.inf)
    if not np.isfinite(cost).any():
        return Advice(None, None)
    row, column = np.unravel_index(np.argmin(cost), cost.shape)
    return Advice(int(seeds[row]), int(texts[column]))


def _reach(pairs: Paired, ranks: int, seeds: Floats, texts: Floats) -> Floats:
    """(seeds, texts, pairs): the margin at which a pair of equal ranks very likely passes both ways."""
    of_seed, chance, shared = _upper(pairs, ranks)
    by_seed, by_text = (of_seed + chance / texts) / seeds, shared / texts
    # Union bound over the pairs, with half of the failures on each side.
    deviation = -ndtri(FAILURES / (2 * len(pairs.mean))) * np.sqrt(by_seed + by_text)
    seen = by_seed
    if pairs.seeds > 1:
        # The variance over seeds estimated in that sweep may exceed the true one.
        seen = by_seed * stdtrit(seeds - 1, LEVEL) ** 2 * chdtri(seeds - 1, FAILURES) / (seeds - 1)
    bound = np.sqrt(seen + ndtri(LEVEL) ** 2 * by_text)
    return np.asarray(bound + deviation + (0 if pairs.step is None else CONTINUITY * pairs.step / texts))


def _upper(pairs: Paired, ranks: int) -> tuple[Floats, Floats, Floats]:
    """Upper limits of the variances of a seed, of a single answer, and of a text; (pairs,) each."""
    seeds, texts, variance = pairs.seeds, pairs.texts, pairs.variance
    informative = texts / 10 if pairs.disagreement is None else texts * pairs.disagreement
    doubt = (variance.by_text + variance.chance) / np.sqrt(1 + informative)
    shared = texts * (variance.by_text + doubt) + PSEUDO_TEXTS * (pairs.step or 1.0) ** 2 / texts
    if seeds == 1:
        return np.zeros_like(shared), np.zeros_like(shared), shared
    freedom = (ranks - 1) * (seeds - 1)
    pooled = variance.by_seed.mean() * freedom / float(chdtri(freedom, 1 - DOUBT))
    # If a pair varies more than the others, this is partly chance.
    own = variance.by_seed * (seeds - 1) / float(chdtri(seeds - 1, LUCK))
    chance = seeds * texts * variance.chance
    of_seed = np.maximum(0.0, seeds * np.maximum(pooled, own) - chance / texts)
    return of_seed, chance, shared
