"""Diagnostic figures of one rank: confusion matrix, metrics by class, and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rankwise.report.drawing import DASHES, LIGHT, WIDTH, Drawing, png_names, shorten, width
from rankwise.schema import Bin, ClassMetrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NUMBERED = 12
"""Maximum number of classes for a confusion matrix with numbers."""
MOST_NAMED = 40
"""Maximum number of classes for an axis with class names."""
MOST_BARS = 24
"""Maximum number of classes shown as bars; if there are more, the weakest are shown."""
ASIDE = ", see labels.txt"
"""Suffix of an axis title if the axis shows numbers instead of labels."""


Counts = Sequence[Sequence[float]] | NDArray[np.int64]
"""A row for each true label, a column for each predicted one."""


def confusion(split: str, whose: str, labels: Sequence[str], counts: Counts) -> Drawing:
    """A confusion matrix; the stronger a cell's color, the larger its share of the true label's texts.

    Args:
        split: name of the split.
        whose: name of the rank or adapter.
        labels: class names.
        counts: a row for each true label, a column for each predicted one.
    """
    matrix = np.array(counts, dtype=np.float64)
    right = float(np.trace(matrix) / max(matrix.sum(), 1))
    worst = confusions(labels, counts)[:3]
    said = "; ".join(f"{true} taken for {predicted}: {number:g}" for true, predicted, number, _ in worst)
    side, numbers = WIDTH if len(labels) <= MOST_NUMBERED else WIDTH + 0.9, png_names(labels)
    return Drawing(
        name=f"confusion-{split}",
        title=f"Confusion matrix of {whose} on the {split} split",
        description=f"{len(labels)} classes; {100 * right:.1f} % lie on the diagonal. "
        + (f"Most often confused: {said}." if said else "Nothing is confused."),
        plot=partial(_plot_confusion, labels=labels, matrix=matrix),
        plot_png=partial(_plot_confusion, labels=numbers, matrix=matrix, aside=ASIDE) if numbers else None,
        size=(side, side * 0.92),
    )


def confusions(labels: Sequence[str], counts: Counts) -> list[tuple[str, str, float, float]]:
    """Confused pairs, most frequent first: true label, predicted label, texts, fraction of the true label."""
    matrix = np.asarray(counts)
    sums = matrix.sum(axis=1)
    found = [
        (labels[i], labels[j], matrix[i, j].item(), float(matrix[i, j] / sums[i]))
        for i, j in zip(*np.nonzero(matrix), strict=True)
        if i != j
    ]
    return sorted(found, key=lambda each: -each[2])


def _plot_confusion(figure: Figure, labels: Sequence[str], matrix: Any, aside: str = "") -> None:
    number = len(labels)
    names = [shorten(label, 14) for label in labels] if number <= MOST_NAMED else []
    points = 9 if number <= 10 else 7 if number <= 20 else 5
    widest = max((width(name, points) for name in names), default=0.0)
    upright = widest > 0.8 * figure.get_figwidth() / max(number, 1) - 0.1
    axes = _square(figure, left=widest, bottom=widest if upright else points / 72)
    _fill_cells(axes, matrix)
    axes.set(xlim=(0, number), ylim=(number, 0), xlabel=f"predicted{aside}", ylabel=f"true{aside}")
    axes.spines[["top", "right"]].set_visible(True)
    axes.grid(visible=False)
    ticks = [i + 0.5 for i in range(len(names))]
    axes.set_xticks(ticks, names, rotation=90 if upright else 0, fontsize=points)
    axes.set_yticks(ticks, names, fontsize=points)
    axes.tick_params(length=0)


def _square(figure: Figure, left: float, bottom: float) -> Axes:
    """Axes with margins of these inches for the tick labels, plus room for the axis titles."""
    wide, high = figure.get_size_inches()
    left, bottom = left + 0.36, bottom + 0.36
    return figure.add_axes((left / wide, bottom / high, 1 - (left + 0.06) / wide, 1 - (bottom + 0.06) / high))


def _fill_cells(axes: Axes, matrix: Any) -> None:
    from matplotlib.patches import Rectangle

    number = len(matrix)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    for i, j in zip(*np.nonzero(matrix), strict=True):
        share = float(shares[i, j])
        axes.add_patch(
            Rectangle((j, i), 1, 1, facecolor=LIGHT["blue"], alpha=0.06 + 0.94 * share, linewidth=0)
        )
        if number <= MOST_NUMBERED:
            color = LIGHT["paper" if share > 0.5 else "ink"]
            text, points = f"{matrix[i, j]:,.0f}", 9 if number <= 7 else 7
            axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", color=color, fontsize=points)


def per_class(split: str, whose: str, classes: Sequence[ClassMetrics]) -> Drawing:
    """F1 of each class as bars, precision and recall as marks on them; the weakest classes first.

    Args:
        split: name of the split.
        whose: name of the rank or adapter.
        classes: metrics of each class.
    """
    shown = sorted(classes, key=lambda each: each.f1)[:MOST_BARS]
    numbers = png_names([each.label for each in classes])
    named = dict(zip((each.label for each in classes), numbers or (), strict=False))
    said = [
        f"{each.label}: F1 {100 * each.f1:.1f} %, precision {100 * each.precision:.1f} %, "
        f"recall {100 * each.recall:.1f} %"
        for each in shown
    ]
    which = f" (the {len(shown)} weakest of {len(classes)})" if len(shown) < len(classes) else ""
    return Drawing(
        name=f"classes-{split}",
        title=f"Precision, recall and F1 of {whose} on the {split} split, by class{which}",
        description="; ".join(said) + ".",
        plot=partial(_plot_classes, classes=shown, names=[each.label for each in shown]),
        plot_png=partial(
            _plot_classes, classes=shown, names=[named[each.label] for each in shown], aside=ASIDE
        )
        if numbers
        else None,
        size=(WIDTH, 0.85 + 0.3 * len(shown)),
    )


def _plot_classes(
    figure: Figure, classes: Sequence[ClassMetrics], names: Sequence[str], aside: str = ""
) -> None:
    names = [shorten(name, 16) for name in names]
    height = figure.get_figheight()
    room = (0.16 + max(width(name, 9.5) for name in names)) / figure.get_figwidth()
    axes = figure.add_axes((room, 0.42 / height, 0.96 - room, 1 - 0.72 / height))
    y = [len(classes) - i for i in range(len(classes))]
    f1 = [100 * each.f1 for each in classes]
    precision, recall = [100 * each.precision for each in classes], [100 * each.recall for each in classes]
    axes.barh(y, f1, height=0.62, color=LIGHT["blue"], alpha=0.35, label="F1")
    marks: dict[str, Any] = {"linestyle": "none", "markersize": 5.5, "markeredgewidth": 1.3}
    axes.plot(
        precision, y, marker="o", color=LIGHT["orange"], markerfacecolor="none", label="precision", **marks
    )
    axes.plot(recall, y, marker="|", color=LIGHT["ink"], label="recall", **(marks | {"markersize": 9}))
    for place, value in zip(y, f1, strict=True):
        axes.text(1.5, place, f"{value:.1f}", va="center", fontsize=9, color=LIGHT["ink"])
    axes.set_yticks(y, names)
    axes.set(
        xlim=(0, 101),
        ylim=(0.4, len(classes) + 0.6),
        xlabel=f"%{'; classes by number' if aside else ''}{aside}",
    )
    axes.grid(visible=False, axis="y")
    figure.legend(loc="upper right", ncols=3, frameon=False, fontsize=8.5, bbox_to_anchor=(0.98, 1.01))


def reliability(split: str, whose: str, bins: Sequence[Bin], ece: float) -> Drawing:
    """A reliability diagram: accuracy and number of predictions by confidence.

    Args:
        split: name of the split.
        whose: name of the rank or adapter.
        bins: confidence bins.
        ece: expected calibration error, a fraction.
    """
    filled = [each for each in bins if each.texts]
    said = [
        f"{100 * each.confidence:.0f} % confidence, {100 * each.accuracy:.0f} % right ({each.texts:g} texts)"
        for each in filled
    ]
    return Drawing(
        name=f"reliability-{split}",
        title=f"Reliability of {whose} on the {split} split",
        description=f"Expected calibration error {100 * ece:.2f} points. " + "; ".join(said) + ".",
        plot=partial(_plot_reliability, bins=filled, ece=ece),
        size=(WIDTH, 4.0),
    )


def _plot_reliability(figure: Figure, bins: Sequence[Bin], ece: float) -> None:
    axes = figure.add_axes((0.125, 0.34, 0.85, 0.62))
    below = figure.add_axes((0.125, 0.12, 0.85, 0.16), sharex=axes)
    confidence = [100 * each.confidence for each in bins]
    axes.plot([0, 100], [0, 100], color=LIGHT["muted"], linewidth=1, linestyle=DASHES[1])
    axes.text(99, 4, "dashed: perfectly calibrated", ha="right", color=LIGHT["muted"], fontsize=8.5)
    axes.plot(confidence, [100 * each.accuracy for each in bins], marker="o", color=LIGHT["blue"])
    axes.text(0.03, 0.94, f"ECE {100 * ece:.2f} points", transform=axes.transAxes, va="top", weight="bold")
    axes.set(xlim=(0, 101), ylim=(0, 103), ylabel="right, %")
    axes.tick_params(labelbottom=False)
    middles = [50 * (each.low + each.high) for each in bins]
    widths = [92 * (each.high - each.low) for each in bins]
    below.bar(middles, [each.texts for each in bins], width=widths, color=LIGHT["blue"], alpha=0.45)
    below.set(xlabel="confidence, %", ylabel="texts")
    below.locator_params(axis="y", nbins=2)
    below.grid(visible=False, axis="x")
