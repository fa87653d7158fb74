"""The `reproduce` command: compares a run with the published table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rankwise.schema import Results

PUBLISHED = {1: 91.45, 2: 91.30, 4: 91.70, 8: 91.50, 16: 91.40}
"""Rank -> validation accuracy in percent, from one run of GPT-2 on dair-ai/emotion."""
TOLERANCE = 1.2
"""Points: the half-width of one run's 95 % interval over 2,000 texts."""


@dataclass(frozen=True)
class Reproduction:
    """The published and the reproduced accuracy of a rank, in percent."""

    rank: int
    published: float
    accuracy: float

    @property
    def difference(self) -> float:
        """Points above the published accuracy."""
        return self.accuracy - self.published

    @property
    def passes(self) -> bool:
        """Whether the difference is within the tolerance, in either direction."""
        # Both are multiples of 0.05; the slack lets a difference of exactly 1.2 pass despite rounding errors.
        return abs(self.difference) <= TOLERANCE + 1e-9


def compare(results: Results) -> list[Reproduction]:
    """Compare the run's accuracy with the published one, for each published rank that it has."""
    return [
        Reproduction(row.rank, PUBLISHED[row.rank], 100 * row.validation.accuracy)
        for row in results.adapters
        if row.rank in PUBLISHED
    ]


def passed(reproductions: Sequence[Reproduction]) -> bool:
    """Whether every published rank was run and passes."""
    passes = {reproduction.rank: reproduction.passes for reproduction in reproductions}
    return all(passes.get(rank, False) for rank in PUBLISHED)
