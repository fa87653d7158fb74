"""What the report of a search says: its table, what mattered, the best settings, and how to use them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from rankwise.data.writers import csv_line
from rankwise.recipe import Recipe
from rankwise.report.drawing import LIGHT, WIDTH, Drawing, shorten
from rankwise.report.tables import Table, escape, percent
from rankwise.schema import Importance, SearchResults, SearchTrial
from rankwise.stats import importance
from rankwise.stats.wording import joined
from rankwise.store import files
from rankwise.store.run_folder import RunFolder, command

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CSV_COLUMNS = ("name", "rank", "share", "log_loss", "accuracy", "end", "diverged")
"""Columns of search.csv, besides one for each setting."""
SHOWN = 20
"""Maximum number of trials that the terminal shows."""
COLUMNS = 2
PANEL = 1.8
"""Height of a row of panels, inches."""
FEW = 50
"""Below this number of trials, the report says that the importances are rough."""
MOST_VALUES = 8
"""A setting with more values is drawn on a logarithmic axis, without medians."""
Losses = Mapping[str, float]
"""Name of a trial -> its log loss on the first rung, at most that of guessing."""


def write(folder: RunFolder, results: SearchResults) -> None:
    """Write search.md, search.csv and the figure of a search."""
    drawing = what_mattered(results)
    files.write_text(folder.path / "figures" / f"{drawing.name}.svg", drawing.standalone())
    files.write_bytes(folder.path / "figures" / f"{drawing.name}.png", drawing.files["png"])
    files.write_text(folder.path / "search.csv", search_csv(results))
    table = trial_table(results, len(results.trials))
    text = [
        f"# {escape(table.title)}",
        "\n\n".join(map(escape, sentences(results))),
        f"{table.markdown()}\n{escape(table.note)}",
        f"![What mattered](figures/{drawing.name}.svg)",
        escape(drawing.description),
        "```sh\n" + "\n".join(commands(folder, results)) + "\n```",
    ]
    files.write_text(folder.path / "search.md", "\n\n".join(text) + "\n")


def trial_table(results: SearchResults, most: int = SHOWN) -> Table:
    """One row per trial, best first: the settings that were searched, its result, and how it ended."""
    rows = [
        (
            *(_shown(_values(trial).get(name, "")) for name in results.searched),
            _part(trial.share),
            "" if trial.log_loss is None else f"{trial.log_loss:.3f}",
            "" if trial.accuracy is None else percent(trial.accuracy),
            _end(trial),
        )
        for trial in results.trials[:most]
    ]
    names = [name.replace("_", " ") for name in results.searched]
    left = len(results.trials) - len(rows)
    note = "Log loss and accuracy, in percent, on validation after the longest schedule completed."
    return Table(
        title=f"{results.base}, {results.texts['train']:,} training texts, {len(results.trials)} trials",
        columns=(*names, "schedule", "log loss", "accuracy", "end"),
        rows=rows,
        keys=len(names),
        note=note + (f" {left} more trials are in search.csv." if left else ""),
    )


def _end(trial: SearchTrial) -> str:
    if trial.end == "diverged":
        return f"diverged at step {trial.diverged:,}"
    return trial.end


def _part(share: float) -> str:
    """A share of the schedule: `1/9`, `1`, or `0`."""
    return f"{share:g}" if share in (0, 1) else f"1/{round(1 / share)}"


def _shown(value: Any) -> str:
    """A value of a setting.

    >>> [_shown(value) for value in (0.003, ("q_proj", "v_proj"), "ratio", None)]
    ['0.003', 'q_proj+v_proj', 'ratio', 'none']
    """
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return "+".join(map(str, value))
    return value if isinstance(value, str) else f"{value:g}"


def _values(trial: SearchTrial) -> dict[str, Any]:
    """The settings by name; a list, as JSON gives it, becomes a tuple."""
    own = {name: tuple(value) if isinstance(value, list) else value for name, value in trial.settings.items()}
    return {"rank": trial.rank, **own}


def search_csv(results: SearchResults) -> str:
    """The trials as CSV, best first, with unrounded fractions and every setting."""
    settings = list(dict.fromkeys(name for trial in results.trials for name in trial.settings))
    columns = [*CSV_COLUMNS[:2], *settings, *CSV_COLUMNS[2:]]
    rows = [trial.model_dump() | trial.settings for trial in results.trials]
    lines = [columns, *([_cell(row.get(name)) for name in columns] for row in rows)]
    return "".join(csv_line(cells, safe=True) for cells in lines)


def _cell(value: Any) -> Any:
    return _shown(value) if isinstance(value, list | tuple) else value


def best_trial(results: SearchResults) -> SearchTrial:
    """The trial with the lowest log loss on the full schedule."""
    return next(trial for trial in results.trials if trial.name == results.best)


def sentences(results: SearchResults) -> list[str]:
    """The best settings with their metrics, a warning if one is at the edge, and what mattered."""
    best, validation, test = best_trial(results), results.validation, results.test
    found = (
        f"The best trial has {best_settings(results)}. "
        f"Its validation accuracy is {percent(validation.accuracy)} % "
        f"and its log loss {best.log_loss:.3f}; both are slightly optimistic, as it was chosen by this split."
    )
    if test:
        found += (
            f" Its test accuracy is {percent(test.accuracy)} % "
            f"(95 % interval {percent(test.accuracy_low)} to {percent(test.accuracy_high)})."
        )
    return [found, *_at_edge(results), mattered(results)]


def best_settings(results: SearchResults) -> str:
    """The searched settings of the best trial, such as `rank 4 and learning rate 0.003`."""
    return joined([f"{name.replace('_', ' ')} {best_value(results, name)}" for name in _chosen(results)])


def best_value(results: SearchResults, setting: str) -> str:
    """The best trial's value of a setting; empty if it does not have the setting."""
    values = _values(best_trial(results))
    return _shown(values[setting]) if setting in values else ""


def _chosen(results: SearchResults) -> list[str]:
    """The searched settings that the best trial has."""
    return [name for name in results.searched if name in _values(best_trial(results))]


def _at_edge(results: SearchResults) -> list[str]:
    """A note if the best learning rate is the lowest or the highest of those tried."""
    if "learning_rate" not in results.searched:
        return []
    rates = [trial.settings["learning_rate"] for trial in results.trials]
    rate = best_trial(results).settings["learning_rate"]
    if rate not in (min(rates), max(rates)):
        return []
    edge = "lowest" if rate == min(rates) else "highest"
    return [f"The best learning rate is the {edge} one tried; one beyond it may be better."]


def mattered(results: SearchResults) -> str:
    """The importance of each setting, in a sentence."""
    first, *others = [(each.setting.replace("_", " "), 100 * each.share) for each in results.importances]
    shares = [f"the {first[0]} explains {first[1]:.0f} %"]
    shares += [f"the {name} {share:.0f} %" for name, share in others]
    rough = " With few trials, these shares are rough estimates." if len(results.trials) < FEW else ""
    return (
        f"Of the variance of the log loss after {_part(results.shares[0])} of the schedule, "
        f"{joined(shares)}.{rough}"
    )


def commands(folder: RunFolder, results: SearchResults) -> list[str]:
    """Commands that use the result: a sweep with the best settings, and predictions with its adapter."""
    return [results.command, command("predict", folder.adapters / results.best, "some text")]


def sweep_command(recipe: Recipe, rank: int, setting: Mapping[str, Any]) -> str:
    """The command that trains adapters with the settings of a trial, and those of the recipe otherwise."""
    chosen = recipe.replace(tune=False, learning_rates=None, vary={}, ranks=(rank,), **setting)
    words = []
    for name, value in chosen.flat().items():
        if value != Recipe.settings()[name].default:
            words += _option(name.replace("_", "-"), value)
    return command("sweep", *words)


def _option(name: str, value: Any) -> list[str]:
    """A setting as words of a command line.

    >>> _option("ranks", (1, 4)), _option("tune", False), _option("alpha", 2.0)
    (['--ranks', '1,4'], ['--no-tune'], ['--alpha', '2.0'])
    >>> _option("class-weights", {"joy": 2.0, "fear": 0.5})
    ['--class-weights', 'joy=2,fear=0.5']
    """
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, Mapping):
        value = tuple(f"{label}={weight:.15g}" for label, weight in value.items())
    return [f"--{name}", csv_line(value).rstrip("\n") if isinstance(value, tuple) else str(value)]


def importances(trials: Sequence[SearchTrial], classes: int) -> list[Importance]:
    """The importance of each setting that differs between trials, most important first."""
    losses = first_losses(trials, classes)
    settings = [_values(trial) for trial in trials]
    names = [name for name in settings[0] | settings[-1] if _differs(name, settings)]
    found = importance.importances(
        [{name: each.get(name) for name in names} for each in settings],
        np.array([losses[trial.name] for trial in trials]),
    )
    return [Importance(setting=name, share=share) for name, share in found.items()]


def _differs(name: str, settings: Sequence[Mapping[str, Any]]) -> bool:
    return len({str(each.get(name)) for each in settings}) > 1


def first_losses(trials: Sequence[SearchTrial], classes: int) -> Losses:
    """The log loss of each trial on the first rung, which is the only one that all trials were trained on.

    Losses above that of guessing, log(classes), count as that, as do those of trials that diverged: otherwise
    a single useless trial would outweigh the differences between good ones.
    """
    ceiling = guessing(trials, classes)
    return {
        trial.name: ceiling if trial.log_losses[0] is None else min(trial.log_losses[0], ceiling)
        for trial in trials
    }


def guessing(trials: Sequence[SearchTrial], classes: int) -> float:
    """The log loss of guessing; if half of the trials are worse, that of the median trial."""
    known = [trial.log_losses[0] for trial in trials if trial.log_losses[0] is not None]
    return max(math.log(classes), float(np.median(known)))


def what_mattered(results: SearchResults) -> Drawing:
    """Log loss of every trial against each searched setting, a panel for each, the most important first."""
    rows = math.ceil(len(results.importances) / COLUMNS)
    best, part = best_trial(results), _part(results.shares[0])
    return Drawing(
        name="search",
        title=f"Log loss on validation after {part} of the schedule, by setting",
        description=f"{mattered(results)} The share is the main effect in a functional analysis of variance "
        "on a random forest (Hutter et al. 2014); the rest is due to combinations of settings. Each point is "
        "a trial, each bar the median of a value. The diamond is the best trial after the full schedule, "
        f"{best.name}. Triangles at the top are trials no better than guessing, or that diverged.",
        plot=partial(_plot, results=results),
        size=(WIDTH, PANEL * rows),
    )


def _plot(figure: Figure, results: SearchResults) -> None:
    losses, ceiling = (
        first_losses(results.trials, len(results.labels)),
        guessing(results.trials, len(results.labels)),
    )
    high, above = figure.get_figheight(), None
    for i, each in enumerate(results.importances):
        row, column = divmod(i, COLUMNS)
        bottom = high - PANEL * (row + 1) + 0.33
        place = (0.12 + 0.46 * column, bottom / high, 0.4, (PANEL - 0.62) / high)
        axes = above = figure.add_axes(place, sharey=above)
        axes.tick_params(labelleft=not column)
        _panel(axes, each, results, losses, ceiling)
        if not column:
            axes.set_ylabel("log loss")


def _panel(axes: Axes, shown: Importance, results: SearchResults, losses: Losses, ceiling: float) -> None:
    """One setting: a point for each trial, the median of each value, and the best trial."""
    name = shown.setting
    places = _axis(axes, [_values(trial).get(name) for trial in results.trials])
    heights = [losses[trial.name] for trial in results.trials]
    for is_top, marker, color in ((False, "o", "blue"), (True, "^", "muted")):
        chosen = [i for i, height in enumerate(heights) if (height >= ceiling) == is_top]
        axes.plot(
            [places[i] for i in chosen], [heights[i] for i in chosen], linestyle="none", marker=marker,
            markersize=4, color=LIGHT[color], markerfacecolor="none",
        )  # fmt: skip
    if len(set(places)) <= MOST_VALUES:
        _medians(axes, places, heights)
    best = next(i for i, trial in enumerate(results.trials) if trial.name == results.best)
    axes.plot([places[best]], [heights[best]], marker="D", markersize=6, color=LIGHT["orange"])
    axes.set_title(
        f"{name.replace('_', ' ')}, {100 * shown.share:.0f} %", loc="left", fontsize=9.5, color=LIGHT["ink"]
    )


def _axis(axes: Axes, values: Sequence[Any]) -> list[float]:
    """Set up the axis of a setting; the place of each trial on it.

    Few values are evenly spaced. Many, which are random learning rates, are on a logarithmic axis.
    """
    distinct = sorted(set(values), key=lambda value: (value is None, isinstance(value, str), value or 0))
    numbers = all(isinstance(value, int | float) and value > 0 for value in distinct)
    if len(distinct) > MOST_VALUES and numbers:
        places = [math.log10(value) for value in values]
        ticks = _ticks(min(places), max(places))
        axes.set_xticks(ticks, [f"{10**tick:.0g}" for tick in ticks])
        return places
    axes.set_xticks(range(len(distinct)), [shorten(_shown(value), 12) for value in distinct])
    axes.set_xlim(-0.5, len(distinct) - 0.5)
    return [float(distinct.index(value)) for value in values]


def _ticks(low: float, high: float) -> list[float]:
    """Decades between two logarithms; if they are close, 1 and 3 times those.

    >>> _ticks(-3.1, -1.0), [round(10**tick, 3) for tick in _ticks(-2.5, -1.5)]
    ([-3.0, -2.0, -1.0], [0.01, 0.03])
    """
    decades = [float(each) for each in range(math.floor(low), math.ceil(high) + 1)]
    finer = [decade + shift for decade in decades for shift in (0.0, math.log10(3))]
    inside = [[tick for tick in ticks if low <= tick <= high] for ticks in (decades, finer)]
    return inside[0] if len(inside[0]) > 1 else inside[1]


def _medians(axes: Axes, places: Sequence[float], heights: Sequence[float]) -> None:
    for place in sorted(set(places)):
        own = [height for here, height in zip(places, heights, strict=True) if here == place]
        middle = float(np.median(own))
        axes.plot([place - 0.3, place + 0.3], [middle, middle], color=LIGHT["ink"], linewidth=1.2)
