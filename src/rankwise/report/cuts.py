"""The largest rank cut after training, compared with training at the smaller ranks."""

from __future__ import annotations

import numpy as np

from rankwise.report.scores import cuts_by_rank
from rankwise.schema import Results


def differences(results: Results) -> dict[int, float]:
    """Rank -> validation accuracy of the cut minus that of the trained adapter, a fraction.

    With several seeds, this is the mean over the seeds that have both. Ranks without such a seed are omitted.
    """
    trained = {(row.rank, row.seed): row.validation.accuracy for row in results.adapters}
    found = {
        rank: [
            cut.validation.accuracy - trained[rank, cut.seed] for cut in cuts if (rank, cut.seed) in trained
        ]
        for rank, cuts in cuts_by_rank(results).items()
    }
    return {rank: float(np.mean(each)) for rank, each in found.items() if each}


def sentence(results: Results) -> str:
    """How cutting compares with training, in a sentence for the report; empty if there is nothing to compare.

    It describes the differences and claims no significance, because none was tested.
    """
    found = differences(results)
    if not found:
        return ""
    parts = [f"{_points(difference)} at rank {rank}" for rank, difference in found.items()]
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    mean = "mean " if len({row.seed for row in results.cuts}) > 1 else ""
    return (
        f"Compared with training at the smaller rank, rank {results.cuts[0].from_rank} cut after training "
        f"has a {mean}validation accuracy that is {listed}; "
        f"{'these differences were' if len(parts) > 1 else 'this difference was'} not tested."
    )


def _points(difference: float) -> str:
    """A difference of accuracies in words: `0.40 points lower`, or `equal`."""
    shown = f"{abs(100 * difference):.2f}"
    return "equal" if shown == "0.00" else f"{shown} points {'lower' if difference < 0 else 'higher'}"
