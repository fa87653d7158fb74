"""What a search tries, promotes and stops, with made losses."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from rankwise import Recipe, UsageError
from rankwise.schema import Trial
from rankwise.searching import (
    Attempt,
    Candidate,
    Search,
    best,
    best_first,
    candidates,
    next_attempts,
    places,
    searched,
    shares,
)

Loss = Callable[[Attempt], float | None]
SHARES = (1 / 9, 1 / 3, 1.0)


def field(number: int, places: int = 4, finalists: int = 2) -> Search:
    """Candidates with different learning rates."""
    rates = [float(f"{1e-4 * 1.2**i:.3g}") for i in range(number)]
    return Search([Candidate(4, {"learning_rate": rate}) for rate in rates], SHARES, places, finalists)


def bowl(lowest: int, noise: float = 0.0) -> Loss:
    """A loss that grows with the distance of a candidate from the best one, and falls with the schedule."""

    def loss(attempt: Attempt) -> float:
        steps = math.log(attempt.candidate.setting["learning_rate"] / 1e-4) / math.log(1.2)
        rough = noise * random.Random(attempt.name).uniform(-1, 1)
        return 0.2 + 0.05 * abs(steps - lowest) + 0.3 * (1 - attempt.share) + rough

    return loss


class Simulated:
    """A simulated search: adapters of a bank advance at the same pace."""

    def __init__(self, search: Search, loss: Loss, done: list[Trial] | None = None) -> None:
        self.search, self.loss = search, loss
        self.done = list(done or [])
        self.left: dict[str, float] = {}  # name -> rest of its schedule
        self.trained = 0.0  # in full schedules
        self.busy: list[tuple[int, int]] = []  # occupied places, and new trials that wait for one

    def run(self) -> list[Trial]:
        while True:
            new = next_attempts(self.search, self.done, list(self.left))
            self.left |= {each.name: each.share for each in new}
            started = [*self.left, *(each.name for each in self.done)]
            waiting = sum(each.name not in started for each in self.search.rungs[0])
            self.busy.append((len(self.left), waiting))
            if not self.left:
                return self.done
            self._advance(min(self.left.values()))

    def _advance(self, share: float) -> None:
        self.trained += share * len(self.left)
        for name in list(self.left):
            self.left[name] -= share
            if self.left[name] < 1e-9:
                del self.left[name]
                self.done.append(trial(self.search.attempts[name], self.loss))


def trial(attempt: Attempt, loss: Loss) -> Trial:
    found = loss(attempt)
    return Trial(
        name=attempt.name,
        rank=attempt.candidate.rank,
        rung=attempt.rung,
        settings=dict(attempt.candidate.setting),
        epochs=attempt.share,
        log_loss=found,
        accuracy=None if found is None else 0.5,
        diverged=7 if found is None else None,
    )


def rung(done: list[Trial], number: int) -> list[str]:
    return [each.name for each in done if each.rung == number]


@pytest.mark.parametrize("places", [1, 2, 4, 16])
@pytest.mark.parametrize("lowest", [0, 3, 13, 26])
def test_the_best_of_a_clear_field_wins(places: int, lowest: int) -> None:
    """Wherever it is in the order, and however many adapters train at once."""
    search = field(27, places)
    done = Simulated(search, bowl(lowest)).run()
    found = best(search, done)
    assert found is not None and found.name == search.candidates[lowest].name


@pytest.mark.parametrize("seed", range(10))
def test_a_good_one_wins_in_noise(seed: int) -> None:
    search = field(27)
    order = random.Random(seed).sample(search.candidates, 27)
    search = replace(search, candidates=order)
    found = best(search, Simulated(search, bowl(13, noise=0.08)).run())
    rates = [each.setting["learning_rate"] for each in field(27).candidates]
    assert found is not None and abs(rates.index(found.settings["learning_rate"]) - 13) <= 2


def test_it_costs_a_fraction_of_the_grid() -> None:
    """27 short trials, about 9 of a third and 3 in full: a third of the grid."""
    search = field(27, 9)
    search = replace(search, candidates=random.Random(3).sample(search.candidates, 27))
    simulated = Simulated(search, bowl(13))
    done = simulated.run()
    assert len(rung(done, 1)) == 27
    assert 9 <= len(rung(done, 2)) <= 14
    assert 3 <= len(rung(done, 3)) <= 6
    assert simulated.trained < 27 / 2
    assert search.expected == 27 + 9 + 3


def test_free_places_are_refilled() -> None:
    """All places are occupied until the last new trial has started."""
    search = field(27, 5)
    simulated = Simulated(search, bowl(13))
    simulated.run()
    waiting = [busy for busy, new in simulated.busy if new]
    assert len(waiting) > 10 and set(waiting) == {5}
    assert max(busy for busy, _ in simulated.busy) == 5


def test_promotion_needs_three_results() -> None:
    """With fewer, new trials start; then the best third goes on before further new trials."""
    search = field(9, places=1)
    done: list[Trial] = []
    names = []
    for _ in range(6):
        (attempt,) = next_attempts(search, done, [])
        names.append((attempt.rung, search.candidates.index(attempt.candidate)))
        done.append(trial(attempt, bowl(1)))
    assert names == [(1, 0), (1, 1), (1, 2), (2, 1), (1, 3), (1, 4)]


def test_a_place_goes_to_the_longest_schedule_earned() -> None:
    search = field(12, places=1)
    done = [trial(each, bowl(0)) for each in [*search.rungs[0][:9], *search.rungs[1][:3]]]
    assert [each.rung for each in next_attempts(search, done, [])] == [3]
    assert next_attempts(search, done, [search.rungs[2][0].name]) == []  # no place is free


@pytest.mark.parametrize(("number", "full"), [(2, 2), (3, 2), (4, 2), (9, 2)])
def test_a_small_field_has_finalists(number: int, full: int) -> None:
    search = field(number)
    assert len(rung(Simulated(search, bowl(0)).run(), 3)) == full


def test_finalists_wait_for_the_rungs_below() -> None:
    """The last promotions are decided when every result of the rung is known."""
    search = field(2, places=4)
    first = trial(search.rungs[0][0], bowl(0))
    assert next_attempts(search, [first], [search.rungs[0][1].name]) == []
    both = [first, trial(search.rungs[0][1], bowl(0))]
    assert [each.rung for each in next_attempts(search, both, [])] == [2, 2]


def test_the_rest_of_a_search_follows_from_what_is_done() -> None:
    """A search that goes on from any point ends like one that was not interrupted."""
    search = field(9, places=1)
    whole = Simulated(search, bowl(4)).run()
    for done in range(len(whole)):
        assert Simulated(search, bowl(4), whole[:done]).run() == whole


def test_trials_that_diverge_are_results() -> None:
    """One that diverges on a longer schedule is replaced by the next best."""

    def loss(attempt: Attempt) -> float | None:
        rate = attempt.candidate.setting["learning_rate"]
        is_high = rate > 3e-4 if attempt.rung == 1 else rate > 2.3e-4
        return None if is_high else bowl(6)(attempt)

    search = field(9)
    done = Simulated(search, loss).run()
    found = best(search, done)
    assert found is not None and found.settings["learning_rate"] == 2.07e-4
    ordered = best_first(search, done)
    assert [each.end for each in ordered[:2]] == ["finished", "finished"]
    lost = {each.name: each for each in ordered if each.end == "diverged"}
    assert lost["r4-lr2.49e-4"].share == 1 / 9 and lost["r4-lr2.49e-4"].log_losses[1:] == [None]
    assert (lost["r4-lr3.58e-4"].share, lost["r4-lr3.58e-4"].log_loss) == (0.0, None)
    assert all(each.diverged == 7 for each in lost.values())


def test_all_diverge() -> None:
    search = field(9)
    done = Simulated(search, lambda attempt: None).run()
    assert len(done) == 9 and best(search, done) is None


def test_best_first() -> None:
    """A longer schedule comes first; its loss comes second."""
    search = field(9)
    ordered = best_first(search, Simulated(search, bowl(2)).run())
    assert ordered[0].name == search.candidates[2].name
    keys = [(-each.share, each.log_loss) for each in ordered]
    assert keys == sorted(keys)
    assert {each.end for each in ordered} == {"finished", "stopped"}


def test_the_grid() -> None:
    recipe = Recipe(ranks=(1, 4), learning_rates=(1e-3, 1e-2), vary={"weight_decay": (0.0, 0.1)})
    found = candidates(recipe)
    assert len({each.name for each in found}) == len(found) == 8
    assert found == candidates(recipe) != candidates(recipe.replace(seeds=(2,)))
    assert searched(found) == ["rank", "learning_rate", "weight_decay"]


def test_a_linear_probe_has_fewer_settings() -> None:
    found = candidates(Recipe(ranks=(0, 4), learning_rates=(1e-3, 1e-2), vary={"alpha": (1, 2)}))
    assert sorted(each.name for each in found if each.rank == 0) == ["r0-lr1e-2", "r0-lr1e-3"]
    assert len(found) == 6


def test_random_draws() -> None:
    recipe = Recipe(ranks=(1, 4), learning_rates=(1e-4, 1e-3, 1e-2), vary={"targets": (("a",), ("b", "c"))})
    found = candidates(recipe, 400)
    assert len({each.name for each in found}) == 400 and found == candidates(recipe, 400)
    assert candidates(recipe, 10) == found[:10]
    rates = [each.setting["learning_rate"] for each in found]
    assert min(rates) >= 1e-4 and max(rates) <= 1e-2
    # Log-uniform: half of the draws are below the geometric mean, and a third is within any third.
    assert 0.4 < sum(rate < 1e-3 for rate in rates) / 400 < 0.6
    assert 0.4 < sum(each.rank == 1 for each in found) / 400 < 0.6
    assert {each.setting["targets"] for each in found} == {("a",), ("b", "c")}


def test_draws_without_a_range_are_from_the_grid() -> None:
    recipe = Recipe(tune=False, ranks=(1, 2, 4, 8))
    assert len(candidates(recipe, 3)) == 3
    assert len(candidates(recipe, 100)) == 4
    assert searched(candidates(recipe)) == ["rank"]


def test_draws_from_a_narrow_range_end() -> None:
    """There are only 101 rates of three digits in it."""
    assert len(candidates(Recipe(ranks=(4,), learning_rates=(1e-3, 1.1e-3)), 100)) == 11


@pytest.mark.parametrize(
    ("recipe", "trials", "message"),
    [
        (Recipe(tune=False, ranks=(4,)), None, "there is nothing to search"),
        (Recipe(), 1, "trials 1: a search needs at least 2"),
        (Recipe(), -3, "trials -3"),
    ],
)
def test_what_cannot_be_searched(recipe: Recipe, trials: int | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        candidates(recipe, trials)


@pytest.mark.parametrize(
    ("epochs", "per_epoch", "expected"),
    [
        (3, 30, [1 / 9, 1 / 3, 1.0]),
        (3, 28, [1 / 3, 1.0]),
        (1, 30, [1 / 3, 1.0]),
        (3, 1000, [1 / 9, 1 / 3, 1.0]),
    ],
)
def test_rungs(epochs: int, per_epoch: int, expected: list[float]) -> None:
    assert shares(Recipe(epochs=epochs), per_epoch) == pytest.approx(expected)


def test_the_shortest_of_varied_schedules_counts() -> None:
    assert len(shares(Recipe(vary={"epochs": (1, 9)}), 30)) == 2


def test_too_few_steps() -> None:
    with pytest.raises(UsageError, match="15 steps are too few to search") as caught:
        shares(Recipe(epochs=3), 5)
    assert "epochs=6 or more" in str(caught.value.hint)
    assert shares(Recipe(epochs=6), 5) == pytest.approx([1 / 3, 1.0])


def test_places() -> None:
    assert (places(None, 100), places(None, 3), places(40, 3)) == (16, 3, 40)
    with pytest.raises(UsageError, match="places 0: at least 1"):
        places(0, 3)


def test_names() -> None:
    names = [rung[0].name for rung in field(2).rungs]
    assert names == ["r4-lr1e-4-1of9", "r4-lr1e-4-1of3", "r4-lr1e-4"]
