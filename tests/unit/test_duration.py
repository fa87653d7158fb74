"""The expected duration of a sweep, from a few timed steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from rankwise import UsageError
from rankwise.commands.duration import STEPS, Duration, _Pace, duration
from rankwise.nn.bank import AdapterSpec
from tests import tiny
from tests.unit.test_cli import HERE, SETTINGS, rankwise


def test_a_sweep_without_tuning(
    gpt2_base: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = duration(tiny.recipe(gpt2_base, data_folder))
    assert found.tuning == 0
    assert found.training > 0 and found.evaluation > 0
    assert found.timed_steps == 2 * STEPS  # the bank of ranks 1 and 4, and the linear probe's
    assert list(tmp_path.iterdir()) == [], "nothing is left in the working directory"


def test_the_estimate_grows_with_the_epochs(
    gpt2_base: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankwise.commands.duration._pace", lambda *_: _Pace(step=1.0, text=0.5, steps=1))
    recipe = tiny.recipe(gpt2_base, data_folder)
    short, long = (duration(recipe.replace(epochs=epochs)) for epochs in (2, 200))
    assert long.training == pytest.approx(100 * short.training)
    assert long.evaluation > 50 * short.evaluation  # test texts are evaluated only once


def test_trials_are_timed(gpt2_base: Path, tmp_path: Path) -> None:
    data = tiny.data_folder(tmp_path / "data")
    tiny.write_csv(data / "train.csv", tiny.rows(480, 1))
    recipe = tiny.recipe(gpt2_base, data, tune=True, tuning_texts=60)
    found = duration(recipe)
    assert found.tuning > 0 and found.timed_steps == 4 * STEPS  # adapters and linear probe, twice
    with pytest.raises(UsageError, match="last_layers 9"):
        duration(recipe.replace(last_layers=9))


def test_linear_probes_that_keep_hidden_states(
    gpt2_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their first steps compute the hidden states of all texts, and must not count for every step."""

    def pace(bank: Sequence[AdapterSpec], data: object, material: object) -> _Pace:
        assert len({bool(spec.rank) for spec in bank}) == 1, "linear probes have banks of their own"
        return _Pace(step=float(len(bank)), text=0.0, steps=1) if bank[0].rank else _Pace(1e6, 0.5, 0, True)

    monkeypatch.setattr("rankwise.commands.duration._pace", pace)
    data = tiny.data_folder(tmp_path / "data")
    tiny.write_csv(data / "train.csv", tiny.rows(480, 1))
    recipe = tiny.recipe(
        gpt2_base, data, tune=True, tuning_texts=80, learning_rates=(0.01, 0.02, 0.03), finalists=1, epochs=2
    )
    steps = 2 * recipe.train.steps_per_epoch(400)
    ranks = [rank for rank in recipe.lora.ranks if rank]
    found = duration(recipe)
    assert found.tuning == pytest.approx(0.25 * steps * 3 * len(ranks) + 0.5 * 400, abs=2)
    adapters = len(ranks) * len(recipe.train.seeds)
    again = duration(recipe.replace(finalists=2))
    assert again.tuning == pytest.approx((0.25 * 3 + 3) * steps * len(ranks) + 3 * 0.5 * 400, abs=5)
    assert found.training == pytest.approx(2 * recipe.train.steps_per_epoch(480) * adapters + 0.5 * 480)
    assert found.timed_steps == 2


def test_the_total() -> None:
    found = Duration(1.0, 2.0, 3.0, 4)
    assert found.total == 6.0
    assert replace(found, tuning=0.0).to_json()["total"] == 5.0


def test_the_command(gpt2_base: Path, data_folder: Path) -> None:
    options = ["--base", gpt2_base, *SETTINGS, *HERE, "--time"]
    shown = rankwise("plan", data_folder, *options)
    assert "time: about " in shown.stdout and "without reading the data" in shown.stdout
    assert "timing" in shown.stderr
    row = json.loads(rankwise("plan", data_folder, *options, "--json").stdout)[0]
    assert row["seconds"]["total"] >= row["seconds"]["training"] > 0
