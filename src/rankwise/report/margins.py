"""Figure of the verdict against the margin."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from rankwise.report.criteria import CRITERIA
from rankwise.report.drawing import LIGHT, WIDTH, Drawing
from rankwise.schema import Comparison, CurvePoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNDECIDED = "undecided"
TICKS = tuple(step * 10.0**power for power in range(-4, 4) for step in (1, 2, 5))


def verdict_by_margin(found: Comparison) -> Drawing | None:
    """The rank that is enough at each margin, as steps; None if there is a single rank.

    Args:
        found: its margin is marked.
    """
    if not found.curve:
        return None
    metric = CRITERIA[found.metric].metric
    said = [f"from {metric.amount(part[0].margin)}: {_named(part[0].enough)}" for part in _parts(found.curve)]
    return Drawing(
        name="verdict-margin",
        title="Rank that is enough on the validation split, by margin",
        description=f"{'; '.join(said)}. The margin of the verdict is {metric.amount(found.margin)}.",
        plot=partial(_plot, found=found),
        size=(WIDTH, 3.1),
    )


def _parts(curve: Sequence[CurvePoint]) -> list[list[CurvePoint]]:
    """The curve, cut where the verdict changes."""
    return [list(part) for _, part in groupby(curve, key=lambda point: point.enough)]


def _named(rank: int | None) -> str:
    return UNDECIDED if rank is None else f"rank {rank}"


def _plot(figure: Figure, found: Comparison) -> None:
    axes = figure.add_axes((0.19, 0.155, 0.795, 0.815))
    metric = CRITERIA[found.metric].metric
    ranks = [None, *(each.rank for each in found.ranks if each.rank)]
    heights = {rank: height for height, rank in enumerate(ranks)}
    margins = [metric.scale * point.margin for point in found.curve]
    axes.set_xscale("log")
    axes.set_xlim(margins[0], margins[-1])
    ticks = [tick for tick in TICKS if margins[0] <= tick <= margins[-1]]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(ranks)), [str(rank or UNDECIDED) for rank in ranks])
    axes.set_ylim(-0.5, len(ranks) - 0.3)
    axes.grid(visible=False, axis="x")
    for is_open, part in groupby(range(len(margins)), key=lambda i: found.curve[i].enough is None):
        which = list(part)
        ends = [*which, min(which[-1] + 1, len(margins) - 1)]  # a step ends where the next one begins
        places = [heights[found.curve[i].enough] for i in [*which, which[-1]]]
        color = LIGHT["muted" if is_open else "blue"]
        axes.step([margins[i] for i in ends], places, where="post", color=color, linewidth=2.4)
    _mark(figure, metric.scale * found.margin, heights[found.enough], metric.amount(found.margin))
    axes.set_xlabel(f"margin, {metric.unit}, logarithmic")
    axes.set_ylabel("rank")
    axes.yaxis.set_label_coords(-0.12, 0.55)


def _mark(figure: Figure, margin: float, height: float, amount: str) -> None:
    """Mark the verdict's own margin with a line, and its rank with the diamond of the other figures."""
    (axes,) = figure.axes
    color = LIGHT["orange"]
    axes.axvline(margin, color=color, linewidth=1, linestyle=(0, (4, 3)))
    axes.plot([margin], [height], marker="D", markersize=7, color=color)
    low, high = axes.get_xlim()
    is_left = margin**2 < low * high
    axes.annotate(
        amount, (margin, 1.0), (4 if is_left else -4, -2), xycoords=("data", "axes fraction"),
        textcoords="offset points", ha="left" if is_left else "right", va="top", color=color,
    )  # fmt: skip
