"""Learning curves: a small panel for each rank, with the other ranks in gray behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from rankwise.report.drawing import LIGHT, WIDTH, Drawing
from rankwise.report.history import Curve
from rankwise.schema import AdapterResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Sequence[tuple[float, float]]
"""(epoch, value) in order."""
COLUMNS = 2
PANEL = 1.3
"""Height of a row of panels, inches."""
SMOOTHED = 60
"""Number of points of a smoothed training loss, each the mean of consecutive steps."""


def learning_curves(
    curves: Mapping[str, Curve], ranks: Mapping[int, Sequence[AdapterResult]]
) -> list[Drawing]:
    """Losses and validation accuracy of each rank by epoch; empty if there is no history."""
    own = {
        rank: [curves[row.name] for row in adapters if row.name in curves] for rank, adapters in ranks.items()
    }
    own = {rank: found for rank, found in own.items() if any(curve.accuracy for curve in found)}
    if not own:
        return []
    losses = {
        rank: (_mean([each.losses for each in found]), _mean([each.log_loss for each in found]))
        for rank, found in own.items()
    }
    accuracy = {
        rank: [(x, 100 * y) for x, y in _mean([each.accuracy for each in found])]
        for rank, found in own.items()
    }
    # With a single epoch there is one point per rank, which is already in the rank table.
    several = any(len(points) > 1 for points in accuracy.values())
    return [_losses(losses), *([_accuracies(accuracy)] if several else [])]


def _losses(losses: Mapping[int, tuple[Points, Points]]) -> Drawing:
    said = [
        f"rank {rank}: training {train[-1][1]:.3f}, validation {validation[-1][1]:.3f}"
        for rank, (train, validation) in losses.items()
        if train and validation
    ]
    return Drawing(
        name="learning-loss",
        title="Loss while training, on the training texts and on the validation split, by rank",
        description="Nats a text, at the end: " + "; ".join(said) + ".",
        plot=partial(_plot_losses, losses=losses),
        size=(WIDTH, _height(len(losses))),
    )


def _accuracies(accuracy: Mapping[int, Points]) -> Drawing:
    said = [f"rank {rank}: {', '.join(f'{y:.1f}' for _, y in points)}" for rank, points in accuracy.items()]
    return Drawing(
        name="learning-accuracy",
        title="Accuracy on the validation split while training, by rank",
        description="Percent after each pass over the training texts: " + "; ".join(said) + ".",
        plot=partial(_plot_accuracies, accuracy=accuracy),
        size=(WIDTH, _height(len(accuracy))),
    )


def _plot_losses(figure: Figure, losses: Mapping[int, tuple[Points, Points]]) -> None:
    smooth = {rank: _smooth(train) for rank, (train, _) in losses.items()}
    for rank, axes in _panels(figure, list(losses), "loss, nats").items():
        for other in losses:
            axes.plot(*_xy(smooth[other]), color=LIGHT["rule"], linewidth=0.7)
        axes.plot(*_xy(smooth[rank]), color=LIGHT["blue"], linewidth=1.4, label="training")
        axes.plot(
            *_xy(losses[rank][1]), color=LIGHT["orange"], linewidth=1.2, marker="D", markersize=4,
            linestyle=(0, (3, 2)), label="validation",
        )  # fmt: skip
        axes.set_ylim(bottom=0)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="upper right", ncols=2, frameon=False, fontsize=8.5)


def _plot_accuracies(figure: Figure, accuracy: Mapping[int, Points]) -> None:
    for rank, axes in _panels(figure, list(accuracy), "accuracy, %").items():
        for other in accuracy:
            axes.plot(*_xy(accuracy[other]), color=LIGHT["rule"], linewidth=0.8)
        axes.plot(*_xy(accuracy[rank]), color=LIGHT["blue"], marker="o", markersize=4)


def _panels(figure: Figure, ranks: Sequence[int], unit: str) -> dict[int, Axes]:
    """Axes for each rank, in rows of two, with shared scales and room for a legend above."""
    rows, height = math.ceil(len(ranks) / COLUMNS), figure.get_figheight()
    found: dict[int, Axes] = {}
    for i, rank in enumerate(ranks):
        row, column = divmod(i, COLUMNS)
        bottom = (0.45 + (rows - 1 - row) * PANEL) / height
        first = next(iter(found.values()), None)
        place = (0.115 + 0.455 * column, bottom, 0.405, 0.76 * PANEL / height)
        axes = figure.add_axes(place, sharex=first, sharey=first)
        axes.text(0, 1.03, f"rank {rank}", transform=axes.transAxes, va="bottom", weight="bold")
        axes.tick_params(labelbottom=i + COLUMNS >= len(ranks), labelleft=not column)
        axes.locator_params(axis="x", integer=True, nbins=5)
        axes.locator_params(axis="y", nbins=4)
        found[rank] = axes
    figure.text(0.54, 0.07 / height, "passes over the training texts", ha="center", color=LIGHT["muted"])
    figure.text(0.012, 1 - 0.05 / height, unit, va="top", color=LIGHT["muted"])
    return found


def _height(panels: int) -> float:
    return 0.72 + PANEL * math.ceil(panels / COLUMNS)


def _xy(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _mean(curves: Sequence[Mapping[float, float]]) -> Points:
    """The mean over seeds, at points where all seeds have a finite value."""
    common = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    means = [(x, float(np.mean([curve[x] for curve in curves]))) for x in common]
    return [(x, y) for x, y in means if math.isfinite(y)]


def _smooth(points: Points) -> Points:
    """Means of `SMOOTHED` consecutive segments."""
    if len(points) <= SMOOTHED:
        return points
    return [
        (float(np.mean(part[:, 0])), float(np.mean(part[:, 1])))
        for part in np.array_split(np.array(points), SMOOTHED)
    ]
