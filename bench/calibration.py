"""Log loss and calibration error of a finished run before and after temperature scaling.

    python -m bench.calibration RUN [--adapters r4-s110,...] [--record FILE]

Works on any finished run whose folder logits is there. A temperature is fitted for every adapter, whether or
not the run stored one. On validation, each half of the texts is measured with the temperature of the other
half; on test, with the temperature fitted on all validation texts. Intervals are 95 % bootstrap intervals
over texts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench import common
from rankwise.report.run import Run, load
from rankwise.report.scores import splits
from rankwise.stats.calibration import DRAWS, Estimate, cross_fitted, fit, scaling
from rankwise.stats.crossed import Floats
from rankwise.stats.metrics import BINS
from rankwise.store.run_folder import RunFolder

HEADER = (
    *("adapter", "split", "texts", "temperature", "shown"),
    *("log loss", "after", "gain", "ECE", "after", "gain", "by chance"),
)


def rows(run: Run, name: str) -> list[list[str]]:
    """The rows of one adapter: one for each split."""
    targets, logits = run.predictions["validation"].targets, run.logits(name)
    found = fit(targets, logits)
    if found is None:
        return [[name, "validation", str(len(targets)), *[""] * 9]]
    temperatures: dict[str, Floats | float] = {
        "validation": cross_fitted(targets, logits),
        "test": found.temperature,
    }
    lines = []
    for split in splits(run.results):
        of_split = run.predictions[split].targets
        measured = scaling(of_split, run.logits(name, split), temperatures[split])
        before, after = measured.before, measured.after
        cells = [
            *(ranged(each, 1, 4) for each in (before.log_loss, after.log_loss, measured.log_loss_gain)),
            *(ranged(each, 100, 2) for each in (before.ece, after.ece, measured.ece_gain)),
        ]
        shown = "yes" if found.is_shown else "no"
        first = [name, split, f"{len(of_split):,}", f"{found.temperature:.3f}", shown]
        lines.append([*first, *cells, f"{100 * after.ece_by_chance:.2f}"])
    return lines


def ranged(found: Estimate, scale: float, decimals: int) -> str:
    """A value with its interval: `0.312 (0.290 to 0.334)`."""
    value, low, high = (f"{scale * each:.{decimals}f}" for each in (found.value, found.low, found.high))
    return f"{value} ({low} to {high})"


def body(run: Run, names: Sequence[str]) -> str:
    """The table with its explanation."""
    return (
        f"Log loss in nats per text; ECE: expected calibration error over {BINS} bins of equal width, in "
        f"points. Brackets: 95 % intervals, {DRAWS:,} bootstrap samples of the texts. Shown: whether a sweep "
        "would store the temperature. By chance: the mean ECE of calibrated probabilities like those after "
        "scaling, on as many texts.\n\n"
        + common.table(HEADER, [row for name in names for row in rows(run, name)])
    )


def main() -> None:
    """Measure a run, print the table, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--adapters", help="names, separated by commas [default: every adapter]")
    parser.add_argument("--record", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    run = load(RunFolder(options.run))
    names = options.adapters.split(",") if options.adapters else [row.name for row in run.results.adapters]
    notes = {"run": f"{run.results.base}, {run.recipe.data.name}, {run.results.texts}"}
    title = "Calibration before and after temperature scaling"
    command = f"python -m bench.calibration {options.run.name}"
    common.write_record(title, command, notes, body(run, names), options.record)


if __name__ == "__main__":
    main()
