"""How often "enough" is false by macro-F1 and by log loss, with few texts and adapters that are nearly alike.

    python -m bench.few_texts --record docs/records/DATE-few-texts.md

Two ranks give the same labels, or nearly the same losses, except for a small share of the texts, which the
smaller rank gets wrong, or on which it has an additional, exponentially distributed loss. The margin is the
true difference, so "enough" is false of the smaller rank, and at most 5 % of sweeps should claim it.
These are the hardest cases: a small sample may hold none of the texts that make the difference.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from bench import common
from rankwise.stats.paired import macro_f1_pseudo_values, macro_f1_step
from rankwise.stats.verdict import decide

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SHARES = (0.3, 0.3, 0.15, 0.12, 0.09, 0.04)
"""Of the classes."""
ERRORS = 0.1
"""Share of texts that both ranks get wrong."""
SIZES = tuple(product((1, 3), (100, 300, 1000, 4000)))
"""Seeds and texts."""


def labels(rng: np.random.Generator, texts: int, share: float, rare: bool) -> tuple[Ints, Ints, Ints]:
    """True labels, those of the better rank, and those of the other, which is wrong on a further share.

    Args:
        rng: source of the draws.
        texts: number of texts.
        share: of the texts, or of those of the rarest class.
        rare: whether all further errors are in the rarest class.
    """
    truth = rng.choice(len(SHARES), texts, p=SHARES)
    other = (truth + rng.integers(1, len(SHARES), texts)) % len(SHARES)
    better = np.where(rng.random(texts) < ERRORS, other, truth)
    failed = (rng.random(texts) < share) & ((truth == len(SHARES) - 1) | (not rare))
    return truth, better, np.where(failed & (better == truth), other, better)


def macro_f1_rates(
    share: float, rare: bool, seeds: int, texts: int, sweeps: int
) -> tuple[float, float, float]:
    """True difference in points, and percent of sweeps with a false claim: as used, and without a step."""
    truth, better, worse = labels(np.random.default_rng(0), 1_000_000, share, rare)
    margin = float(f1_score(truth, better, average="macro") - f1_score(truth, worse, average="macro"))
    rng, counts = np.random.default_rng([seeds, texts]), np.zeros(2)
    for _ in range(sweeps):
        truth, *ranks = labels(rng, texts, share, rare)
        present, truth = np.unique(truth, return_inverse=True)
        number = np.full(len(SHARES), len(present))
        number[present] = np.arange(len(present))
        better_scores, worse_scores = (
            np.tile(macro_f1_pseudo_values(number[rank][None], truth, len(present)), (seeds, 1))
            for rank in ranks
        )
        steps = macro_f1_step(truth), None
        counts += [decide({1: worse_scores, 2: better_scores}, margin, step).enough == 1 for step in steps]
    used, without = 100 * counts / sweeps
    return 100 * margin, float(used), float(without)


def log_loss_rate(share: float, mean: float, seeds: int, texts: int, sweeps: int) -> float:
    """Percent of sweeps with a false claim, if a share of the texts has an additional loss of this mean."""
    rng, count = np.random.default_rng([seeds, texts]), 0
    for _ in range(sweeps):
        common_losses = rng.exponential(0.2, texts)
        better, worse = (common_losses + 0.05 * rng.standard_normal((seeds, texts)) for _ in range(2))
        worse = worse + (rng.random(texts) < share) * rng.exponential(mean, texts)
        count += decide({1: -worse, 2: -better}, share * mean).enough == 1
    return 100 * count / sweeps


def body(sweeps: int) -> str:
    """The two tables."""
    by_f1, by_loss = [], []
    for (share, rare), (seeds, texts) in product(((0.006, False), (0.03, False), (0.03, True)), SIZES):
        margin, used, without = macro_f1_rates(share, rare, seeds, texts, sweeps)
        where = f"{100 * share:g} % of the {'rarest class' if rare else 'texts'}"
        row = [where, str(seeds), f"{texts:,}", f"{margin:.2f}", f"{used:.1f}", f"{without:.1f}"]
        by_f1.append(row)
    for (share, mean), (seeds, texts) in product(((0.01, 1.0), (0.03, 1.5), (0.1, 0.2)), SIZES):
        rate = log_loss_rate(share, mean, seeds, texts, sweeps)
        by_loss.append([f"{100 * share:g} %", f"{mean:g}", str(seeds), f"{texts:,}", f"{rate:.1f}"])
    parts = [
        f'Percent of {sweeps:,} sweeps in which "enough" is false; it should be at most 5.\n\n## Macro-F1\n',
        common.table(
            ("further errors", "seeds", "texts", "margin, points", "false", "false without a step"), by_f1
        ),
        "\n## Log loss\n",
        common.table(("texts with a further loss", "its mean, nats", "seeds", "texts", "false"), by_loss),
    ]
    return "\n".join(parts)


def main() -> None:
    """Simulate, print the tables, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sweeps", type=int, default=500)
    parser.add_argument("--record", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    command = f"python -m bench.few_texts --sweeps {options.sweeps}"
    common.write_record(
        '"Enough" with few texts, by macro-F1 and log loss', command, {}, body(options.sweeps), options.record
    )


if __name__ == "__main__":
    main()
