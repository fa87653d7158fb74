"""Figures of accuracy against rank, for one run or several."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rankwise.report.drawing import DASHES, LIGHT, MARKERS, SERIES, WIDTH, Drawing, shorten
from rankwise.report.fonts import width
from rankwise.report.scores import Score, ScoreRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STRETCH = 2.0
"""To show values below the ranks, the axis may grow by up to this multiple of the intervals' range."""
HEIGHT = 3.1
LEGEND = 0.24
"""Inches; a figure with a legend is higher by the second."""
ASIDE = 0.16
"""Distance on the axis, in doublings of the rank, of the seeds' markers and of the cuts from the rank."""

CUT: dict[str, Any] = {
    "color": LIGHT["muted"], "marker": "s", "markersize": 4, "linewidth": 1, "linestyle": DASHES[2],
}  # fmt: skip
"""Style of the series of cuts."""


def accuracy_by_rank(
    split: str,
    rows: Sequence[ScoreRow],
    baselines: Sequence[ScoreRow],
    marked: int | None,
    cuts: Sequence[ScoreRow] = (),
) -> Drawing:
    """Accuracy against rank, with 95 % intervals and lines for the baselines.

    The figures of a run's splits have the same scale.

    Args:
        split: name of the split.
        rows: the ranks; rank 0 does not fit on a logarithmic axis and is drawn separately.
        baselines: drawn as lines.
        marked: rank to highlight.
        cuts: the largest rank, cut to smaller ranks; a second, thinner series.
    """
    cuts = [row for row in cuts if split in row.scores]
    ranks = [row for row in rows if split in row.scores]
    lines = [row for row in baselines if split in row.scores]
    several = any(row.scores[split].spread is not None for row in ranks)
    said = [f"rank {row.name}: {_said(row.scores[split])}" for row in ranks]
    said += [f"rank {row.name}: {_said(row.scores[split])}" for row in cuts]
    said += [f"{row.name}: {100 * row.scores[split].accuracy:.2f} %" for row in lines]
    return Drawing(
        name=f"accuracy-{split}",
        title=f"Accuracy on the {split} split, by rank",
        description=f"Accuracy with 95 % interval over texts{' and seeds' if several else ''}. "
        + "; ".join(said)
        + ".",
        plot=partial(_plot_accuracy, split=split, rows=ranks, baselines=lines, marked=marked, cuts=cuts),
        size=(WIDTH, HEIGHT + (LEGEND if cuts else 0)),
    )


def _said(score: Score) -> str:
    return f"{100 * score.accuracy:.2f} % ({100 * score.low:.1f} to {100 * score.high:.1f})"


def _plot_accuracy(
    figure: Figure,
    split: str,
    rows: Sequence[ScoreRow],
    baselines: Sequence[ScoreRow],
    marked: int | None,
    cuts: Sequence[ScoreRow],
) -> None:
    axes = _accuracy_axes(figure, cuts)
    places = _places(sorted({row.rank or 0 for row in (*rows, *cuts)}))
    _rank_axis(axes, places)
    views = _views(rows, [*cuts, *baselines])
    _share_scale(axes, places, views)
    view = views[split]
    crowded = _baseline_lines(axes, view.lines, view.taken(places))
    _notes(axes, crowded, [_named(row, split) for row in view.below if row.rank is None or row.cut_from])
    _cut_points(axes, places, split, view.cuts)
    for row in rows:
        if row.rank or row in view.shown:
            _point(axes, places[row.rank or 0], row.scores[split], marked == row.rank)
        else:
            _point_below(axes, places[0], row.scores[split])
    axes.set_ylabel(f"{split} accuracy, %")


@dataclass(frozen=True)
class _View:
    """What the figure of one split shows."""

    split: str
    ranks: Sequence[ScoreRow]
    shown: Sequence[ScoreRow]  # of rank 0, the cuts and the baselines, those within reach of the other ranks
    below: Sequence[ScoreRow]  # those that are too far below
    ends: tuple[float, ...]  # all heights, in percent

    @property
    def cuts(self) -> list[ScoreRow]:
        return [row for row in self.shown if row.cut_from]

    @property
    def lines(self) -> dict[str, float]:
        """Label of a baseline -> its height."""
        return {
            _named(row, self.split): 100 * row.scores[self.split].accuracy
            for row in self.shown
            if row.rank is None
        }

    def taken(self, places: Mapping[int, float]) -> dict[float, Score]:
        """Position on the axis -> score drawn there."""
        ranks = {places[row.rank or 0]: row.scores[self.split] for row in self.ranks}
        return ranks | {places[row.rank or 0] - ASIDE: row.scores[self.split] for row in self.cuts}


def _views(rows: Sequence[ScoreRow], others: Sequence[ScoreRow]) -> dict[str, _View]:
    """The view of each split, by one rule for all splits, so that their figures have the same scale."""
    splits = list(dict.fromkeys(split for row in rows for split in row.scores))
    trained = [row for row in rows if row.rank] or rows[:1]
    low, high = _range([score for row in trained for score in row.scores.values()])
    rest = [row for row in (*rows, *others) if not row.rank or row.cut_from]
    near = [row for row in rest if all(_is_near(row, split, low, high) for split in row.scores)]
    views = {}
    for split in splits:
        shown = [row for row in near if split in row.scores]
        below = [row for row in rest if split in row.scores and row not in near]
        ends = (low, high, *(100 * value for row in shown for value in _ends(row, split)))
        views[split] = _View(split, [row for row in rows if split in row.scores], shown, below, ends)
    return views


def _share_scale(axes: Axes, places: Mapping[int, float], views: Mapping[str, _View]) -> None:
    """Set the limits of the y axis so that every split fits, with room for the notes at the bottom."""
    ends = [end for view in views.values() for end in view.ends]
    room = max(max(ends) - min(ends), 0.4)
    lines = max(math.ceil(len(view.below) / 2) for view in views.values())
    axes.set_ylim(min(ends) - 0.08 * room - 0.09 * room * lines, max(ends) + 0.16 * room)
    crowded = [
        sum(not is_free for _, _, is_free in _name_places(axes, view.lines, view.taken(places)).values())
        for view in views.values()
    ]
    axes.set_ylim(bottom=axes.get_ylim()[0] - 0.09 * room * max(crowded))


def _accuracy_axes(figure: Figure, cuts: Sequence[ScoreRow]) -> Axes:
    """The axes; below a legend if there are two series."""
    shrunk = HEIGHT / (HEIGHT + (LEGEND if cuts else 0))
    axes = figure.add_axes((0.12, 0.155 * shrunk, 0.865, 0.815 * shrunk))
    if cuts:
        handles = [
            *axes.plot([], [], linestyle="none", marker="o", markersize=7, color=LIGHT["blue"]),
            *axes.plot([], [], **CUT),
        ]
        figure.legend(
            handles, ["trained at each rank", f"rank {cuts[0].cut_from}, cut after training"],
            loc="upper left", ncols=2, frameon=False, fontsize=8.5, bbox_to_anchor=(0.1, 1.0),
            borderpad=0, handletextpad=0.5,
        )  # fmt: skip
    return axes


def _cut_points(axes: Axes, places: Mapping[int, float], split: str, cuts: Sequence[ScoreRow]) -> None:
    """Draw the cuts left of the ranks, thinner and without numbers, which are in the table."""
    x = [places[row.rank or 0] - ASIDE for row in cuts]
    scores = [row.scores[split] for row in cuts]
    for place, score in zip(x, scores, strict=True):
        axes.plot(
            [place, place], [100 * score.low, 100 * score.high], color=CUT["color"], linewidth=1, alpha=0.5
        )
    axes.plot(x, [100 * score.accuracy for score in scores], **CUT)


def _named(row: ScoreRow, split: str) -> str:
    return f"{shorten(row.name, 28)} {100 * row.scores[split].accuracy:.1f}"


def _ends(row: ScoreRow, split: str) -> tuple[float, ...]:
    score = row.scores[split]
    return (score.accuracy,) if row.rank is None else (score.low, score.high)


def _range(scores: Sequence[Score]) -> tuple[float, float]:
    ends = [100 * value for score in scores for value in (score.low, score.high, *score.by_seed)]
    return min(ends), max(ends)


def _is_near(row: ScoreRow, split: str, low: float, high: float) -> bool:
    """Whether a row is close enough to the ranks to be drawn, and not too far below."""
    return min(100 * value for value in _ends(row, split)) >= low - STRETCH * max(high - low, 1.0)


def _places(ranks: Sequence[int]) -> dict[int, float]:
    """Rank -> position on the axis: its logarithm; rank 0 is left of all others."""
    logs = {rank: math.log2(rank) for rank in ranks if rank}
    left = min(logs.values(), default=0.0) - max(1.0, 0.2 * (max(logs.values(), default=0) or 1))
    return {rank: logs.get(rank, left) for rank in ranks}


def _rank_axis(axes: Axes, places: Mapping[int, float]) -> None:
    ordered = sorted(places.items(), key=lambda item: item[1])
    axes.set_xticks([place for _, place in ordered], [str(rank) for rank, _ in ordered])
    ends = [place for _, place in ordered]
    axes.set_xlim(ends[0] - 0.6, ends[-1] + 0.6)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("rank, logarithmic" + ("; 0 is the linear probe" if 0 in places else ""))
    if 0 in places and len(ends) > 1:
        axes.axvline((ends[0] + ends[1]) / 2, color=LIGHT["rule"], linewidth=0.8, linestyle=(0, (1, 2)))


def _point(axes: Axes, place: float, score: Score, marked: bool) -> None:
    color = LIGHT["orange" if marked else "blue"]
    axes.plot([place, place], [100 * score.low, 100 * score.high], color=color, linewidth=2.4, alpha=0.55)
    if score.spread is not None:
        shift = place + ASIDE
        axes.plot(
            [shift] * len(score.by_seed),
            [100 * each for each in score.by_seed],
            linestyle="none", marker="o", markersize=3, color=LIGHT["muted"], markerfacecolor="none",
        )  # fmt: skip
    axes.plot([place], [100 * score.accuracy], marker="D" if marked else "o", markersize=7, color=color)
    axes.annotate(
        f"{100 * score.accuracy:.1f}", (place, 100 * score.high), (0, 3), textcoords="offset points",
        ha="center", va="bottom", color=color, weight="bold" if marked else "normal",
    )  # fmt: skip


def _point_below(axes: Axes, place: float, score: Score) -> None:
    """Draw a rank 0 below the axis range as an arrow at the lower edge."""
    low, high = axes.get_ylim()
    axes.plot([place], [low + 0.035 * (high - low)], marker="v", markersize=7, color=LIGHT["blue"])
    axes.annotate(
        f"{100 * score.accuracy:.1f}", (place, low + 0.035 * (high - low)), (0, 6),
        textcoords="offset points", ha="center", color=LIGHT["blue"],
    )  # fmt: skip


Box = tuple[float, float, float, float]
"""Left, bottom, right and top, in inches from the lower left corner of the axes."""


Place = tuple[float, bool, bool]
"""Place of a line's label: its right end in inches, whether it is above the line, whether it is free."""


def _baseline_lines(axes: Axes, lines: Mapping[str, float], taken: Mapping[float, Score]) -> list[str]:
    """Draw a dashed, labeled line for each baseline; return the names that could not be placed.

    Args:
        axes: the axes, with limits set.
        lines: name -> height.
        taken: position on the axis -> score of each rank.
    """
    places = _name_places(axes, lines, taken)
    for k, (name, (right, above, is_free)) in enumerate(places.items()):
        axes.axhline(lines[name], color=LIGHT["muted"], linewidth=1, linestyle=DASHES[1 + k % 5], zorder=1)
        if is_free:
            axes.annotate(
                name, (right / _size(axes)[0], lines[name]), (0, 2 if above else -2),
                xycoords=("axes fraction", "data"), textcoords="offset points", ha="right",
                va="bottom" if above else "top", fontsize=8.5, color=LIGHT["muted"],
            )  # fmt: skip
    return [name for name, (_, _, is_free) in places.items() if not is_free]


def _name_places(axes: Axes, lines: Mapping[str, float], taken: Mapping[float, Score]) -> dict[str, Place]:
    """The place of each line's label, lowest line first."""
    to_inches = _inches(axes)
    boxes = [_point_box(to_inches, place, score) for place, score in taken.items()]
    boxes += [_line_box(to_inches, height) for height in lines.values()]
    places: dict[str, Place] = {}
    for name, height in sorted(lines.items(), key=lambda each: each[1]):
        places[name], box = _free_place(axes, name, height, boxes)
        boxes.append(box)
    return places


def _free_place(axes: Axes, name: str, height: float, taken: Sequence[Box]) -> tuple[Place, Box]:
    """The place of a label with the least overlap, as far right as possible, and its box."""
    long = width(name, 8.5)
    wide, line = _size(axes)[0], _inches(axes)(0, height)[1]
    rights = [wide - 0.1 * step for step in range(int((wide - long) / 0.1) + 1)] or [wide]
    found = []
    for right in rights:
        for above, bottom in ((True, line + 0.02), (False, line - 0.16)):
            box = right - long, bottom, right, bottom + 0.14
            found.append((sum(_overlap(box, other) for other in taken), right, above, box))
    shared, right, above, box = min(found, key=lambda each: each[0])
    return (right, above, shared == 0), box


def _overlap(one: Box, other: Box) -> float:
    """Overlap of two boxes in square inches."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, wide) * max(0.0, high)


def _point_box(to_inches: Callable[[float, float], tuple[float, float]], place: float, score: Score) -> Box:
    """The box of a rank's interval, the number above it, and the seed markers to its right."""
    (x, bottom), (_, top) = to_inches(place, 100 * score.low), to_inches(place, 100 * score.high)
    right = to_inches(place + ASIDE, 0)[0] + 0.04 if score.spread is not None else x
    return x - 0.17, bottom - 0.03, max(x + 0.17, right), top + 0.2


def _line_box(to_inches: Callable[[float, float], tuple[float, float]], height: float) -> Box:
    y = to_inches(0, height)[1]
    return 0.0, y - 0.01, math.inf, y + 0.01


def _size(axes: Axes) -> tuple[float, float]:
    """Width and height of the axes in inches."""
    return float(axes.bbox.width / axes.figure.dpi), float(axes.bbox.height / axes.figure.dpi)


def _inches(axes: Axes) -> Callable[[float, float], tuple[float, float]]:
    """Conversion from data coordinates to inches from the lower left corner of the axes."""
    (left, right), (low, high), (wide, tall) = axes.get_xlim(), axes.get_ylim(), _size(axes)
    return lambda x, y: (wide * (x - left) / (right - left), tall * (y - low) / (high - low))


def _notes(axes: Axes, crowded: Sequence[str], hidden: Sequence[str]) -> None:
    """Annotate the lower right corner with unlabeled lines and with values below the axis."""
    pairs = [" · ".join(hidden[i : i + 2]) for i in range(0, len(hidden), 2)]
    notes = [f"line: {name}" for name in crowded] + (["below: " + "\n".join(pairs)] if pairs else [])
    axes.annotate(
        "\n".join(notes), (0.99, 0.02), xycoords="axes fraction",
        ha="right", va="bottom", fontsize=8.5, color=LIGHT["muted"], linespacing=1.4,
    )  # fmt: skip


def runs_by_rank(runs: Sequence[tuple[str, Sequence[ScoreRow]]]) -> Drawing:
    """Validation accuracy against rank of several runs, each with its own color, marker and dash."""
    # Rank 0 is often so far below that the other ranks would be indistinguishable.
    runs = [(name, [row for row in rows if row.rank] or rows) for name, rows in runs]
    said = [
        f"{name}: "
        + ", ".join(f"rank {row.name} {100 * row.scores['validation'].accuracy:.2f} %" for row in rows)
        for name, rows in runs
    ]
    rows = math.ceil(len(runs) / 2)
    return Drawing(
        name="runs",
        title="Accuracy on the validation split, by run and rank",
        description="Accuracy with 95 % intervals. " + "; ".join(said) + ".",
        plot=partial(_plot_runs, runs=runs),
        size=(WIDTH, 3.0 + 0.2 * rows),
    )


def _plot_runs(figure: Figure, runs: Sequence[tuple[str, Sequence[ScoreRow]]]) -> None:
    legend = 0.2 * math.ceil(len(runs) / 2) / (3.0 + 0.2 * math.ceil(len(runs) / 2))
    axes = figure.add_axes((0.12, 0.155, 0.865, 0.815 - legend))
    places = _places(sorted({row.rank or 0 for _, rows in runs for row in rows}))
    for k, (name, rows) in enumerate(runs):
        shift = (k - (len(runs) - 1) / 2) * min(0.16, 0.6 / len(runs))
        x = [places[row.rank or 0] + shift for row in rows]
        scores = [row.scores["validation"] for row in rows]
        color = LIGHT[SERIES[(k + k // len(SERIES)) % len(SERIES)]]
        for place, score in zip(x, scores, strict=True):
            axes.plot([place, place], [100 * score.low, 100 * score.high], color=color, alpha=0.45)
        axes.plot(
            x, [100 * score.accuracy for score in scores], color=color, label=shorten(name, 26),
            marker=MARKERS[k % len(MARKERS)], linestyle=DASHES[k % len(DASHES)], linewidth=1,
        )  # fmt: skip
    _rank_axis(axes, places)
    axes.set_ylabel("validation accuracy, %")
    figure.legend(loc="upper left", ncols=2, frameon=False, fontsize=8.5, bbox_to_anchor=(0.1, 1.0))
