"""Figure of the tuning: log loss on the tuning texts against learning rate, a line for each rank."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from rankwise.report.drawing import LIGHT, MARKERS, SERIES, WIDTH, Drawing
from rankwise.report.fonts import width
from rankwise.report.tuning import RATE, chosen_trials
from rankwise.schema import Trial, Tuning

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = {
    "log-loss": ("Log loss", "Nats per text", "log loss, nats"),
    "accuracy": ("Error rate", "1 - accuracy", "1 - accuracy"),
    "macro-f1": ("1 - macro-F1", "1 - macro-F1", "1 - macro-F1"),
}
"""Metric -> the title of the figure, its unit, and the label of its axis."""
SMALLEST = 1e-3
"""Log losses below this many nats are drawn at it, because a logarithmic axis has no zero."""
ROUND: tuple[tuple[float, ...], ...] = ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))
"""Leading digits of tick labels, the densest first."""
TICKS = range(3, 8)
"""Acceptable numbers of tick labels."""
POINTS = 8.5
"""Size of the text beside the axes."""
LINE = 0.155
"""Height of a line of this text, inches."""
SHIFT = 0.015
"""Horizontal distance of two ranks at the same learning rate, as a share of the axis."""
SHORT: dict[str, Any] = {"markersize": 3.2, "linewidth": 1.3}
FULL: dict[str, Any] = {
    "markersize": 6.5, "linewidth": 1, "linestyle": (0, (2, 2)), "markerfacecolor": LIGHT["paper"],
}  # fmt: skip
CHOSEN: dict[str, Any] = {"markersize": 8, "linestyle": "none"}
DIVERGED: dict[str, Any] = {"marker": "x", "markersize": 5, "markeredgewidth": 1.6, "linestyle": "none"}
"""How trials are drawn; the color and, except for `DIVERGED`, the marker are those of the rank."""


@dataclass(frozen=True)
class Line:
    """The trials of a rank: learning rate -> lowest log loss over the other settings, in nats per text."""

    rank: int
    short: Mapping[float, float]  # rung 1
    full: Mapping[float, float]  # later rungs
    diverged: tuple[float, ...]  # learning rates at which every trial of a rung diverged
    chosen: tuple[float, float]  # learning rate and log loss of the chosen trial

    @property
    def end(self) -> float:
        """Log loss at the highest learning rate of the line."""
        points = self.short or self.full
        return points[max(points)]


def tuning_figure(tuning: Tuning) -> Drawing | None:
    """Log loss on the tuning texts against learning rate; None if the learning rate was not varied."""
    lines = _lines(tuning) if RATE in tuning.varied else []
    if not lines:
        return None
    name, unit, axis = NAMES[tuning.metric]
    return Drawing(
        name="tuning",
        title=f"{name} on the tuning texts, by learning rate and rank",
        description=f"{unit}. {'; '.join(map(_said, lines))}.",
        plot=partial(_plot, lines=lines, axis=axis),
        size=(WIDTH, max(3.4, 1.2 + LINE * len(lines))),
    )


def _lines(tuning: Tuning) -> list[Line]:
    chosen = {rank: trial for rank, trial in chosen_trials(tuning).items() if trial.loss is not None}
    return [
        _line(rank, trial, [each for each in tuning.trials if each.rank == rank])
        for rank, trial in chosen.items()
    ]


def _line(rank: int, chosen: Trial, trials: Sequence[Trial]) -> Line:
    short, full = ([each for each in trials if (each.rung == 1) == is_short] for is_short in (True, False))
    lost = {rate for rung in (short, full) for rate in {_rate(each) for each in rung} - _best(rung).keys()}
    return Line(rank, _best(short), _best(full), tuple(sorted(lost)), (_rate(chosen), chosen.loss or 0.0))


def _rate(trial: Trial) -> float:
    return float(trial.settings[RATE])


def _best(trials: Iterable[Trial]) -> dict[float, float]:
    """Learning rate, ascending -> lowest log loss; without rates at which every trial diverged."""
    best: dict[float, float] = {}
    for each in trials:
        if each.loss is not None:
            best[_rate(each)] = min(each.loss, best.get(_rate(each), math.inf))
    return dict(sorted(best.items()))


def _said(line: Line) -> str:
    parts = [
        _said_points("", line.short),
        _said_points("full schedule ", line.full),
        f"diverged at {', '.join(f'{rate:g}' for rate in line.diverged)}" if line.diverged else "",
        f"chosen {line.chosen[0]:g}",
    ]
    return f"rank {line.rank}: " + ", ".join(part for part in parts if part)


def _said_points(name: str, points: Mapping[float, float]) -> str:
    return name + ", ".join(f"{loss:.3f} at {rate:g}" for rate, loss in points.items()) if points else ""


def _plot(figure: Figure, lines: Sequence[Line], axis: str) -> None:
    height, names = figure.get_figheight(), [f"rank {line.rank}" for line in lines]
    low, high = _range(lines)
    ticks = {math.log10(tick): f"{tick:.3g}" for tick in _ticks(10**low, 10**high)}
    left = (max(width(tick, 9.5) for tick in ticks.values()) + 0.3) / WIDTH
    right = 1 - (max(width(name, POINTS) for name in names) + 0.28) / WIDTH
    axes = figure.add_axes((left, 0.47 / height, right - left, 1 - 0.98 / height))
    axes.set_ylim(low, high)
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.set_ylabel(f"{axis}, logarithmic")
    _rate_axis(axes, {rate for line in lines for rate in (*line.short, *line.full, *line.diverged)})
    for k, (line, shift) in enumerate(zip(lines, _shifts(axes, len(lines)), strict=True)):
        _plot_line(axes, line, shift, _color(k), MARKERS[k % len(MARKERS)])
    _plot_names(axes, lines, names)
    _legend(figure, lines)


def _range(lines: Sequence[Line]) -> tuple[float, float]:
    """Logarithms of the lowest and highest log loss of the axis, which has room above for crosses."""
    losses = [loss for line in lines for loss in (*line.short.values(), *line.full.values())]
    low, high = _height(min(losses)), _height(max(losses))
    room = max(high - low, 0.02)
    above = 0.16 if any(line.diverged for line in lines) else 0.07
    return low - 0.07 * room, high + above * room


def _color(number: int) -> str:
    return LIGHT[SERIES[(number + number // len(SERIES)) % len(SERIES)]]


def _rate_axis(axes: Axes, rates: Iterable[float]) -> None:
    """A tick at each rate that was tried, labeled where there is room."""
    ordered = sorted(rates)
    places = [math.log10(rate) for rate in ordered]
    margin = 0.08 * (places[-1] - places[0]) or 0.5
    axes.set_xlim(places[0] - margin, places[-1] + margin)
    axes.set_xticks(places, _labels(axes, places, [f"{rate:g}" for rate in ordered]))
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("learning rate, logarithmic")


def _labels(axes: Axes, places: Sequence[float], names: Sequence[str]) -> list[str]:
    """The names, some replaced by "" so that neighbors do not overlap."""
    low, high = axes.get_xlim()
    inch = float(axes.bbox.width / axes.figure.dpi) / (high - low)
    shown, end = [], -math.inf
    for place, name in zip(places, names, strict=True):
        half = width(name, 9.5) / 2
        is_free = inch * place - half > end + 0.06
        shown.append(name if is_free else "")
        end = inch * place + half if is_free else end
    return shown


def _height(loss: float) -> float:
    return math.log10(max(loss, SMALLEST))


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive ones: powers of ten and simple multiples, or evenly spaced."""
    from matplotlib.ticker import MaxNLocator

    for digits in ROUND:
        found = [digit * 10.0**power for power in range(-4, 4) for digit in digits]
        inside = [value for value in found if low <= value <= high]
        if len(inside) in TICKS:
            return inside
    return [float(value) for value in MaxNLocator(5).tick_values(low, high) if low <= value <= high]


def _shifts(axes: Axes, lines: int) -> list[float]:
    """Small horizontal shifts of the lines, so that equal points of two ranks do not hide each other."""
    (left, right), places = axes.get_xlim(), axes.get_xticks()
    narrowest = float(min(np.diff(places), default=right - left))
    step = min(SHIFT * (right - left), 0.4 * narrowest / lines)
    return [step * (k - (lines - 1) / 2) for k in range(lines)]


def _plot_line(axes: Axes, line: Line, shift: float, color: str, marker: str) -> None:
    """The short schedule as a line; the full one as hollow markers; the chosen trial as a large one."""
    style: dict[str, Any] = {"color": color, "marker": marker}
    axes.plot(*_xy(line.short.items(), shift), **style, **SHORT)
    axes.plot(*_xy(line.full.items(), shift), **style, **FULL, zorder=3)
    axes.plot(*_xy([line.chosen], shift), **style, **CHOSEN, zorder=4)
    top = 10 ** axes.get_ylim()[1]
    axes.plot(*_xy([(rate, top) for rate in line.diverged], shift), color=color, clip_on=False, **DIVERGED)


def _xy(points: Iterable[tuple[float, float]], shift: float) -> tuple[list[float], list[float]]:
    pairs = [(math.log10(rate) + shift, _height(loss)) for rate, loss in points]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _plot_names(axes: Axes, lines: Sequence[Line], names: Sequence[str]) -> None:
    """Name each line right of the axes, at the height of its end or as close as the other names allow."""
    (low, high), tall = axes.get_ylim(), float(axes.bbox.height / axes.figure.dpi)
    order = sorted(range(len(lines)), key=lambda k: lines[k].end)
    places = spread([tall * (_height(lines[k].end) - low) / (high - low) for k in order], LINE, tall)
    for k, place in zip(order, places, strict=True):
        axes.plot(
            [1.02], [place / tall], transform=axes.transAxes, clip_on=False, markersize=4,
            color=_color(k), marker=MARKERS[k % len(MARKERS)],
        )  # fmt: skip
        axes.annotate(
            names[k], (1.02, place / tall), (6, -0.5), xycoords="axes fraction", textcoords="offset points",
            va="center", color=_color(k), fontsize=POINTS,
        )  # fmt: skip


def spread(places: Sequence[float], gap: float, top: float) -> list[float]:
    """Move ascending places at least `gap` apart, as little as possible, between 0 and `top` if they fit.

    The least squares solution is an isotonic regression (Barlow et al. 1972).

    >>> spread([0.5, 0.6, 2.0], 0.5, 2.0)
    [0.3, 0.8, 2.0]
    """
    from scipy.optimize import isotonic_regression

    steps = gap * np.arange(len(places))
    found = np.clip(isotonic_regression(places - steps).x, 0, max(0.0, top - steps[-1])) + steps
    return [round(float(place), 9) for place in found]


def _legend(figure: Figure, lines: Sequence[Line]) -> None:
    """Say above the axes how the trials are drawn."""
    from matplotlib.lines import Line2D

    marks = {
        "short schedule": {"marker": "o", **SHORT} if any(line.short for line in lines) else None,
        "full schedule": {"marker": "o", **FULL} if any(line.full for line in lines) else None,
        "chosen": {"marker": "o", **CHOSEN},
        "diverged": DIVERGED if any(line.diverged for line in lines) else None,
    }
    handles = [
        Line2D([], [], color=LIGHT["muted"], label=name, **style) for name, style in marks.items() if style
    ]
    figure.legend(
        handles=handles, loc="upper left", ncols=2, frameon=False, fontsize=POINTS, bbox_to_anchor=(0.1, 1.0)
    )
