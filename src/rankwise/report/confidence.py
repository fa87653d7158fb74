"""Whether the recommended rank's probabilities can be trusted: calibration, abstaining, signals of errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rankwise.errors import UsageError, option
from rankwise.report.drawing import DASHES, LIGHT, WIDTH, Drawing
from rankwise.report.run import Run
from rankwise.report.scores import splits
from rankwise.report.tables import Table, percent
from rankwise.report.verdict import Chosen
from rankwise.schema import AdapterResult
from rankwise.stats.abstain import (
    LEVEL,
    Answered,
    Curve,
    answered,
    choose_threshold,
    detection,
    risk_coverage,
)
from rankwise.stats.calibration import (
    FEWEST_TEXTS,
    Estimate,
    cross_fitted,
    fit,
    probabilities,
    scaling,
)
from rankwise.stats.crossed import Floats
from rankwise.stats.intervals import accuracy_interval
from rankwise.stats.metrics import BINS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TARGETS = (0.9, 0.95, 0.99)
"""Accuracies for which a page chooses thresholds, if the user names none."""
MOST_POINTS = 200
"""Points of a drawn curve."""
NONE = "none"


@dataclass(frozen=True)
class Confidence:
    """What a page says about probabilities."""

    scaling: Table
    about_scaling: str
    thresholds: Table
    about_thresholds: str
    signals: Table | None  # None for a single seed, and if no label is wrong
    drawings: tuple[Drawing, ...]  # risk against coverage, for each split


def confidence(run: Run, choice: Chosen, target: float | None = None) -> Confidence | None:
    """Measure the probabilities of the recommended rank; None if it has none, or its logits cannot be read.

    Args:
        run: a finished run.
        choice: the rank and the adapter that it recommends.
        target: the accuracy for which to choose a threshold; by default, `TARGETS`.

    Raises:
        UsageError: the target is not between 0 and 1.
    """
    if target is not None and not 0 < target < 1:
        what = f"{option('target_accuracy', target)}: not an accuracy"
        raise UsageError(what, hint="give a number between 0 and 1, such as 0.95")
    shown, best = splits(run.results), choice.best
    if best.validation.ece is None:  # scores that are no probabilities
        return None
    try:
        logits = {
            (row.name, split): run.logits(row.name, split) for row in choice.adapters for split in shown
        }
    except UsageError:
        return None
    sides = {
        split: _Side.of(logits[best.name, split], best.temperature or 1.0, run.predictions[split].targets)
        for split in shown
    }
    adapters = len(run.results.adapters)
    return Confidence(
        _scaling_table(run, choice.adapters, logits),
        _about_scaling(run, choice.adapters, logits),
        _threshold_table(sides, (target,) if target else TARGETS, adapters),
        _about_thresholds(best, adapters),
        _signal_table(run, choice, sides),
        tuple(_curve(split, best.name, side.curve) for split, side in sides.items()),
    )


Logits = dict[tuple[str, str], NDArray[np.float32]]
"""(adapter, split) -> (texts, classes)."""


@dataclass(frozen=True)
class _Side:
    """The recommended adapter on one split."""

    confidence: Floats  # (texts,) probability of its label
    right: NDArray[np.bool_]  # (texts,)

    @classmethod
    def of(cls, logits: NDArray[np.float32], temperature: float, targets: NDArray[np.int64]) -> _Side:
        found = probabilities(logits, temperature)
        return cls(found.max(axis=1), found.argmax(axis=1) == targets)

    @property
    def curve(self) -> Curve:
        return risk_coverage(self.confidence, self.right)


def _scaling_table(run: Run, adapters: Sequence[AdapterResult], logits: Logits) -> Table:
    """One row per adapter and split: temperature, and log loss and calibration error before and after."""
    rows = [
        _scaling_row(row, split, run.predictions[split].targets, logits[row.name, split])
        for row in adapters
        for split in splits(run.results)
    ]
    return Table(
        "Probabilities before and after temperature scaling",
        ("adapter", "split", "temperature", "log loss", "after", "ECE", "after", "ECE by chance"),
        rows,
        keys=2,
        note=f"Log loss in nats; ECE: expected calibration error over {BINS} bins of equal width, in points. "
        "Brackets: 95 % bootstrap intervals over texts. On validation, each half of the texts is measured "
        "with the temperature of the other half; on test, with the adapter's own. The ECE of few texts is "
        "too large: by chance is what calibrated probabilities like these would show on as many.",
    )


def _scaling_row(
    row: AdapterResult, split: str, targets: NDArray[np.int64], logits: NDArray[np.float32]
) -> tuple[str, ...]:
    crossed = row.temperature is not None and split == "validation"
    found = scaling(targets, logits, cross_fitted(targets, logits) if crossed else row.temperature or 1.0)
    cells = [
        (_ranged(found.before.log_loss, 1, 4), _ranged(found.after.log_loss, 1, 4)),
        (_ranged(found.before.ece, 100, 2), _ranged(found.after.ece, 100, 2)),
    ]
    ((loss, loss_after), (ece, ece_after)) = cells
    if row.temperature is None:
        loss_after = ece_after = ""
    last = found.before if row.temperature is None else found.after
    temperature = NONE if row.temperature is None else f"{row.temperature:.3f}"
    by_chance = f"{100 * last.ece_by_chance:.2f}"
    return (row.name, split, temperature, loss, loss_after, ece, ece_after, by_chance)


def _ranged(found: Estimate, scale: float, decimals: int) -> str:
    value, low, high = (f"{scale * each:.{decimals}f}" for each in (found.value, found.low, found.high))
    return f"{value} ({low}-{high})"


def _about_scaling(run: Run, adapters: Sequence[AdapterResult], logits: Logits) -> str:
    """What the temperatures are used for, and why an adapter has none."""
    has, lacks = ([row for row in adapters if (row.temperature is None) == no] for no in (False, True))
    parts = []
    if has:
        parts.append(
            "Each adapter's logits are divided by a temperature, fitted on the validation texts by log loss, "
            "when it predicts. Labels do not change. The other sections of this page are at temperature 1."
        )
    targets = run.predictions["validation"].targets
    parts += [_why_none(row.name, targets, logits[row.name, "validation"]) for row in lacks]
    return " ".join(parts)


def _why_none(name: str, targets: NDArray[np.int64], logits: NDArray[np.float32]) -> str:
    found = fit(targets, logits)
    start = f"{name} has no temperature, so its probabilities are those of its logits"
    if found is None or found.texts < FEWEST_TEXTS:
        return f"{start}: {len(targets)} validation texts are too few to fit one; it takes {FEWEST_TEXTS}."
    if found.is_shown:
        return f"{start}: it was trained by a version of rankwise that fitted none."
    return (
        f"{start}: on {len(targets):,} validation texts, a cross-fitted one lowers the log loss by "
        f"{found.gain:.4f} nats with a standard error of {found.gain_error:.4f}, "
        "which does not show that it helps."
    )


def _threshold_table(sides: dict[str, _Side], targets: Sequence[float], adapters: int) -> Table:
    """One row per target accuracy: the threshold, and what it does on each split."""
    parts = [name for split in sides for name in (f"{split}: answered", "accuracy", "95 %")]
    columns = ("accuracy to reach", "--abstain-below", *parts, "shown on validation")
    rows = [_threshold_row(sides, target, adapters) for target in targets]
    return Table("Thresholds for a target accuracy", columns, rows, note="In percent, except the threshold.")


def _threshold_row(sides: dict[str, _Side], target: float, adapters: int) -> tuple[str, ...]:
    validation = sides["validation"]
    found = choose_threshold(validation.confidence, validation.right, target, choices=adapters)
    name = f"{100 * target:g}"
    if found is None:
        return (name, NONE, *("",) * (3 * len(sides) + 1))
    threshold = found.answered.threshold
    each = [answered(side.confidence, side.right, threshold) for side in sides.values()]
    cells = [cell for one in each for cell in _answered_cells(one)]
    return (name, f"{threshold:.6g}", *cells, f"at least {percent(found.bound)}")


def _answered_cells(found: Answered) -> tuple[str, str, str]:
    coverage = f"{100 * found.coverage:.1f}"
    if found.accuracy is None:
        return coverage, "", ""
    low, high = accuracy_interval(found.right, found.answered)
    return coverage, percent(found.accuracy), f"{100 * low:.1f}-{100 * high:.1f}"


def _about_thresholds(best: AdapterResult, adapters: int) -> str:
    several = f" and for the {adapters} adapters of the run" if adapters > 1 else ""
    return (
        f"For {best.name}. A threshold is chosen on the validation texts: of ten coverages, the largest "
        "whose accuracy has a lower confidence bound (Clopper and Pearson 1934) above the target. The "
        f"bound is adjusted for the ten{several}, so that on texts of the same kind, the accuracy of the "
        f"answers is below the target in at most {100 * LEVEL:g} % of runs. {NONE.capitalize()}: the "
        "validation texts show it for no threshold."
    )


def _signal_table(run: Run, choice: Chosen, sides: dict[str, _Side]) -> Table | None:
    """How well the probability, and the disagreement of the seeds, find the errors of the best adapter."""
    if len(choice.adapters) < 2:
        return None
    rows = []
    for split, side in sides.items():
        signals = {
            "low probability": -side.confidence,
            "disagreement of seeds": _disagreement(run, choice, split),
        }
        for name, signal in signals.items():
            found = detection(signal, ~side.right)
            if found:
                rows.append((split, name, _ranged(found, 100, 1)))
    note = (
        f"Errors of {choice.best.name}. Area under the ROC curve, in percent, with its 95 % interval (DeLong "
        "1988): how often a wrong label has more of the signal than a correct one; 50 is chance. "
        f"Disagreement: the share of the rank's other {len(choice.adapters) - 1} seeds with another label."
    )
    return Table("Signals of errors", ("split", "signal", "found"), rows, keys=2, note=note) if rows else None


def _disagreement(run: Run, choice: Chosen, split: str) -> Floats:
    """(texts,) the share of the rank's other seeds whose label is not that of the best adapter."""
    names = [row.name for row in run.results.adapters]
    predicted = run.predictions[split].predicted
    others = [names.index(row.name) for row in choice.adapters if row.name != choice.best.name]
    return np.asarray((predicted[others] != predicted[names.index(choice.best.name)]).mean(axis=0))


def _curve(split: str, whose: str, curve: Curve) -> Drawing:
    """Share of wrong labels among the answered texts, against the share of answered texts."""
    error = float(curve.risk[-1])
    at_half = float(curve.risk[len(curve.risk) // 2])
    return Drawing(
        name=f"risk-coverage-{split}",
        title=f"Errors of {whose} on the {split} split, if it answers only the most confident texts",
        description=f"All texts: {100 * error:.2f} % wrong; the more confident half: {100 * at_half:.2f} %. "
        f"Area under the curve {100 * curve.area:.2f} %, for a random order {100 * error:.2f} %.",
        plot=partial(_plot_curve, curve=curve, error=error),
        size=(WIDTH, 3.1),
    )


def _plot_curve(figure: Figure, curve: Curve, error: float) -> None:
    axes = figure.add_axes((0.125, 0.155, 0.85, 0.81))
    points = np.unique(np.linspace(0, len(curve.risk) - 1, MOST_POINTS).astype(int))
    axes.axhline(100 * error, color=LIGHT["muted"], linewidth=1, linestyle=DASHES[1])
    axes.plot(100 * curve.coverage[points], 100 * curve.risk[points], color=LIGHT["blue"])
    highest = max(100 * float(curve.risk[points].max()), 1.0)
    axes.text(1, 100 * error, "dashed: random order", va="bottom", color=LIGHT["muted"], fontsize=8.5)
    axes.text(0.03, 0.97, f"area {100 * curve.area:.2f} %", transform=axes.transAxes, va="top", weight="bold")
    axes.set(xlim=(0, 101), ylim=(0, 1.3 * highest), xlabel="answered, %", ylabel="wrong, %")
