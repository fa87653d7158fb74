"""Figure of accuracy against cost: the number of parameters that are trained and stored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from rankwise.report.drawing import LIGHT, WIDTH, Drawing
from rankwise.report.scores import ScoreRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def accuracy_by_cost(rows: Sequence[ScoreRow], marked: int) -> Drawing | None:
    """Validation accuracy against trained parameters, with 95 % intervals; None for a single rank.

    Args:
        rows: the ranks.
        marked: rank to highlight.
    """
    costs = {row.rank: row.params.trainable_params for row in rows if row.params}
    if len(costs) < 2:
        return None
    said = [f"rank {row.name}: {costs[row.rank]:,} parameters, {_accuracy(row):.2f} %" for row in rows]
    return Drawing(
        name="cost-validation",
        title="Accuracy on the validation split, by number of trained parameters",
        description=f"{'; '.join(said)}. Bars are 95 % intervals.",
        plot=partial(_plot, rows=rows, costs=costs, marked=marked),
        size=(WIDTH, 3.1),
    )


def _accuracy(row: ScoreRow) -> float:
    return 100 * row.scores["validation"].accuracy


def _plot(
    figure: Figure,
    rows: Sequence[ScoreRow],
    costs: Mapping[int | None, int],
    marked: int,
) -> None:
    axes = figure.add_axes((0.12, 0.155, 0.865, 0.815))
    axes.set_xscale("log")
    for row in rows:
        _point(axes, costs[row.rank], row, row.rank == marked)
    axes.set_xlim(min(costs.values()) / 1.6, max(costs.values()) * 1.6)
    ticks = _ticks(*axes.get_xlim())
    axes.set_xticks(ticks, [_short(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.margins(y=0.12)
    axes.grid(visible=False, axis="x")
    axes.set(xlabel="trained parameters, logarithmic", ylabel="validation accuracy, %")


def _point(axes: Axes, cost: int, row: ScoreRow, marked: bool) -> None:
    score, color = row.scores["validation"], LIGHT["orange" if marked else "blue"]
    axes.plot([cost, cost], [100 * score.low, 100 * score.high], color=color, linewidth=2.4, alpha=0.55)
    axes.plot([cost], [_accuracy(row)], marker="D" if marked else "o", markersize=7, color=color)
    axes.annotate(
        f"rank {row.name}", (cost, 100 * score.high), (0, 3), textcoords="offset points",
        ha="center", va="bottom", fontsize=8.5, color=color, weight="bold" if marked else "normal",
    )  # fmt: skip


def _ticks(low: float, high: float) -> list[float]:
    """Decades between two numbers; if there are fewer than two, 1, 2 and 5 times those.

    >>> _ticks(2_000, 1_500_000), _ticks(40_000, 150_000)
    ([10000.0, 100000.0, 1000000.0], [50000.0, 100000.0])
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 2, 5)):
        ticks = [step * 10.0**power for power in powers for step in steps]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) > 1:
            break
    return inside


def _short(number: float) -> str:
    """A round number, such as `20k` or `1M`.

    >>> [_short(number) for number in (500, 20_000, 1_000_000)]
    ['500', '20k', '1M']
    """
    for unit, worth in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= worth:
            return f"{number / worth:g}{unit}"
    return f"{number:g}"
