"""Diagnostic figures of one rank: confusion matrix, metrics by class, and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rankwise.report.drawing import DASHES, LIGHT, WIDTH, Drawing, shorten_all
from rankwise.report.fonts import width
from rankwise.schema import Bin, ClassMetrics
from rankwise.stats.intervals import wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NUMBERED = 12
"""Maximum number of classes for a confusion matrix with numbers."""
MOST_CLASSES = 30
"""Maximum number of classes for a whole confusion matrix; if there are more, the most confused are shown."""
MOST_BARS = 24
"""Maximum number of classes shown as bars; if there are more, the weakest are shown."""
ASIDE = ", see labels.txt"
"""Suffix of an axis title if the axis shows numbers instead of labels."""
FEWEST_TEXTS = 5
"""A bin with fewer texts has an interval that spans most of the axis, and is drawn in gray."""


Counts = Sequence[Sequence[float]] | NDArray[np.int64]
"""A row for each true label, a column for each predicted one."""


def confusion(split: str, whose: str, labels: Sequence[str], counts: Counts) -> Drawing:
    """A confusion matrix in percent of each true label's texts, and in texts.

    With more than `MOST_CLASSES` classes, it shows those that are most often confused, and the others as one.

    Args:
        split: name of the split.
        whose: name of the rank or adapter.
        labels: class names.
        counts: a row for each true label, a column for each predicted one.
    """
    whole = np.array(counts, dtype=np.float64)
    right = float(np.trace(whole) / max(whole.sum(), 1))
    said = "; ".join(f"{true} taken for {predicted}: {number:g}" for true, predicted, number, _ in (
        confusions(labels, counts)[:3]
    ))  # fmt: skip
    cells = _cells(labels, whole)
    reduced = f" (the {len(cells.names) - 1} most confused of {len(labels)})" if cells.rest else ""
    side = WIDTH if len(cells.names) <= 7 else WIDTH + 0.9
    return Drawing(
        name=f"confusion-{split}",
        title=f"Confusion matrix of {whose} on the {split} split{reduced}",
        description=f"{len(labels)} classes; {100 * right:.1f} % lie on the diagonal. "
        + (f"Most often confused: {said}." if said else "Nothing is confused."),
        plot=partial(_plot_confusion, cells=cells),
        names=cells.names,
        numbered=partial(_plot_confusion, cells=replace(cells, names=cells.numbers), aside=ASIDE),
        size=(side, side * 0.92),
    )


@dataclass(frozen=True)
class _Cells:
    """What a confusion matrix shows."""

    names: tuple[str, ...]
    numbers: tuple[str, ...]  # of the classes in labels.txt
    counts: NDArray[np.float64]  # (names, names): true labels x predicted labels
    shares: NDArray[np.float64]  # (names, names): of the true label's texts
    rest: bool = False  # whether the last name stands for all other classes


def _cells(labels: Sequence[str], counts: NDArray[np.float64]) -> _Cells:
    numbers = [str(i) for i in range(len(labels))]
    if len(labels) <= MOST_CLASSES:
        return _Cells(tuple(labels), tuple(numbers), counts, _shares(counts))
    wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
    shown = np.argsort(-wrong, kind="stable")[: MOST_NUMBERED - 1]
    # Rows of `groups` add up classes: one for each shown class, one for all others.
    groups = np.vstack([np.eye(len(labels))[shown], ~np.isin(np.arange(len(labels)), shown)])
    joined = groups @ counts @ groups.T
    shares = _shares(joined)
    joined[-1, -1] = 0  # right and wrong labels among the others are mixed there
    others = f"{len(labels) - len(shown)} others"
    return _Cells(
        (*(labels[i] for i in shown), others), (*(numbers[i] for i in shown), others), joined, shares, True
    )


def _shares(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


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


def _plot_confusion(figure: Figure, cells: _Cells, aside: str = "") -> None:
    number = len(cells.names)
    names = shorten_all(cells.names, 16)
    points = 9 if number <= 10 else 7 if number <= 20 else 5
    widest = max(width(name, points) for name in names)
    upright = widest > 0.8 * figure.get_figwidth() / number - 0.1
    axes = _square(figure, left=widest, bottom=widest if upright else points / 72)
    _fill_cells(axes, cells)
    axes.set(xlim=(0, number), ylim=(number, 0), xlabel=f"predicted{aside}", ylabel=f"true{aside}")
    axes.spines[["top", "right"]].set_visible(True)
    axes.grid(visible=False)
    ticks = [i + 0.5 for i in range(number)]
    axes.set_xticks(ticks, names, rotation=90 if upright else 0, fontsize=points)
    axes.set_yticks(ticks, names, fontsize=points)
    axes.tick_params(length=0)


def _square(figure: Figure, left: float, bottom: float) -> Axes:
    """Axes with margins of these inches for the tick labels, plus room for the axis titles."""
    wide, high = figure.get_size_inches()
    left, bottom = left + 0.36, bottom + 0.36
    return figure.add_axes((left / wide, bottom / high, 1 - (left + 0.06) / wide, 1 - (bottom + 0.06) / high))


def _fill_cells(axes: Axes, cells: _Cells) -> None:
    from matplotlib.patches import Rectangle

    for i, j in zip(*np.nonzero(cells.counts), strict=True):
        share = float(cells.shares[i, j])
        color = 0.06 + 0.94 * share
        axes.add_patch(Rectangle((j, i), 1, 1, facecolor=LIGHT["blue"], alpha=color, linewidth=0))
        if len(cells.names) <= MOST_NUMBERED:
            _number_cell(axes, (j + 0.5, i + 0.5), share, f"{cells.counts[i, j]:,.0f}", len(cells.names))


def _number_cell(axes: Axes, center: tuple[float, float], share: float, count: str, number: int) -> None:
    """Write the percentage into a cell, and the count below it."""
    points = (9.0, 8.2) if number <= 7 else (7.5, 6.5)
    style: dict[str, Any] = {"ha": "center", "color": LIGHT["paper" if share > 0.5 else "ink"]}
    percent = f"{100 * share:.0f} %" if share >= 0.01 else "<1 %"
    axes.text(
        *center,
        percent if number <= 7 else percent.removesuffix(" %"),
        va="bottom",
        fontsize=points[0],
        **style,
    )
    axes.text(center[0], center[1] + 0.05, count, va="top", fontsize=points[1], **style)


def per_class(split: str, whose: str, classes: Sequence[ClassMetrics]) -> Drawing:
    """F1 of each class as bars, precision and recall as marks on them; the weakest classes first.

    Args:
        split: name of the split.
        whose: name of the rank or adapter.
        classes: metrics of each class.
    """
    shown = sorted(classes, key=lambda each: each.f1)[:MOST_BARS]
    numbers = {each.label: str(i) for i, each in enumerate(classes)}
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
        names=[each.label for each in shown],
        numbered=partial(
            _plot_classes, classes=shown, names=[numbers[each.label] for each in shown], aside=ASIDE
        ),
        size=(WIDTH, 0.85 + 0.3 * len(shown)),
    )


def _plot_classes(
    figure: Figure, classes: Sequence[ClassMetrics], names: Sequence[str], aside: str = ""
) -> None:
    names = shorten_all(names, 16)
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


def reliability(split: str, whose: str, bins: Sequence[Bin], ece: float, seeds: int = 1) -> Drawing:
    """A reliability diagram: accuracy with its 95 % interval, and number of predictions, by confidence.

    The intervals are Wilson's (1927). Several seeds label the same texts, so a bin counts as many texts as a
    seed has in it on average; otherwise the intervals would be too narrow.

    Args:
        split: name of the split.
        whose: name of the rank or adapter.
        bins: confidence bins.
        ece: expected calibration error, a fraction.
        seeds: number of seeds whose bins were pooled.
    """
    filled = [each for each in bins if each.texts]
    ends = [wilson(each.accuracy, each.texts / seeds) for each in filled]
    said = [
        f"{100 * each.confidence:.0f} % confidence, {100 * each.accuracy:.0f} % right "
        f"({100 * low:.0f} to {100 * high:.0f}; {each.texts:g} texts)"
        for each, (low, high) in zip(filled, ends, strict=True)
    ]
    return Drawing(
        name=f"reliability-{split}",
        title=f"Reliability of {whose} on the {split} split",
        description=f"Expected calibration error {100 * ece:.2f} points. " + "; ".join(said) + ".",
        plot=partial(_plot_reliability, bins=filled, ends=ends, ece=ece, seeds=seeds),
        size=(WIDTH, 4.0),
    )


def _plot_reliability(
    figure: Figure, bins: Sequence[Bin], ends: Sequence[tuple[float, float]], ece: float, seeds: int
) -> None:
    axes = figure.add_axes((0.125, 0.34, 0.85, 0.62))
    below = figure.add_axes((0.125, 0.12, 0.85, 0.16), sharex=axes)
    confidence = [100 * each.confidence for each in bins]
    axes.plot([0, 100], [0, 100], color=LIGHT["muted"], linewidth=1, linestyle=DASHES[1])
    axes.text(99, 4, "dashed: perfectly calibrated", ha="right", color=LIGHT["muted"], fontsize=8.5)
    for place, each, (low, high) in zip(confidence, bins, ends, strict=True):
        color = LIGHT["blue" if each.texts >= FEWEST_TEXTS * seeds else "rule"]
        axes.plot([place, place], [100 * low, 100 * high], color=color, linewidth=2.4, alpha=0.45)
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
