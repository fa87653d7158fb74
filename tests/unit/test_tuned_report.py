"""How a tuning is shown: tables, figure, page, cards, and the learning rates in the verdict."""

from __future__ import annotations

import csv
import io
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text

from rankwise.recipe import Recipe
from rankwise.report import build, html
from rankwise.report.drawing import Drawing, _settings
from rankwise.report.ranks import compare
from rankwise.report.run import load
from rankwise.report.tables import rank_csv, rank_table
from rankwise.report.tuning import about, chosen_table, chosen_trials, trials_csv, trials_table
from rankwise.report.tuning_figure import LINE, _ticks, spread, tuning_figure
from rankwise.schema import Timing, Tuning
from rankwise.stats.wording import explain_rates
from rankwise.store.run_folder import RunFolder
from tests.made import made_run
from tests.tuned import made_tuning, tune
from tests.unit.page import Page

OTHERS = {"weight_decay": (0.0, 0.1), "targets": (["q_proj", "v_proj"], ["<b>all</b>"])}
SHAPES = {
    "several ranks": made_tuning(),
    "one rank, one rate": made_tuning({4: 1e-3}, rates=(1e-3,), added=(), finalists=0),
    "other settings": made_tuning({1: 9e-3, 4: 3e-3}, others=OTHERS),
    "only the full schedule": made_tuning({1: 9e-3}).model_copy(
        update={"trials": [each for each in made_tuning({1: 9e-3}).trials if each.rung == 2]}
    ),
    "log losses near zero": made_tuning({1: 9e-3}).model_copy(
        update={
            "trials": [
                each.model_copy(update={"log_loss": each.log_loss and each.log_loss / 300})
                for each in made_tuning({1: 9e-3}).trials
            ]
        }
    ),
    "twelve ranks": made_tuning({2**k: 2e-3 for k in range(12)}, rates=(1e-5, 3e-5, 1e-4, 3e-4, 1e-3)),
}
every_shape = pytest.mark.parametrize("tuning", SHAPES.values(), ids=SHAPES)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = made_run(tmp_path_factory.mktemp("made") / "tuned")
    tune(run, made_tuning())
    build.rebuild(run)
    return run


def page(run: RunFolder) -> Page:
    return Page((run.path / "report.html").read_text("utf-8"))


def figure(tuning: Tuning) -> Drawing:
    found = tuning_figure(tuning)
    assert found is not None
    return found


def test_each_rank_has_a_row_with_its_settings_and_the_scores_of_its_trial() -> None:
    tuning = made_tuning()
    table, trials = chosen_table(tuning), chosen_trials(tuning)
    assert table.columns == ("rank", "learning rate", "log loss", "accuracy", "trials", "note")
    for row, each in zip(table.rows, tuning.chosen, strict=True):
        trial = trials[each.rank]
        assert trial.log_loss is not None and trial.accuracy is not None
        assert trial.rung == 2 and trial.rank == each.rank
        assert row[:5] == (
            str(each.rank),
            f"{each.settings['learning_rate']:g}",
            f"{trial.log_loss:.4f}",
            f"{100 * trial.accuracy:.2f}",
            str(sum(other.rank == each.rank for other in tuning.trials)),
        )
        assert ("at the edge" in row[5]) == each.at_edge and "wider grid" in row[5]
    assert "At the edge: " in table.note and "Wider grid: " in table.note


def test_notes_are_explained_only_if_there_are_any() -> None:
    table = chosen_table(made_tuning({4: 1.1e-3}, added=()))
    assert table.columns[-1] == "trials" and len(table.rows[0]) == len(table.columns)
    assert "edge" not in table.note and "grid" not in table.note


def test_a_rank_with_a_lower_rate_than_the_best_has_a_note() -> None:
    tuning = made_tuning({4: 1.1e-3}, added=())
    full = [each for each in tuning.trials if each.rung == 2]
    second = max(full, key=lambda each: each.log_loss or 0)
    taken = tuning.chosen[0].model_copy(update={"trial": second.name, "settings": second.settings})
    table = chosen_table(tuning.model_copy(update={"chosen": [taken]}))
    assert table.rows[0][-1] == "lower rate" and "Lower rate: a higher learning rate" in table.note


def test_every_trial_has_a_row_in_order() -> None:
    tuning = made_tuning({8: 2e-3, 1: 9e-3}, others=OTHERS)
    table = trials_table(tuning)
    assert table.columns == (
        "rank", "rung", "learning rate", "weight decay", "target modules", "passes", "log loss",
        "standard error", "accuracy", "diverged at step", "note",
    )  # fmt: skip
    assert len(table.rows) == len(tuning.trials)
    places = [(int(row[0]), int(row[1]), float(row[2])) for row in table.rows]
    assert places == sorted(places)
    assert [row[0] for row in table.rows if "chosen" in row[10]] == ["1", "8"]
    lost = [row for row in table.rows if row[9]]
    assert len(lost) == sum(each.diverged is not None for each in tuning.trials) > 0
    assert {row[6:10] for row in lost} == {("", "", "", "37")}
    assert {row[2] for row in table.rows if "added" in row[10]} == {"0.03"}


def test_the_csv_has_every_trial_unrounded() -> None:
    tuning = made_tuning({1: 9e-3, 8: 2e-3}, others=OTHERS)
    rows = list(csv.DictReader(io.StringIO(trials_csv(tuning))))
    by_name = {each.name: each for each in tuning.trials}
    assert len(rows) == len(by_name) == len(tuning.trials)
    for row in rows:
        trial = by_name[row["name"]]
        assert float(row["learning_rate"]) == trial.settings["learning_rate"]
        assert float(row["passes"]) == trial.epochs
        assert (row["log_loss"], row["diverged"]) == (
            ("", "37") if trial.log_loss is None else (repr(trial.log_loss), "")
        )
    chosen = [row["name"] for row in rows if row["chosen"] == "true"]
    assert chosen == [each.trial for each in tuning.chosen]


def test_the_caption_says_what_was_tuned_on_what() -> None:
    text = about(made_tuning())
    assert "the learning rate that had the lowest log loss on 1,600 tuning texts" in text
    assert "validation was not used" in text and "the figure shows" not in text
    several = about(made_tuning({1: 9e-3}, others=OTHERS))
    assert "learning rate, weight decay and target modules" in several
    assert "At each learning rate, the figure shows the best weight decay and target modules." in several
    assert "figure" not in about(made_tuning({1: 9e-3}, rates=(), added=(), others={"epochs": (1, 2)}))


def test_the_figure_says_its_values() -> None:
    tuning = made_tuning()
    shown = figure(tuning)
    for trial in tuning.trials:
        rate = trial.settings["learning_rate"]
        said = f"diverged at {rate:g}" if trial.log_loss is None else f"{trial.log_loss:.3f} at {rate:g}"
        part = next(each for each in shown.description.split("; ") if f"rank {trial.rank}: " in each)
        assert said in part
    for each in tuning.chosen:
        assert f"rank {each.rank}: " in shown.description
    assert "tuning texts" in shown.title


def test_a_rate_has_the_best_of_the_other_settings() -> None:
    tuning = made_tuning({4: 3e-3}, others=OTHERS)
    first = [each for each in tuning.trials if each.rung == 1 and each.settings["learning_rate"] == 1e-3]
    losses = sorted(f"{each.log_loss:.3f} at 0.001" for each in first)
    assert len(set(losses)) > 1
    assert [loss in figure(tuning).description for loss in losses] == [True] + [False] * (len(losses) - 1)


def test_a_rate_diverged_only_if_all_its_trials_did() -> None:
    tuning = made_tuning({4: 3e-3}, added=(0.1,), others={"weight_decay": (0.0, 0.1)})
    assert "diverged at 0.1" in figure(tuning).description
    spared = next(each for each in tuning.trials if each.log_loss is None)
    spared.log_loss, spared.diverged = 1.25, None
    text = figure(tuning).description
    assert "1.250 at 0.1" in text and "diverged" not in text


def test_each_rank_that_diverged_has_a_cross() -> None:
    tuning = made_tuning({1: 9e-3, 4: 3e-3, 16: 2e-3}, added=(0.03, 0.09))
    lost = {(each.rank, each.settings["learning_rate"]) for each in tuning.trials if each.diverged}
    drawing = figure(tuning)
    with _settings("x"):
        drawn = drawing._figure(drawing.plot)
        axes = drawn.axes[0]
        crosses = [line for line in axes.lines if line.get_marker() == "x"]
        points = np.concatenate([np.asarray(line.get_xydata(), dtype=float) for line in crosses])
    assert len(points) == len(np.unique(points[:, 0])) == len(lost) == 4
    assert points[:, 1] == pytest.approx(axes.get_ylim()[1])


def test_without_learning_rates_there_is_no_figure() -> None:
    tuning = made_tuning({1: 9e-3, 4: 3e-3}, rates=(), added=(), others={"weight_decay": (0.0, 0.1)})
    assert tuning_figure(tuning) is None
    assert chosen_table(tuning).columns[:2] == ("rank", "weight decay")


@every_shape
def test_no_text_of_the_figure_overlaps_another_or_leaves_it(tuning: Tuning) -> None:
    drawing = figure(tuning)
    with _settings("x"):
        drawn = drawing._figure(drawing.plot)
        drawn.draw_without_rendering()
        size = drawn.bbox
        boxes = {
            each.get_text(): each.get_window_extent()
            for each in drawn.findobj(Text)
            if each.get_text() and each.get_visible()
        }
    assert {f"rank {each.rank}" for each in tuning.chosen} <= set(boxes)
    outside = [
        text for text, box in boxes.items()
        if box.x0 < 0 or box.y0 < 0 or box.x1 > size.x1 or box.y1 > size.y1
    ]  # fmt: skip
    assert outside == []
    shared = [
        (one, other)
        for (one, a), (other, b) in combinations(boxes.items(), 2)
        if min(a.x1, b.x1) > max(a.x0, b.x0) + 0.5 and min(a.y1, b.y1) > max(a.y0, b.y0) + 0.5
    ]
    assert shared == []


@every_shape
def test_any_tuning_can_be_drawn(tuning: Tuning) -> None:
    drawing = figure(tuning)
    assert "nan" not in drawing.inline().lower() and drawing.files["png"]
    has_full = any(each.rung > 1 for each in tuning.trials)
    assert ("full schedule" in drawing.inline()) == has_full
    assert ("diverged" in drawing.inline().partition("</desc>")[2]) == any(
        each.diverged for each in tuning.trials
    )


def test_a_log_loss_of_zero_can_be_drawn() -> None:
    tuning = made_tuning({1: 9e-3})
    for each in tuning.trials:
        each.log_loss = 0.0 if each.log_loss is not None else None
    assert "0.000 at 0.01" in figure(tuning).description
    assert figure(tuning).files["png"]


@pytest.mark.parametrize("places", [[0.1, 0.1, 0.1], [0.0, 1.0, 1.05, 2.0], [2.0] * 6, [0.5]])
def test_names_are_spread_no_further_than_needed(places: list[float]) -> None:
    found = spread(places, LINE, 2.0)
    assert all(b - a >= LINE - 1e-6 for a, b in pairwise(found))
    assert found[0] >= 0 and found[-1] <= 2.0
    if all(b - a >= LINE for a, b in pairwise(places)):
        assert found == places


@pytest.mark.parametrize(("low", "high"), [(0.2, 1.9), (0.30, 0.33), (0.001, 40.0), (0.69, 0.7)])
def test_ticks_are_inside_the_axis_and_few(low: float, high: float) -> None:
    found = _ticks(low, high)
    assert all(low <= tick <= high for tick in found) and sorted(set(found)) == found
    assert 2 <= len(found) <= 8


def test_the_page_shows_the_tuning_before_the_ranks(made: RunFolder) -> None:
    shown = page(made)
    titles = [name for level, name in shown.headings if level == 2]
    assert titles[:2] == ["Tuning", "Accuracy against rank"]
    assert build.tell(load(made)).drawings[0].name == "tuning"
    assert about(made_tuning()) in shown.text
    for table in (chosen_table(made_tuning()), trials_table(made_tuning())):
        assert table.note in shown.text
        assert all(cell in shown.text for row in table.rows for cell in row)
    assert ("a", "href", "#tuning") in shown.attributes and "tuning" in shown.ids
    assert (made.path / "figures" / "tuning.svg").exists()
    assert (made.path / "tuning.csv").read_text("utf-8") == trials_csv(made_tuning())
    assert "`tuning.csv`" in (made.path / "README.md").read_text("utf-8")


def test_without_a_tuning_nothing_is_said_of_it(tmp_path: Path) -> None:
    made = made_run(tmp_path / "run", accuracies={4: 0.9}, seeds=(0,))
    build.rebuild(made)
    assert "uning" not in page(made).text
    assert not (made.path / "tuning.csv").exists() and not (made.path / "figures" / "tuning.svg").exists()
    assert "tuning" not in (made.path / "README.md").read_text("utf-8")


def test_hostile_settings_stay_text(tmp_path: Path) -> None:
    made = made_run(tmp_path / "run", accuracies={1: 0.8, 4: 0.9}, seeds=(0,))
    tune(made, made_tuning({1: 9e-3, 4: 3e-3}, others=OTHERS))
    build.rebuild(made)
    assert "<b>all</b>" in page(made).text and page(made).tags["b"] == 0


def test_the_verdict_names_the_rate_of_each_rank(made: RunFolder) -> None:
    text = compare(load(made)).verdict
    assert text.endswith(
        "Each rank was trained at its own learning rate, chosen on 1,600 texts of train: "
        "rank 1 at 0.01, ranks 2 to 16 at 0.003."
    )
    assert "By default, a sweep tunes" not in text


def test_the_verdict_tells_of_a_choice_at_the_edge(tmp_path: Path) -> None:
    made = made_run(tmp_path / "run", accuracies={1: 0.8, 2: 0.9, 4: 0.9}, seeds=(0, 1))
    tune(made, made_tuning({1: 9e-3, 2: 9e-3, 4: 3e-3}, added=()))
    text = compare(load(made)).verdict
    assert "ranks 1 and 2 at 0.01, rank 4 at 0.003. The best rates of ranks 1 and 2 are at the edge" in text


def test_rates_that_were_not_tuned(tmp_path: Path) -> None:
    made = made_run(tmp_path / "run", accuracies={1: 0.8, 4: 0.9}, seeds=(0, 1))
    shared = compare(load(made)).verdict
    assert "at the learning rate 0.001, which was not tuned for each rank" in shared
    assert shared.endswith("By default, a sweep tunes the rates.")
    tune(made, made_tuning({1: 9e-3, 4: 3e-3}, rates=(), added=(), others={"weight_decay": (0.0, 0.1)}))
    assert compare(load(made)).verdict == shared
    given = explain_rates({1: 0.01, 4: 0.003}, None)
    assert "rank 1 at 0.01, rank 4 at 0.003" in given and "not tuned" in given


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ({1: 0.01, 2: 0.003, 4: 0.01}, "rank 1 at 0.01, rank 2 at 0.003, rank 4 at 0.01"),
        ({8: 3e-5, 1: 1.0, 2: 3e-5, 4: 3e-5}, "rank 1 at 1, ranks 2 to 8 at 3e-05"),
    ],
)
def test_neighbors_with_the_same_rate_are_joined(rates: dict[int, float], said: str) -> None:
    assert explain_rates(rates, 2_000).endswith(f"chosen on 2,000 texts of train: {said}.")


def test_one_rate_for_all_ranks_is_no_rate_of_its_own() -> None:
    text = explain_rates({1: 0.01, 2: 0.01}, 2_000)
    assert text == (
        "The learning rate of each rank was chosen on 2,000 texts of train, and is 0.01 for all of them."
    )


def test_one_rate_at_the_edge() -> None:
    text = explain_rates({1: 0.01, 4: 0.003}, 10, [4])
    assert text.endswith(
        "The best rate of rank 4 is at the edge of those tried: a better one may lie beyond."
    )


def test_a_cut_has_the_rate_of_the_rank_that_was_trained(tmp_path: Path) -> None:
    made = made_run(tmp_path / "run", accuracies={1: 0.8, 4: 0.9}, seeds=(0, 1), cuts={1: 0.85})
    tune(made, made_tuning({1: 9e-3, 4: 3e-3}))
    assert {row[0]: row[-1] for row in rank_table(load(made)).rows if row[-1]} == {
        "1": "0.01",
        "4": "0.003",
        "4 cut to 1": "0.003",
    }
    rows = csv.DictReader(io.StringIO(rank_csv(load(made))))
    assert [row["learning_rate"] for row in rows if row["kind"] == "cut"] == ["0.003"]


def test_the_rank_table_has_a_column_where_rates_differ(made: RunFolder, tmp_path: Path) -> None:
    table, rates = rank_table(load(made)), load(made).learning_rates
    assert table.columns[-1] == "learning rate"
    assert {row[0]: row[-1] for row in table.rows if row[-1]} == {
        str(rank): f"{rate:g}" for rank, rate in rates.items()
    }
    assert len({len(row) for row in table.rows} | {len(table.columns)}) == 1
    rows = list(csv.DictReader(io.StringIO(rank_csv(load(made)))))
    for row in rows:
        expected = "" if row["kind"] == "baseline" else str(rates[int(row["rank"])])
        assert row["learning_rate"] == expected
    same = made_run(tmp_path / "run", accuracies={1: 0.8, 4: 0.9}, seeds=(0,))
    tune(same, made_tuning({1: 3e-3, 4: 3e-3}))
    assert "learning rate" not in rank_table(load(same)).columns
    assert "learning_rate" not in rank_csv(load(same)).partition("\n")[0]


def test_a_model_card_has_the_settings_of_its_own_adapter(made: RunFolder) -> None:
    assert Recipe.load(made.recipe).train.learning_rate not in (0.003, 0.01)
    for name, rate in (("r1-s0", 0.01), ("r16-s2", 0.003)):
        text = (made.adapters / name / "README.md").read_text("utf-8")
        assert f"\nlearning_rate = {rate}\n" in text and "some of them tuned" in text


def test_the_cost_counts_the_epochs_of_each_rank(tmp_path: Path) -> None:
    made = made_run(tmp_path / "run", accuracies={1: 0.8, 4: 0.9}, seeds=(0,))
    tuning = made_tuning({1: 9e-3, 4: 3e-3}, rates=(), added=(), others={"epochs": (2, 3)})
    results = tune(made, tuning)
    seconds = Timing.model_validate_json(made.timing.read_text("utf-8")).train_seconds["r1-s0"]
    assert results.adapters[0].settings == {"epochs": 2}
    assert html._cost(load(made)).rows[0][-1] == f"{results.texts['train'] * 2 / seconds:,.0f}"
