"""The simulated cluster of bench/scaling.py behaves as a cluster must."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench.scaling import Grid, Job, driver_share, simulate

JOB = Job(banks=200, steps=1000, step_seconds=1.0, state_bytes=1e6)
CALM = Grid(10, spread=0.0, stragglers=0.0, failures=0.0)


def test_without_trouble_it_is_ideal() -> None:
    found = simulate(JOB, CALM)
    assert found.seconds == found.ideal == 200 * 1000 / 10
    assert found.busy == 1.0


def test_no_more_workers_than_banks_help() -> None:
    assert simulate(JOB, replace(CALM, workers=200)).seconds == 1000
    assert simulate(JOB, replace(CALM, workers=400)).seconds == 1000


def test_failures_and_stragglers_cost_time() -> None:
    often = replace(CALM, failures=1 / 3000, state_seconds=100.0)
    found = simulate(JOB, often)
    assert found.failures > 20
    assert found.seconds > found.ideal
    # Work that is sent more often is lost less often.
    assert (
        simulate(JOB, replace(often, state_seconds=10.0)).busy
        > simulate(JOB, replace(often, state_seconds=900.0)).busy
    )
    assert simulate(JOB, replace(CALM, stragglers=0.2)).seconds > found.ideal


def test_a_seed_gives_the_same() -> None:
    grid = replace(CALM, failures=1 / 3000, spread=0.1)
    assert simulate(JOB, grid, seed=1) == simulate(JOB, grid, seed=1) != simulate(JOB, grid, seed=2)


@pytest.mark.parametrize(
    "grid",
    [replace(CALM, workers=100), replace(CALM, report_seconds=0.5), replace(CALM, state_seconds=60.0)],
    ids=["more workers", "more reports", "more states"],
)
def test_the_driver_has_more_to_do(grid: Grid) -> None:
    assert driver_share(JOB, grid) > driver_share(JOB, CALM)
