"""The expected duration of a sweep, from a few timed steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rankwise import UsageError
from rankwise.commands.duration import STEPS, Duration, duration
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


def test_the_estimate_grows_with_the_epochs(gpt2_base: Path, data_folder: Path) -> None:
    """A hundred times the epochs take longer, however noisy the few timed steps are."""
    short, long = (duration(tiny.recipe(gpt2_base, data_folder, epochs=epochs)) for epochs in (2, 200))
    assert long.training > 10 * short.training
    assert long.evaluation > 10 * short.evaluation


def test_trials_are_timed(gpt2_base: Path, tmp_path: Path) -> None:
    data = tiny.data_folder(tmp_path / "data")
    tiny.write_csv(data / "train.csv", tiny.rows(480, 1))
    recipe = tiny.recipe(gpt2_base, data, tune=True, tuning_texts=60)
    found = duration(recipe)
    assert found.tuning > 0 and found.timed_steps == 3 * STEPS
    with pytest.raises(UsageError, match="last_layers 9"):
        duration(recipe.replace(last_layers=9))


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
