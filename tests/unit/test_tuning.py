"""Which trials each rank gets, and which settings it keeps; and tuning as a stage of a sweep."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rankwise import Recipe, TrainingError, UsageError, sweep
from rankwise.recipe import VARIABLE
from rankwise.schema import Trial
from rankwise.store.run_folder import RunFolder
from rankwise.training.data import hold_out
from rankwise.tuning import PlannedTrial, chosen, cost, fewest_epochs, label, next_trials, tuning_size
from tests import tiny
from tests.unit.test_resume import Stop, stopped

Loss = Callable[[PlannedTrial], float | None]
RATES = (3e-4, 1e-3, 3e-3, 1e-2)


def bowl(best: float, best_of_full: float | None = None, limit: float = math.inf) -> Loss:
    """A loss that is quadratic in the logarithm of the learning rate, and infinite above a limit."""

    def loss(trial: PlannedTrial) -> float | None:
        rate = trial.setting["learning_rate"]
        low = best if trial.rung == 1 else best_of_full or best
        return None if rate > limit else 0.3 + math.log10(rate / low) ** 2

    return loss


def search(
    recipe: Recipe,
    ranks: Sequence[int],
    loss: Loss,
    done: Sequence[Trial] = (),
    share: float = 0.25,
    error: float = 0.0,
) -> list[Trial]:
    """All trials of a recipe with made losses, which have the same standard error."""
    trials = list(done)
    while planned := next_trials(recipe, ranks, trials, share):
        for each in planned:
            found = loss(each)
            trials.append(
                Trial(
                    name=each.name,
                    rank=each.rank,
                    rung=each.rung,
                    settings=dict(each.setting),
                    epochs=each.share,
                    log_loss=found,
                    log_loss_error=None if found is None else error,
                    accuracy=None if found is None else 0.5,
                    diverged=3 if found is None else None,
                    added=each.added,
                )
            )
    return trials


def rates(trials: Sequence[Trial], rung: int) -> list[float]:
    return [trial.settings["learning_rate"] for trial in trials if trial.rung == rung]


def test_an_optimum_within_the_grid() -> None:
    """The two best go on; the rates on either side of the better one are tried on the full schedule too."""
    trials = search(Recipe(learning_rates=RATES), [4], bowl(1.2e-3))
    assert rates(trials, 1) == list(RATES)
    assert rates(trials, 2) == [1e-3, 3e-3, 3e-4]
    (found,) = chosen([4], trials)
    assert (found.settings, found.trial, found.at_edge) == (
        {"learning_rate": 1e-3},
        "tune2-r4-lr1e-3",
        False,
    )


def test_the_lowest_rate_within_one_standard_error() -> None:
    """The best rate, 1e-3, has a log loss of 0.306, 3e-4 one of 0.662, and 3e-3 one of 0.458."""
    recipe = Recipe(learning_rates=RATES)
    for error, rate in ((0.0, 1e-3), (0.2, 1e-3), (0.35, 1e-3), (0.36, 3e-4), (9.0, 3e-4)):
        (found,) = chosen([4], search(recipe, [4], bowl(1.2e-3), error=error))
        assert (found.settings["learning_rate"], found.trial[:5], found.at_edge) == (rate, "tune2", False)


def test_the_lower_rate_has_the_best_trials_other_settings() -> None:
    """A lower rate with other settings is another trade, and is not taken."""
    recipe = Recipe(learning_rates=RATES, vary={"alpha": (1.0, 2.0)})

    def loss(trial: PlannedTrial) -> float:
        return (bowl(1.2e-3)(trial) or 0) + (0.1 if trial.setting["alpha"] == 1.0 else 0)

    trials = search(recipe, [4], loss, error=0.2)
    assert chosen([4], trials)[0].settings == {"learning_rate": 1e-3, "alpha": 2.0}
    lower = [t for t in trials if t.settings == {"learning_rate": 1e-3, "alpha": 1.0} and t.rung == 2]
    assert [t.log_loss < 0.306 + 0.2 for t in lower if t.log_loss is not None] == [True]


@pytest.mark.parametrize(("best", "added"), [(0.05, [0.033, 0.11]), (2e-5, [9e-5, 2.7e-5, 8.1e-6])])
def test_an_optimum_beyond_the_grid(best: float, added: list[float]) -> None:
    """Rates are added in the steps of the grid until one is worse, three at most."""
    trials = search(Recipe(learning_rates=RATES, finalists=1), [4], bowl(best))
    assert rates(trials, 1) == [*RATES, *added]
    assert [trial.added for trial in trials] == [False] * 4 + [True] * len(added)
    (found,) = chosen([4], trials)
    assert abs(math.log(found.settings["learning_rate"] / best)) < math.log(10 / 3)
    assert not found.at_edge


def test_an_optimum_too_far_beyond_the_grid_is_reported() -> None:
    (found,) = chosen([4], search(Recipe(learning_rates=RATES, finalists=1), [4], bowl(100.0)))
    assert found.settings == {"learning_rate": 0.37} and found.at_edge


def test_the_full_schedule_has_the_last_word() -> None:
    """Its optimum is two steps lower than that of the short schedule."""
    trials = search(Recipe(learning_rates=RATES), [4], bowl(9e-3, best_of_full=1.1e-3))
    assert rates(trials, 1) == [*RATES, 0.033]
    assert rates(trials, 2) == [1e-2, 3e-3, 1e-3, 3e-4]
    (found,) = chosen([4], trials)
    assert found.settings == {"learning_rate": 1e-3} and not found.at_edge


def test_rates_that_diverge_bracket_the_best_one() -> None:
    """Nothing above a rate that diverged is tried, on either schedule."""
    trials = search(Recipe(learning_rates=RATES), [4], bowl(1e-2, limit=5e-3))
    assert rates(trials, 1) == list(RATES)
    assert rates(trials, 2) == [3e-3, 1e-3]
    (found,) = chosen([4], trials)
    assert found.settings == {"learning_rate": 3e-3} and not found.at_edge


def test_if_every_rate_diverges_lower_ones_are_tried() -> None:
    trials = search(Recipe(learning_rates=RATES), [4], bowl(1e-4, limit=2e-4))
    assert rates(trials, 1) == [*RATES, 9e-5, 2.7e-5]
    assert chosen([4], trials)[0].settings == {"learning_rate": 9e-5}
    hopeless = search(Recipe(learning_rates=RATES), [4], lambda trial: None)
    assert rates(hopeless, 2) == []
    assert chosen([4], hopeless)[0].settings == {"learning_rate": 8.1e-6}


def test_each_rank_has_its_own_optimum_in_common_rungs() -> None:
    """All ranks' trials of a rung come together, so that they share a bank."""
    recipe = Recipe(learning_rates=RATES)

    def loss(trial: PlannedTrial) -> float | None:
        return bowl({1: 3e-3, 4: 1e-3, 16: 3e-4}[trial.rank])(trial)

    assert {trial.rank for trial in next_trials(recipe, [1, 4, 16], [], 0.25)} == {1, 4, 16}
    found = chosen([1, 4, 16], search(recipe, [1, 4, 16], loss))
    assert [each.settings["learning_rate"] for each in found] == [3e-3, 1e-3, 3e-4]


def test_a_further_rank_alone_is_tried() -> None:
    recipe = Recipe(learning_rates=RATES)
    before = search(recipe, [1, 4], bowl(1e-3))
    after = search(recipe, [1, 4, 16], bowl(1e-3), before)
    assert after[: len(before)] == before
    assert {trial.rank for trial in after[len(before) :]} == {16}


def test_other_settings_vary_with_the_rate() -> None:
    recipe = Recipe(learning_rates=(1e-3, 3e-3), vary={"weight_decay": (0.0, 0.1), "alpha": (1, 4)})

    def loss(trial: PlannedTrial) -> float | None:
        away = abs(math.log10(trial.setting["learning_rate"] / 1e-3))
        return float(away + (trial.setting["weight_decay"] == 0) + trial.setting["alpha"])

    trials = search(recipe, [4], loss)
    assert len([trial for trial in trials if trial.rung == 1 and not trial.added]) == 8
    (found,) = chosen([4], trials)
    assert found.settings == {"learning_rate": 1e-3, "weight_decay": 0.1, "alpha": 1}
    # The low-rank factors' scale means nothing to a linear probe.
    assert len(next_trials(recipe, [0], [], 0.25)) == 4


def test_ties_go_to_the_lower_rate() -> None:
    trials = search(Recipe(learning_rates=RATES, finalists=1), [4], lambda trial: 0.5)
    assert chosen([4], trials)[0].settings["learning_rate"] < 3e-4


def test_one_schedule_is_enough_if_it_is_the_full_one() -> None:
    assert rates(search(Recipe(learning_rates=RATES), [4], bowl(1e-3), share=1.0), 2) == []
    assert rates(search(Recipe(learning_rates=RATES, finalists=1), [4], bowl(1e-3)), 2) == []


def test_the_expected_cost() -> None:
    """Four short trials of a quarter, two finalists, and one more: four full schedules per rank."""
    recipe = Recipe(learning_rates=RATES)
    assert cost(recipe, [1, 4], 0.25) == (14, 8.0)
    trials = search(recipe, [1, 4], bowl(1e-3))
    assert (len(trials), sum(trial.epochs for trial in trials)) == (14, 8.0)
    two = Recipe(learning_rates=(1e-3, 3e-3), finalists=1)
    assert cost(two, [4], 0.25) == (3, 0.75) and len(search(two, [4], bowl(1.2e-3))) == 3


def test_names() -> None:
    assert label({"learning_rate": 0.00033, "targets": ("q_proj",), "epochs": 3}) == "lr3.3e-4-q_proj-e3"
    assert label({"learning_rate": 1e-2}) != label({"learning_rate": 1.00001e-2})
    many = [f"layers.{i}.self_attn.q_proj" for i in range(12)]
    names = {label({"targets": tuple(many[:n])}) for n in (10, 11, 12)}
    assert len(names) == 3 and max(map(len, names)) < 100


def test_a_wide_gap_is_not_repeated_beyond_the_grid() -> None:
    trials = search(Recipe(learning_rates=(1e-2, 1e20), finalists=1), [4], bowl(1e-4, limit=1.0))
    assert rates(trials, 1) == [1e-2, 1e20, 1e-3, 1e-4, 1e-5]


def test_the_shortest_schedule_must_be_long_enough() -> None:
    assert fewest_epochs(Recipe(epochs=3)) == 3
    assert fewest_epochs(Recipe(epochs=3, vary={"epochs": (5, 1)})) == 1


def test_texts_are_held_out_by_class() -> None:
    import numpy as np

    targets = np.array([0] * 60 + [1] * 30 + [2] * 10)
    kept, held = hold_out(targets, 20, seed=1)
    assert sorted([*kept, *held]) == list(range(100))
    assert np.bincount(targets[held]).tolist() == [12, 6, 2]
    again, other = hold_out(targets, 20, seed=1)[1], hold_out(targets, 20, seed=2)[1]
    assert (again == held).all() and not (other == held).all()
    assert 2 in targets[hold_out(targets, 99, seed=1)[0]]


@pytest.mark.parametrize(
    ("texts", "classes", "given", "expected"),
    [
        (16_000, 6, None, 1_600),
        (100_000, 6, None, 2_000),
        (600, 6, None, 120),
        (16_000, 77, None, 1_600),
        (600, 6, 300, 300),
    ],
)
def test_number_of_tuning_texts(texts: int, classes: int, given: int | None, expected: int) -> None:
    assert tuning_size(Recipe(tuning_texts=given), texts, classes) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rates": (1e-3,)}, "one value leaves nothing to choose"),
        ({"learning_rates": (0.0, 1e-3)}, "0.0 is not a number above 0"),
        ({"learning_rates": (1e-3, -1e-3)}, "-0.001 is not a number above 0"),
        ({"learning_rates": (1e-3, 1e-3)}, "each only once"),
        ({"learning_rates": ()}, "at least one learning rate"),
        ({"tune": False, "learning_rates": (1e-3, 3e-3)}, "tuning is off, so there is nothing to choose"),
        ({"tune": False, "vary": {"alpha": (1, 2)}}, "vary: tuning is off"),
        ({"vary": {"ranks": (1, 2)}}, "ranks cannot vary within a rank"),
        ({"vary": {"weight_decay": ()}}, "give a list of values for weight_decay"),
        ({"vary": {"weight_decay": ("a",)}}, "'a' is not a number"),
        ({"vary": {"weight_decay": ("0", 0.0)}}, "weight_decay contains a value twice"),
        ({"vary": {"last_layers": (None, 1)}}, "last_layers: None is no value to try"),
        ({"vary": {"targets": (5, 6)}}, "targets: 5 is no list of target modules"),
        ({"vary": {"weight_decay": (-1,)}}, "vary: weight_decay: -1 is not a number of at least 0"),
        ({"tuning_share": 0}, "tuning_share: 0 is not a number above 0"),
        ({"finalists": 0}, "finalists: 0 is not a whole number of at least 1"),
    ],
)
def test_a_recipe_that_cannot_be_tuned(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Recipe(**changes)
    assert message in str(caught.value) and str(caught.value).count("\n") == 1  # the hint


def test_a_list_of_rates_in_the_published_preset() -> None:
    with pytest.raises(UsageError, match="preset emotion: learning_rates: tuning is off"):
        Recipe.preset("emotion", learning_rates=(1e-3, 3e-3))


def test_too_few_texts() -> None:
    with pytest.raises(UsageError, match="tuning needs 20 texts per class, 120 for 6 classes"):
        tuning_size(Recipe(), 300, 6)
    for given in (119, 300):
        with pytest.raises(UsageError, match="at least 120"):
            tuning_size(Recipe(tuning_texts=given), 300, 6)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough texts of three classes to tune on 60 of them."""
    folder = tmp_path_factory.mktemp("data")
    tiny.write_csv(folder / "train.csv", tiny.rows(200, 1))
    tiny.write_csv(folder / "validation.csv", tiny.rows(30, 2))
    return folder


@pytest.fixture(scope="module")
def recipe(gpt2_base: Path, data: Path) -> Recipe:
    return tiny.recipe(
        gpt2_base,
        data,
        ranks=(1, 4),
        seeds=(1, 2),
        epochs=2,
        tune=True,
        learning_rates=(1e-4, 1e-2, 1e20),
        tuning_share=0.5,
    )


@pytest.fixture(scope="module")
def tuned(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished sweep with tuning. Read-only."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "tuned")
    sweep(recipe, folder.path)
    return folder


def test_a_tuned_sweep(tuned: RunFolder) -> None:
    """Every rank gets the rate that wins; a rate that diverges is a result; the probe is tuned as well."""
    results = tuned.read_results()
    tuning = results.tuning
    assert tuning is not None
    assert (tuning.texts, tuning.train_texts, tuning.varied) == (60, 140, ["learning_rate"])
    by_name = {trial.name: trial for trial in tuning.trials}
    assert {trial.rank for trial in tuning.trials} == {0, 1, 4}
    for each in tuning.chosen:
        rung = [t for t in tuning.trials if (t.rank, t.rung) == (each.rank, 2) and t.log_loss is not None]
        assert by_name[each.trial].log_loss == min(t.log_loss for t in rung if t.log_loss is not None)
    lost = by_name["tune1-r4-lr1e20"]
    assert lost.log_loss is None and lost.diverged is not None
    rates = {each.rank: each.settings["learning_rate"] for each in tuning.chosen}
    assert all(row.settings["learning_rate"] == rates[row.rank] for row in results.adapters)
    assert all(row.settings.keys() == {"learning_rate", *VARIABLE} for row in results.adapters)
    assert [row.name for row in results.adapters] == ["r1-s1", "r4-s1", "r1-s2", "r4-s2"]
    assert results.diverged == []
    assert {path.name for path in tuned.adapters.iterdir()} >= {"r1-s1", "r4-s2"}
    assert not any(path.name.startswith("tune") for path in tuned.adapters.iterdir())
    assert tuned.read_timing().seconds["tune"] > 0


def test_final_adapters_are_those_of_an_untuned_sweep_at_that_rate(
    tuned: RunFolder, recipe: Recipe, tmp_path: Path
) -> None:
    """Trained on the whole train split, with the same data order and masks."""
    rate = next(row.settings["learning_rate"] for row in tuned.read_results().adapters if row.rank == 4)
    plain = recipe.replace(tune=False, learning_rates=None, learning_rate=rate, ranks=(4,))
    rows = sweep(plain, tmp_path / "plain").adapters
    theirs = [row for row in tuned.read_results().adapters if row.rank == 4]
    assert [row.train_loss for row in rows] == pytest.approx([row.train_loss for row in theirs], rel=1e-4)


@pytest.mark.parametrize("step", [1, 9, 21, 40, 60])
def test_a_resumed_sweep_is_bit_identical(
    tuned: RunFolder, recipe: Recipe, tmp_path: Path, step: int
) -> None:
    """Stopped within a rung, between rungs, or in the final training."""
    stopped(recipe, tmp_path / "run", Stop(step=step))
    sweep(recipe, tmp_path / "run", resume=True)
    for name in ("results.json", "history.jsonl", "predictions.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tuned.path / name).read_bytes(), name


def test_a_further_rank_is_tuned_too(tuned: RunFolder, recipe: Recipe, tmp_path: Path) -> None:
    shutil.copytree(tuned.path, tmp_path / "run")
    before = tuned.read_results()
    after = sweep(recipe.replace(ranks=(2,)), tmp_path / "run", resume=True)
    assert before.tuning is not None and after.tuning is not None
    old = len(before.tuning.trials)
    assert after.tuning.trials[:old] == before.tuning.trials
    assert {trial.rank for trial in after.tuning.trials[old:]} == {2}
    assert [row for row in after.adapters if row.rank != 2] == before.adapters


def test_a_further_seed_needs_no_trials(tuned: RunFolder, recipe: Recipe, tmp_path: Path) -> None:
    shutil.copytree(tuned.path, tmp_path / "run")
    after = sweep(recipe.replace(seeds=(3,)), tmp_path / "run", resume=True)
    assert after.tuning == tuned.read_results().tuning
    assert len(after.adapters) == 6


def test_no_rate_is_low_enough(recipe: Recipe, tmp_path: Path) -> None:
    hopeless = recipe.replace(learning_rates=(1e25, 1e26), ranks=(4,), baselines=False)
    with pytest.raises(TrainingError, match="rank 4: the loss became infinite or NaN at every learning rate"):
        sweep(hopeless, tmp_path / "run")


def test_a_rung_that_is_lost_as_a_whole_is_resumed(recipe: Recipe, tmp_path: Path) -> None:
    """All trials of the bank have diverged when the sweep stops; they are not trained again without end."""
    lost = recipe.replace(learning_rates=(1e20, 1e21), ranks=(4,), seeds=(1,), baselines=False)
    with pytest.raises(TrainingError, match="at every learning rate"):
        sweep(lost, tmp_path / "whole")
    stopped(lost, tmp_path / "run", Stop(stage=("tune: 1 trial", 1)))
    with pytest.raises(TrainingError, match="at every learning rate"):
        sweep(lost, tmp_path / "run", resume=True)


def test_a_schedule_too_short_for_trials(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 10 are needed") as caught:
        sweep(recipe.replace(tuning_share=0.1), tmp_path / "run")
    assert "tuning_share=0.28 or more" in str(caught.value.hint)
