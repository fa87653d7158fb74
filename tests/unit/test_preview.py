"""A plan that downloads nothing matches the sweep."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest

from rankwise import Recipe
from rankwise.commands.preview import preview
from rankwise.errors import DataError, UsageError
from rankwise.store.run_folder import RunFolder
from tests import tiny


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> NoReturn:
        raise AssertionError("a plan for known names must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
def test_the_published_table() -> None:
    recipe = Recipe.preset("emotion")
    plan = preview(recipe)
    published = [
        (1, 41_472, 124_486_656, "0.0333"),
        (2, 78_336, 124_523_520, "0.0629"),
        (4, 152_064, 124_597_248, "0.1220"),
        (8, 299_520, 124_744_704, "0.2401"),
        (16, 594_432, 125_039_616, "0.4754"),
    ]
    rows = plan.rows
    assert [
        (row.rank, row.trainable_params, row.total_params, f"{row.trainable_percent:.4f}") for row in rows
    ] == published
    assert all(row.merged_params == 124_439_808 + 6 * 768 for row in rows)
    assert (plan.steps, plan.classes) == (2500, 6)
    assert plan.tokens == pytest.approx(5 * 16_000 * 20.2)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("preset", ["emotion", "emotion-smollm2", "quickstart"])
def test_every_preset_can_be_planned(preset: str) -> None:
    plan = preview(Recipe.preset(preset))
    assert plan.steps and plan.tokens
    assert 1e8 < plan.memory_bytes < 1e11
    assert json.loads(json.dumps(plan.to_json()))[0].keys() >= {
        "rank", "trainable_params", "total_params", "trainable_percent", "merged_params", "steps", "tokens",
    }  # fmt: skip


@pytest.mark.usefixtures("no_network")
def test_unknown_data_leaves_steps_open() -> None:
    plan = preview(Recipe(base="gpt2", data="some/dataset", labels=("a", "b", "c")))
    assert (plan.steps, plan.tokens, plan.classes) == (None, None, 3)


def test_the_plan_is_what_the_sweep_does(run: RunFolder, gpt2_base: Path, data_folder: Path) -> None:
    plan, results = preview(tiny.recipe(gpt2_base, data_folder)), run.read_results()
    steps = [json.loads(line) for line in run.history.read_text("utf-8").splitlines()]
    assert plan.steps == max(line["steps"] for line in steps if line["kind"] == "step")
    for planned, done in zip(plan.rows, results.adapters, strict=True):
        for figure in (
            "rank",
            "seed",
            "trainable_params",
            "total_params",
            "trainable_percent",
            "merged_params",
        ):
            assert getattr(planned, figure) == getattr(done, figure)
    tokens = sum(line["tokens"] / len(line["adapters"]) for line in steps if line["kind"] == "step")
    assert plan.tokens == pytest.approx(tokens / 2, rel=0.6)  # two banks; an estimate without the tokenizer


def test_long_texts_count_as_they_are_read(gpt2_base: Path, tmp_path: Path) -> None:
    data = tiny.data_folder(tmp_path / "data")
    tiny.write_csv(data / "train.csv", [(f"{label} " * 1000, label) for label in tiny.LABELS] * 2)
    plan = preview(tiny.recipe(gpt2_base, data, epochs=1, max_length=32))
    assert plan.tokens == 2 * len(tiny.LABELS) * 32


def test_what_does_not_fit_is_said(gpt2_base: Path, data_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"max_length 65: .* has 64 positions"):
        preview(tiny.recipe(gpt2_base, data_folder, max_length=65))
    with pytest.raises(UsageError, match="targets: 'q_proj' names no linear layer"):
        preview(tiny.recipe(gpt2_base, data_folder, targets=("q_proj",)))
    empty = tmp_path / "train.csv"
    empty.touch()
    with pytest.raises(DataError, match=r"train\.csv: the file is empty"):
        preview(tiny.recipe(gpt2_base, empty))
