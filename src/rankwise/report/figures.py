"""The figures of a run. Each names its split, and says in words what it shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from rankwise.report.drawing import DASHES, LIGHT, MARKERS, SERIES, WIDTH, Drawing, shorten
from rankwise.report.scores import Row, Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NUMBERED = 12
"""Classes up to which a confusion matrix has room for its numbers."""
MOST_NAMED = 40
"""Classes up to which an axis has room for their names."""
MOST_BARS = 24
"""Classes that are shown by bars, the weakest of them where there are more."""
STRETCH = 2.0
"""How many times the height of the ranks' intervals may be added to show what lies far from them."""


def accuracy_by_rank(
    split: str, rows: Sequence[Row], references: Sequence[Row], marked: int | None
) -> Drawing:
    """Accuracy against rank, with 95 % intervals and lines for the references.

    Args:
        split: which one.
        rows: the ranks; rank 0, without a place on a logarithmic axis, stands apart.
        references: the reference rows.
        marked: a rank to point out.
    """
    ranks = [row for row in rows if split in row.scores]
    lines = [row for row in references if split in row.scores]
    several = any(row.scores[split].spread is not None for row in ranks)
    said = [f"rank {row.name}: {_said(row.scores[split])}" for row in ranks]
    said += [f"{row.name}: {100 * row.scores[split].accuracy:.2f} %" for row in lines]
    return Drawing(
        name=f"accuracy-{split}",
        title=f"Accuracy on the {split} split, by rank",
        description=f"Accuracy with 95 % interval over texts{' and seeds' if several else ''}. "
        + "; ".join(said)
        + ".",
        plot=partial(_plot_accuracy, split=split, rows=ranks, references=lines, marked=marked),
        size=(WIDTH, 3.1),
    )


def _said(score: Score) -> str:
    return f"{100 * score.accuracy:.2f} % ({100 * score.low:.1f} to {100 * score.high:.1f})"


def _plot_accuracy(
    figure: Figure, split: str, rows: Sequence[Row], references: Sequence[Row], marked: int | None
) -> None:
    axes = figure.add_axes((0.12, 0.155, 0.865, 0.815))
    places = _places([row.rank or 0 for row in rows])
    low, high = _range([row.scores[split] for row in rows if row.rank] or [rows[0].scores[split]])
    shown, hidden = _in_reach([row for row in rows if row.rank == 0] + list(references), split, low, high)
    inside = [100 * value for row in shown for value in _ends(row, split)]
    low, high = min([low, *inside]), max([high, *inside])
    room = max(high - low, 0.4)
    axes.set_ylim(low - 0.08 * room - 0.09 * room * math.ceil(len(hidden) / 2), high + 0.16 * room)
    for row in rows:
        if row.rank or row in shown:
            _point(axes, places[row.rank or 0], row.scores[split], marked == row.rank)
        else:
            _point_below(axes, places[0], row.scores[split])
    _reference_lines(axes, [row for row in references if row in shown], split)
    hidden = [row for row in hidden if row.rank is None]
    if hidden:
        _below(axes, [f"{shorten(row.name, 28)} {100 * row.scores[split].accuracy:.1f}" for row in hidden])
    _rank_axis(axes, places)
    axes.set_ylabel(f"{split} accuracy, %")


def _ends(row: Row, split: str) -> tuple[float, ...]:
    score = row.scores[split]
    return (score.accuracy,) if row.rank is None else (score.low, score.high)


def _range(scores: Sequence[Score]) -> tuple[float, float]:
    ends = [100 * value for score in scores for value in (score.low, score.high, *score.by_seed)]
    return min(ends), max(ends)


def _in_reach(rows: Sequence[Row], split: str, low: float, high: float) -> tuple[list[Row], list[Row]]:
    """Those near enough to the ranks to be drawn, and those far below, which would flatten the rest."""
    reach = low - STRETCH * max(high - low, 1.0)
    near = [row for row in rows if min(100 * value for value in _ends(row, split)) >= reach]
    return near, [row for row in rows if row not in near]


def _places(ranks: Sequence[int]) -> dict[int, float]:
    """Rank -> place on the axis: its logarithm, and for rank 0 one to the left of all others."""
    logs = {rank: math.log2(rank) for rank in ranks if rank}
    left = min(logs.values(), default=0.0) - max(1.0, 0.2 * (max(logs.values(), default=0) or 1))
    return {rank: logs.get(rank, left) for rank in ranks}


def _rank_axis(axes: Axes, places: Mapping[int, float]) -> None:
    ordered = sorted(places.items(), key=lambda item: item[1])
    axes.set_xticks([place for _, place in ordered], [str(rank) for rank, _ in ordered])
    ends = [place for _, place in ordered]
    axes.set_xlim(ends[0] - 0.6, ends[-1] + 0.6)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("rank, logarithmic" + ("; 0 is the head alone" if 0 in places else ""))
    if 0 in places and len(ends) > 1:
        axes.axvline((ends[0] + ends[1]) / 2, color=LIGHT["rule"], linewidth=0.8, linestyle=(0, (1, 2)))


def _point(axes: Axes, place: float, score: Score, marked: bool) -> None:
    colour = LIGHT["orange" if marked else "blue"]
    axes.plot([place, place], [100 * score.low, 100 * score.high], color=colour, linewidth=2.4, alpha=0.55)
    if score.spread is not None:
        shift = place + 0.16
        axes.plot(
            [shift] * len(score.by_seed),
            [100 * each for each in score.by_seed],
            linestyle="none", marker="o", markersize=3, color=LIGHT["muted"], markerfacecolor="none",
        )  # fmt: skip
    axes.plot([place], [100 * score.accuracy], marker="D" if marked else "o", markersize=7, color=colour)
    axes.annotate(
        f"{100 * score.accuracy:.1f}", (place, 100 * score.high), (0, 3), textcoords="offset points",
        ha="center", va="bottom", color=colour, weight="bold" if marked else "normal",
    )  # fmt: skip


def _point_below(axes: Axes, place: float, score: Score) -> None:
    """A rank 0 that lies below the axis: an arrow at its lower edge."""
    low, high = axes.get_ylim()
    axes.plot([place], [low + 0.035 * (high - low)], marker="v", markersize=7, color=LIGHT["blue"])
    axes.annotate(
        f"{100 * score.accuracy:.1f}", (place, low + 0.035 * (high - low)), (0, 6),
        textcoords="offset points", ha="center", color=LIGHT["blue"],
    )  # fmt: skip


def _reference_lines(axes: Axes, rows: Sequence[Row], split: str) -> None:
    """A dashed line each, its name above it, or below it where the next one is near."""
    low, high = axes.get_ylim()
    ordered = sorted(rows, key=lambda row: row.scores[split].accuracy)
    for k, row in enumerate(ordered):
        accuracy = 100 * row.scores[split].accuracy
        above = [100 * each.scores[split].accuracy for each in ordered[k + 1 : k + 2]]
        near = any(each - accuracy < 0.07 * (high - low) for each in above)
        axes.axhline(accuracy, color=LIGHT["muted"], linewidth=1, linestyle=DASHES[1 + k % 5], zorder=1)
        axes.annotate(
            f"{shorten(row.name, 34)} {accuracy:.1f}", (1, accuracy), (0, -2 if near else 2),
            xycoords=("axes fraction", "data"), textcoords="offset points", ha="right",
            va="top" if near else "bottom", fontsize=8.5, color=LIGHT["muted"],
        )  # fmt: skip


def _below(axes: Axes, names: Sequence[str]) -> None:
    """What lies below the axis, two to a line."""
    lines = [" · ".join(names[i : i + 2]) for i in range(0, len(names), 2)]
    axes.annotate(
        "below: " + "\n".join(lines), (0.99, 0.02), xycoords="axes fraction",
        ha="right", va="bottom", fontsize=8.5, color=LIGHT["muted"], linespacing=1.4,
    )  # fmt: skip


def runs_by_rank(runs: Sequence[tuple[str, Sequence[Row]]]) -> Drawing:
    """Validation accuracy against rank of several runs, each with a colour, marker and dash of its own."""
    # Rank 0 is often so far below that the ranks beside it could not be told apart.
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


def _plot_runs(figure: Figure, runs: Sequence[tuple[str, Sequence[Row]]]) -> None:
    legend = 0.2 * math.ceil(len(runs) / 2) / (3.0 + 0.2 * math.ceil(len(runs) / 2))
    axes = figure.add_axes((0.12, 0.155, 0.865, 0.815 - legend))
    places = _places(sorted({row.rank or 0 for _, rows in runs for row in rows}))
    for k, (name, rows) in enumerate(runs):
        shift = (k - (len(runs) - 1) / 2) * min(0.16, 0.6 / len(runs))
        x = [places[row.rank or 0] + shift for row in rows]
        scores = [row.scores["validation"] for row in rows]
        colour = LIGHT[SERIES[(k + k // len(SERIES)) % len(SERIES)]]
        for place, score in zip(x, scores, strict=True):
            axes.plot([place, place], [100 * score.low, 100 * score.high], color=colour, alpha=0.45)
        axes.plot(
            x, [100 * score.accuracy for score in scores], color=colour, label=shorten(name, 26),
            marker=MARKERS[k % len(MARKERS)], linestyle=DASHES[k % len(DASHES)], linewidth=1,
        )  # fmt: skip
    _rank_axis(axes, places)
    axes.set_ylabel("validation accuracy, %")
    figure.legend(loc="upper left", ncols=2, frameon=False, fontsize=8.5, bbox_to_anchor=(0.1, 1.0))


def confusion(split: str, whose: str, labels: Sequence[str], counts: Sequence[Sequence[float]]) -> Drawing:
    """A confusion matrix; a cell's depth is its share of the true label's texts.

    Args:
        split: which one.
        whose: the rank or adapter.
        labels: class names.
        counts: a row for each true label, a column for each predicted one.
    """
    matrix = np.array(counts, dtype=np.float64)
    right = float(np.trace(matrix) / max(matrix.sum(), 1))
    worst = confusions(labels, counts)[:3]
    said = "; ".join(f"{true} taken for {predicted}: {number:g}" for true, predicted, number, _ in worst)
    side = WIDTH if len(labels) <= MOST_NUMBERED else WIDTH + 0.9
    return Drawing(
        name=f"confusion-{split}",
        title=f"Confusion matrix of {whose} on the {split} split",
        description=f"{len(labels)} classes; {100 * right:.1f} % lie on the diagonal. "
        + (f"Most often confused: {said}." if said else "Nothing is confused."),
        plot=partial(_plot_confusion, labels=labels, matrix=matrix),
        size=(side, side * 0.92),
    )


def confusions(
    labels: Sequence[str], counts: Sequence[Sequence[float]]
) -> list[tuple[str, str, float, float]]:
    """Pairs that are confused, most often first: true label, predicted label, texts, share of the true."""
    found = [
        (labels[i], labels[j], row[j], row[j] / sum(row))
        for i, row in enumerate(counts)
        for j in range(len(row))
        if i != j and row[j]
    ]
    return sorted(found, key=lambda each: -each[2])


def _plot_confusion(figure: Figure, labels: Sequence[str], matrix: Any) -> None:
    from matplotlib.patches import Rectangle

    number = len(labels)
    named = number <= MOST_NAMED
    names = [shorten(label, 14) for label in labels] if named else []
    room = 0.05 + 0.018 * max((len(name) for name in names), default=4)
    axes = figure.add_axes((room + 0.04, room, 0.94 - room, 0.97 - room))
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = 9 if number <= 7 else 7
    for i, j in np.ndindex(number, number):
        share = float(shares[i, j])
        if share:
            axes.add_patch(
                Rectangle((j, i), 1, 1, facecolor=LIGHT["blue"], alpha=0.06 + 0.94 * share, linewidth=0)
            )
        if number <= MOST_NUMBERED and matrix[i, j]:
            colour = LIGHT["paper" if share > 0.5 else "ink"]
            text = f"{matrix[i, j]:,.0f}"
            axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", color=colour, fontsize=size)
    axes.set(xlim=(0, number), ylim=(number, 0), xlabel="predicted", ylabel="true")
    axes.spines[["top", "right"]].set_visible(True)
    axes.grid(visible=False)
    small = 9 if number <= 10 else 7 if number <= 20 else 5
    ticks = [i + 0.5 for i in range(number)] if named else []
    axes.set_xticks(ticks, names, rotation=90 if sum(map(len, names)) > 30 else 0, fontsize=small)
    axes.set_yticks(ticks, names, fontsize=small)
    axes.tick_params(length=0)


def per_class(split: str, whose: str, classes: Sequence[Mapping[str, Any]]) -> Drawing:
    """F1 of each class as bars, precision and recall as marks on them; the weakest classes first.

    Args:
        split: which one.
        whose: the rank or adapter.
        classes: `label`, `precision`, `recall`, `f1` and `texts` of each; fractions.
    """
    shown = sorted(classes, key=lambda each: each["f1"])[:MOST_BARS]
    said = [
        f"{each['label']}: F1 {100 * each['f1']:.1f} %, precision {100 * each['precision']:.1f} %, "
        f"recall {100 * each['recall']:.1f} %"
        for each in shown
    ]
    which = f" (the {len(shown)} weakest of {len(classes)})" if len(shown) < len(classes) else ""
    return Drawing(
        name=f"classes-{split}",
        title=f"Precision, recall and F1 of {whose} on the {split} split, by class{which}",
        description="; ".join(said) + ".",
        plot=partial(_plot_classes, classes=shown),
        size=(WIDTH, 0.85 + 0.3 * len(shown)),
    )


def _plot_classes(figure: Figure, classes: Sequence[Mapping[str, Any]]) -> None:
    names = [shorten(each["label"], 16) for each in classes]
    room = 0.06 + 0.0195 * max(len(name) for name in names)
    height = figure.get_figheight()
    axes = figure.add_axes((room, 0.42 / height, 0.96 - room, 1 - 0.72 / height))
    y = [len(classes) - i for i in range(len(classes))]
    f1, precision, recall = ([100 * each[name] for each in classes] for name in ("f1", "precision", "recall"))
    axes.barh(y, f1, height=0.62, color=LIGHT["blue"], alpha=0.35, label="F1")
    marks: dict[str, Any] = {"linestyle": "none", "markersize": 5.5, "markeredgewidth": 1.3}
    axes.plot(
        precision, y, marker="o", color=LIGHT["orange"], markerfacecolor="none", label="precision", **marks
    )
    axes.plot(recall, y, marker="|", color=LIGHT["ink"], label="recall", **(marks | {"markersize": 9}))
    for place, value in zip(y, f1, strict=True):
        axes.text(1.5, place, f"{value:.1f}", va="center", fontsize=9, color=LIGHT["ink"])
    axes.set_yticks(y, names)
    axes.set(xlim=(0, 101), ylim=(0.4, len(classes) + 0.6), xlabel="%")
    axes.grid(visible=False, axis="y")
    figure.legend(loc="upper right", ncols=3, frameon=False, fontsize=8.5, bbox_to_anchor=(0.98, 1.01))


def reliability(split: str, whose: str, bins: Sequence[Mapping[str, float]], ece: float) -> Drawing:
    """How often predictions of a confidence are right, and how many there are of it.

    Args:
        split: which one.
        whose: the rank or adapter.
        bins: `low`, `high`, `texts`, mean `confidence` and `accuracy` of each; fractions.
        ece: expected calibration error, a fraction.
    """
    filled = [each for each in bins if each["texts"]]
    said = [
        f"{100 * each['confidence']:.0f} % sure, {100 * each['accuracy']:.0f} % right "
        f"({each['texts']:g} texts)"
        for each in filled
    ]
    return Drawing(
        name=f"reliability-{split}",
        title=f"Reliability of {whose} on the {split} split",
        description=f"Expected calibration error {100 * ece:.2f} points. " + "; ".join(said) + ".",
        plot=partial(_plot_reliability, bins=filled, ece=ece),
        size=(WIDTH, 4.0),
    )


def _plot_reliability(figure: Figure, bins: Sequence[Mapping[str, float]], ece: float) -> None:
    axes = figure.add_axes((0.125, 0.34, 0.85, 0.62))
    below = figure.add_axes((0.125, 0.12, 0.85, 0.16), sharex=axes)
    confidence = [100 * each["confidence"] for each in bins]
    axes.plot([0, 100], [0, 100], color=LIGHT["muted"], linewidth=1, linestyle=DASHES[1])
    axes.text(24, 14, "dashed: as often right as sure", color=LIGHT["muted"], fontsize=8.5)
    axes.plot(confidence, [100 * each["accuracy"] for each in bins], marker="o", color=LIGHT["blue"])
    axes.text(0.03, 0.94, f"ECE {100 * ece:.2f} points", transform=axes.transAxes, va="top", weight="bold")
    axes.set(xlim=(0, 101), ylim=(0, 103), ylabel="right, %")
    axes.tick_params(labelbottom=False)
    middles = [50 * (each["low"] + each["high"]) for each in bins]
    widths = [92 * (each["high"] - each["low"]) for each in bins]
    below.bar(middles, [each["texts"] for each in bins], width=widths, color=LIGHT["blue"], alpha=0.45)
    below.set(xlabel="confidence, %", ylabel="texts")
    below.locator_params(axis="y", nbins=2)
    below.grid(visible=False, axis="x")
