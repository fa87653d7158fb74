"""Compares the three alpha modes: the same ranks and seed with three scaling rules.

    python examples/compare_alpha_modes.py [--base NAME] [--data DATA] [--out FOLDER]

The alphas are chosen so that all modes have scale 2 at rank 8, where they train the same adapter up
to rounding. At rank 1 the scales differ: 16 with `fixed`, 2 with `ratio`, 5.7 with `rslora`. At one
learning rate, a step changes a layer about equally at every rank with `fixed`, and more at a larger
rank with `ratio`; see docs/concepts.md, "Alpha and the scale".
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from rankwise import RankwiseError, Recipe, Results, sweep

RANKS = (1, 8)
SCALE = 2.0  # of all modes at rank 8
ALPHAS = {"fixed": 8 * SCALE, "ratio": SCALE, "rslora": math.sqrt(8) * SCALE}


def main() -> None:
    """Run one sweep per mode, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m", help="base model")
    parser.add_argument("--data", default="starter", help="data to train on")
    parser.add_argument("--out", type=Path, default=Path("runs/alpha-modes"), help="folder of the three runs")
    options = parser.parse_args()
    print("mode    rank  scale  validation accuracy in percent, with its 95 % interval")
    for mode, alpha in ALPHAS.items():
        recipe = Recipe(
            **{
                "base": options.base,
                "data": options.data,
                "max_length": 64,
                "ranks": RANKS,
                "alpha": alpha,
                "alpha_mode": mode,
                "tune": False,  # one rate, so that the modes differ in nothing else
                "learning_rate": 1e-3,
                "batch_size": 16,
            }
        )
        show(mode, sweep(recipe, options.out / mode))


def show(mode: str, results: Results) -> None:
    """Print a line for each rank."""
    for row in results.adapters:
        accuracy, low, high = (
            100 * share
            for share in (row.validation.accuracy, row.validation.accuracy_low, row.validation.accuracy_high)
        )
        print(f"{mode:<7} {row.rank:>4}  {row.scale:>5.2f}  {accuracy:.2f} ({low:.1f} to {high:.1f})")


if __name__ == "__main__":
    try:
        main()
    except RankwiseError as error:  # the message says what is wrong and what to do
        raise SystemExit(f"error: {error}") from None
