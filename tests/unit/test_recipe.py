"""Recipes: presets, TOML round trip, and error messages."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import UsageError
from rankwise.recipe import PRESETS, Recipe

# Every field with a non-default value.
SHARED = ("tune", "task", "text_columns")
"""Settings whose defaults other settings need."""
EVERYTHING: dict[str, Any] = {
    "base": "gpt2",
    "data": 'folder/with = signs, "quotes" and é',
    "validation": "validation.csv",
    "test": "test.csv",
    "data_config": "split",
    "text_column": "sentence",
    "label_column": "emotion",
    "text_columns": None,
    "task": "single-label",
    "label_separator": ";",
    "labels": ("no", "yes", "null"),
    "validation_fraction": 0.25,
    "max_length": 64,
    "windows": True,
    "window_stride": 48,
    "ranks": (0, 3, 4096),
    "seeds": (0, 2**63 - 1),
    "alpha": 0.8,
    "alpha_mode": "rslora",
    "lora_dropout": 0.1,
    "targets": ("c_attn", "h.3.mlp.c_fc"),
    "last_layers": 2,
    "base_dropout": False,
    "epochs": 5,
    "batch_size": 7,
    "learning_rate": 1e-05,
    "weight_decay": 0.0,
    "lora_plus_ratio": 16.0,
    "schedule": "cosine",
    "warmup_steps": 50,
    "max_grad_norm": 0.0,
    "class_weights": "balanced",
    "logit_adjustment": 1.0,
    "metric": "macro-f1",
    "keep": "best",
    "baselines": False,
    "cuts": False,
    "on_nan": "stop",
    "tune": True,  # the default, which the next five settings need
    "learning_rates": (1e-4, 1e-2),
    "vary": {"alpha": (1.0, 2.0), "targets": (("c_attn",), ("all-linear",))},
    "tuning_texts": 500,
    "tuning_share": 0.5,
    "finalists": 3,
    "precision": "float32",
    "device": "cuda:1",
    "memory_gb": 1.5,
    "bank_size": 2,
}


def test_the_published_recipe() -> None:
    recipe = Recipe.preset("emotion")
    assert (recipe.base, recipe.data.source, recipe.data.data_config) == ("gpt2", "dair-ai/emotion", "split")
    assert recipe.data.labels == ("sadness", "joy", "love", "anger", "fear", "surprise")
    assert recipe.lora.ranks == (1, 2, 4, 8, 16)
    assert (recipe.lora.alpha, recipe.lora.alpha_mode) == (0.8, "fixed")
    assert (recipe.lora.lora_dropout, recipe.train.base_dropout) == (0.1, True)
    assert (
        recipe.lora.targets is None and recipe.lora.last_layers is None
    )  # PEFT's default for GPT-2: c_attn, all layers
    assert (recipe.train.learning_rate, recipe.train.weight_decay) == (5e-4, 0.01)
    assert (recipe.train.schedule, recipe.train.warmup_steps, recipe.train.max_grad_norm) == (
        "linear",
        0,
        1.0,
    )
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.train.max_length) == (5, 32, 128)
    assert (recipe.train.seeds, recipe.train.class_weights, recipe.train.keep) == ((110,), "none", "last")
    assert math.ceil(16000 / recipe.train.batch_size) * recipe.train.epochs == 2500


def test_the_quickstart_needs_nothing() -> None:
    recipe = Recipe.preset("quickstart")
    assert (recipe.base, recipe.data.source) == ("smollm2-135m", "starter")
    assert recipe.lora.ranks == (0, 1, 2, 4, 8, 16)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_load_and_take_changes(name: str) -> None:
    recipe = Recipe.preset(name)
    assert Recipe.preset(name, seeds=[1, 2]) == recipe.replace(seeds=(1, 2))


def test_every_preset_that_is_shipped_is_named() -> None:
    import rankwise

    shipped = (Path(rankwise.__file__).parent / "assets" / "presets").glob("*.toml")
    assert sorted(path.stem for path in shipped) == sorted(PRESETS)


def test_no_such_preset() -> None:
    with pytest.raises(UsageError, match="no preset 'emotions'") as caught:
        Recipe.preset("emotions")
    assert all(name in caught.value.hint for name in PRESETS)


@pytest.mark.parametrize(
    "recipe", [Recipe(), Recipe(tune=False), *map(Recipe.preset, PRESETS), Recipe(**EVERYTHING)]
)
def test_round_trip(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(recipe.to_toml(), "utf-8")
    assert Recipe.load(tmp_path / "recipe.toml") == recipe


def test_the_round_trip_covers_every_field() -> None:
    default = Recipe().flat()
    assert default.keys() == EVERYTHING.keys()
    assert all(default[name] != value for name, value in EVERYTHING.items() if name not in SHARED)


def test_toml_writes_every_default_out() -> None:
    written = tomllib.loads(Recipe().to_toml())
    assert Recipe(**written).flat() == Recipe().flat()
    unset = {name for name, value in Recipe().flat().items() if value is None}
    named = {name for section in written.values() if isinstance(section, dict) for name in section}
    assert named - {"source", "enabled"} | {"base", "data", "tune"} == Recipe.settings().keys() - unset


def test_sections_and_names_are_the_same() -> None:
    by_name = Recipe(data="reviews.csv", ranks=(1, 4), epochs=2, device="cpu")
    sections = {"data": {"source": "reviews.csv"}, "lora": {"ranks": (1, 4)}, "train": {"epochs": 2}}
    assert Recipe(**sections, machine={"device": "cpu"}) == by_name
    assert by_name.replace(data="other.csv", seeds=(1, 2)).data.source == "other.csv"


def test_a_setting_is_laid_over_a_section(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[data]\nsource = 'a.csv'\ntext_column = 'body'\n")
    found = Recipe.load(tmp_path / "mine.toml", data="b.csv").data
    assert (found.source, found.text_column) == ("b.csv", "body")


def test_changes_are_laid_over_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("epochs = 7\nranks = [4]\n")
    recipe = Recipe.load(tmp_path / "mine.toml", ranks=[8], base="gpt2")
    assert recipe == Recipe(epochs=7, ranks=(8,), base="gpt2")


def test_what_is_no_section_is_refused_with_changes_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('train = "train.csv"\n', "utf-8")
    message = r"train: 'train\.csv' is not a group of settings"
    with pytest.raises(UsageError, match=message):
        Recipe.load(path, epochs=3)
    with pytest.raises(UsageError, match=message):
        Recipe.preset("quickstart", train="train.csv")
    with pytest.raises(UsageError, match=message):
        Recipe(epochs=3).replace(train="train.csv")


def test_every_field_has_a_text() -> None:
    assert [name for name, field in Recipe.settings().items() if not field.description] == []


@pytest.mark.parametrize(
    ("mode", "scales", "alphas"),
    [
        ("fixed", [0.0, 0.8, 0.2, 0.05], [0.8, 0.8, 0.8, 0.8]),
        ("ratio", [0.0, 0.8, 0.8, 0.8], [0.0, 0.8, 3.2, 12.8]),
        ("rslora", [0.0, 0.8, 0.4, 0.2], [0.8, 0.8, 0.8, 0.8]),
    ],
)
def test_scale(mode: str, scales: list[float], alphas: list[float]) -> None:
    recipe = Recipe(alpha=0.8, alpha_mode=mode)
    ranks = (0, 1, 4, 16)
    assert [recipe.lora.scale(rank) for rank in ranks] == pytest.approx(scales)
    assert [recipe.lora.alpha_of(rank) for rank in ranks] == pytest.approx(alphas)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"rank": 4}, "rank: no such setting; did you mean ranks?"),
    ({"lr": 4}, "lr: no such setting; did you mean learning_rate?"),
    ({"zzz": 4}, "zzz: no such setting"),
    ({"ranks": []}, "ranks: give at least one value for ranks"),
    ({"ranks": [1, 2, 1]}, "ranks: ranks contains a value twice"),
    ({"ranks": [-1]}, "ranks: ranks must be between 0 and 4096"),
    ({"ranks": [4097]}, "ranks: ranks must be between 0 and 4096"),
    ({"ranks": [1.5]}, "ranks: 1.5 is not a whole number"),
    ({"ranks": ["four"]}, "ranks: 'four' is not a whole number"),
    ({"ranks": 4}, "ranks: 4 is not a list of whole numbers"),
    ({"seeds": []}, "seeds: give at least one value for seeds"),
    ({"seeds": [7, 7]}, "seeds: seeds contains a value twice"),
    ({"seeds": [-1]}, "seeds: seeds must be between 0 and 9223372036854775807"),
    ({"seeds": [2**63]}, "seeds: seeds must be between 0 and"),
    ({"labels": ["joy"]}, "labels: give at least two labels, all different and none empty"),
    ({"labels": ["joy", "joy"]}, "labels: give at least two labels"),
    ({"labels": ["joy", ""]}, "labels: give at least two labels"),
    ({"labels": "joy"}, "labels: give the labels as a list or tuple"),
    ({"validation_fraction": 0}, "validation_fraction: 0 is not a number above 0 and below 1"),
    ({"validation_fraction": 1}, "validation_fraction: 1 is not a number above 0 and below 1"),
    ({"max_length": 0}, "max_length: 0 is not a whole number of at least 1"),
    ({"alpha": 0}, "alpha: 0 is not a number above 0"),
    ({"alpha": math.inf}, "alpha: inf is not a finite number above 0"),
    ({"alpha_mode": "auto"}, "alpha_mode: 'auto' is not fixed, ratio or rslora"),
    ({"lora_dropout": 1}, "lora_dropout: 1 is not a number of at least 0 and below 1"),
    ({"lora_dropout": -0.1}, "lora_dropout: -0.1 is not a number of at least 0 and below 1"),
    ({"last_layers": 0}, "last_layers: 0 is not a whole number of at least 1"),
    ({"base_dropout": "sometimes"}, "base_dropout: 'sometimes' is not true or false"),
    ({"epochs": "three"}, "epochs: 'three' is not a whole number of at least 1"),
    ({"batch_size": 0}, "batch_size: 0 is not a whole number of at least 1"),
    ({"learning_rate": 0}, "learning_rate: 0 is not a number above 0"),
    ({"learning_rate": math.nan}, "learning_rate: nan is not a finite number above 0"),
    ({"learning_rates": [0, 1]}, "learning_rates: 0 is not a number above 0"),
    ({"weight_decay": -1}, "weight_decay: -1 is not a number of at least 0"),
    ({"schedule": "linaer"}, "schedule: 'linaer' is not linear, cosine or constant; did you mean linear?"),
    ({"warmup_steps": -1}, "warmup_steps: -1 is not a whole number of at least 0"),
    ({"max_grad_norm": -1}, "max_grad_norm: -1 is not a number of at least 0"),
    ({"class_weights": "auto"}, "class_weights: 'auto' is not none or balanced"),
    ({"keep": "first"}, "keep: 'first' is not last or best"),
    ({"precision": "int8"}, "precision: 'int8' is not auto, bfloat16 or float32"),
    ({"precision": "bf16"}, "precision: 'bf16' is not auto, bfloat16 or float32; did you mean bfloat16?"),
    ({"device": "gpu"}, "device: 'gpu' is not auto, cpu, cuda, cuda:N or mps; did you mean cuda?"),
    ({"device": "tpu"}, "device: 'tpu' is not auto, cpu, cuda, cuda:N or mps"),
    ({"device": "cpu:"}, "device: 'cpu:' is not auto, cpu, cuda, cuda:N or mps; did you mean cpu?"),
    ({"device": 5}, "device: 5 is not text"),
    ({"memory_gb": 0}, "memory_gb: 0 is not a number above 0"),
    ({"base": 5}, "base: 5 is not text"),
    ({"lora": 5}, "lora: 5 is not a group of settings"),
    ({"train": "a.csv", "epochs": 2}, "train: 'a.csv' is not a group of settings"),
    ({"epochs": 2, "train": "a.csv"}, "train: 'a.csv' is not a group of settings"),
    ({"class_weights": "a=1,b=1,a=2"}, "class_weights: 'a' has two weights"),
    ({"vary": {"alpha": [[1]]}}, "vary: alpha: [1] is not a number above 0"),
    ({"vary": {"alpha": [1, 1e5], "alpha_mode": ["ratio"]}}, "alpha: 100000 gives rank 16 a lora_alpha of "),
    ({"vary": 5}, "vary: 5 is not a group of settings"),
    ({"vary": {"wd": [0]}}, "vary: wd cannot vary within a rank; alpha, "),
    ({"vary": {"epochs": ["x"]}}, "vary: epochs: 'x' is not a number"),
    ({"vary": {"epochs": [0, 1]}}, "vary: epochs: 0 is not a whole number of at least 1"),
    ({"learning_rates": [1e-3]}, "learning_rates: one value leaves nothing to choose"),
]


PYDANTIC = ("Input should", "String should", "got {", "pattern", "Value error")


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_what_is_wrong(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Recipe("mine.toml", **values)
    assert caught.value.message.startswith(f"mine.toml: {message}")
    assert not any(words in caught.value.message for words in PYDANTIC)
    assert caught.value.message.count("\n") == 0
    assert caught.value.hint
    assert caught.value.exit_status == 2


def test_options_are_named_as_they_are_typed() -> None:
    for values, message in (
        ({"max_length": "long"}, "--max-length: 'long' is not a whole number of at least 1"),
        ({"ranks": ["1", "x"]}, "--ranks: 'x' is not a whole number"),
        ({"learning_rates": ["1"]}, "--learning-rates: one value leaves nothing to choose"),
        (
            {"tune": False, "learning_rates": [1], "vary": {"alpha": [1]}},
            "--learning-rates and vary: tuning is off",
        ),
    ):
        with pytest.raises(UsageError) as caught:
            Recipe("option", **values)
        assert caught.value.message.startswith(message)


def test_all_that_is_wrong_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        Recipe(**{"epochs": 0, "rank": 4, "alpha": -1})
    assert sorted(line.split(":")[1].strip() for line in caught.value.message.splitlines()) == [
        "alpha",
        "epochs",
        "rank",
    ]


def test_a_changed_preset_says_where_it_is_wrong() -> None:
    with pytest.raises(UsageError, match=r"^preset emotion: epochs: "):
        Recipe.preset("emotion", epochs=0)


@pytest.mark.parametrize("content", [b"epochs = ", b"epochs = 1\nepochs = 2", b"base = '\xff'"])
def test_a_file_that_is_no_toml(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        Recipe.load(path)
    assert caught.value.message.startswith(f"{path}: the recipe cannot be read: ")


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_file_that_is_not_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the recipe cannot be read"):
        Recipe.load(tmp_path / name)


def test_turning_tuning_off_removes_the_values_to_choose_from(tmp_path: Path) -> None:
    """They would be refused, but only those given together with it are a mistake."""
    tuned = Recipe(learning_rates=(1e-3, 3e-3), vary={"alpha": (8, 16)}, finalists=1)
    (tmp_path / "mine.toml").write_text(tuned.to_toml())
    for off in (tuned.replace(tune=False), Recipe.load(tmp_path / "mine.toml", tune=False)):
        assert off == Recipe(tune=False, finalists=1)
    with pytest.raises(UsageError, match="tuning is off"):
        tuned.replace(tune=False, learning_rates=(1e-3, 3e-3))


def test_a_recipe_is_not_changed_by_accident() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().base = "gpt2"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("texts", "epochs", "per_epoch", "steps"),
    [(32, 3, 2, 6), (33, 3, 3, 9), (1, 1, 1, 1), (160, 0.25, 10, 2), (160, 0.35, 10, 4), (16, 0.1, 1, 1)],
)
def test_steps_of_a_schedule(texts: int, epochs: float, per_epoch: int, steps: int) -> None:
    """The last batch may be smaller; a half is rounded to an even number, and there is at least one step."""
    train = Recipe(batch_size=16).train
    assert (train.steps_per_epoch(texts), train.schedule_steps(epochs, texts)) == (per_epoch, steps)
