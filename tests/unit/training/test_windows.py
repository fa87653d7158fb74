"""Training on texts that are read in windows: the same for texts that fit, and a long text counts once."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from rankwise import Classifier, Recipe, UsageError, evaluate, sweep
from rankwise.cli.app import app
from rankwise.commands.preview import data_report, preview
from rankwise.data.load import Split
from rankwise.models import windows
from rankwise.models.tokenizer import Tokenizer
from rankwise.nn.classifier import logits
from rankwise.nn.ragged.batch import pack
from rankwise.recipe import TrainSettings
from rankwise.report.run import load
from rankwise.store.run_folder import RunFolder
from rankwise.training.data import EncodedSplit
from rankwise.training.trainer import Trainer, TrainingData, order
from tests import tiny
from tests.unit.nn import models
from tests.unit.test_resume import Stop, content, stopped

WIDTH, STRIDE = 8, 6


def long_folder(folder: Path) -> Path:
    """Every third text is long, and has its keyword at the end."""
    draw = random.Random(5)
    for seed, (split, number) in enumerate(tiny.SIZES.items()):
        rows = tiny.rows(number, seed)
        longer = [
            ("so and so " * draw.randint(4, 9) + text if i % 3 == 0 else text, label)
            for i, (text, label) in enumerate(rows)
        ]
        tiny.write_csv(folder / f"{split}.csv", longer)
    return folder


@pytest.fixture(scope="module")
def long_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return long_folder(tmp_path_factory.mktemp("long") / "data")


def recipe(base: Path, data: Path, **changes: Any) -> Recipe:
    given: dict[str, Any] = {"max_length": 24, "windows": True, "window_stride": 16, "ranks": (1, 4)}
    return tiny.recipe(base, data, **(given | changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, gpt2_base: Path, long_data: Path) -> RunFolder:
    """A finished run. Read-only."""
    made = RunFolder(tmp_path_factory.mktemp("runs") / "windows")
    sweep(recipe(gpt2_base, long_data), made.path)
    return made


# Steps


def encoded(number: int = 10) -> EncodedSplit:
    """Texts of which some have several windows."""
    random = np.random.default_rng(3)
    counts = np.array([1 + (i % 3) * (i % 2) for i in range(number)])
    ids = models.texts(random.integers(1, 12, counts.sum()).tolist(), seed=4)
    return EncodedSplit(Split("train", [], []), ids, np.arange(number) % models.CLASSES, counts)


def trainer(split: EncodedSplit, **changes: Any) -> Trainer:
    backbone = models.backbone("llama")
    spec = models.spec(backbone, 2, seed=7, targets=["all-linear"])
    names = [str(i) for i in range(models.CLASSES)]
    data = TrainingData(
        split.ids, split.targets, names, None, split.ids, split.targets,
        windows=split.windows, validation_windows=split.windows,
    )  # fmt: skip
    settings = TrainSettings(batch_size=4, epochs=1, base_dropout=False)
    return Trainer(backbone, [spec], data, settings, **changes)


@pytest.mark.parametrize("micro_batches", [1, 2, 5])
def test_the_loss_of_a_step_is_the_mean_over_texts_of_the_mean_over_windows(micro_batches: int) -> None:
    split = encoded()
    assert split.windows is not None
    making = trainer(split, micro_batches=micro_batches)
    backbone, bank = making.backbone, making.bank
    (found,) = logits(backbone, bank, pack([split.ids]))
    of_text = np.repeat(np.arange(len(split)), split.windows)
    each = (
        torch.nn.functional.cross_entropy(found, torch.from_numpy(split.targets[of_text]), reduction="none")
        .detach()
        .numpy()
    )
    batch = order(7, 0, len(split))[:4]
    assert split.windows[batch].max() > 1
    expected = np.mean([each[of_text == text].mean() for text in batch])
    assert making.step().losses == [pytest.approx(expected, rel=1e-5)]


def test_an_epoch_has_as_many_steps_as_texts_need() -> None:
    """Ten texts have fourteen windows."""
    making = trainer(encoded())
    assert (making.steps, len(making.data.ids)) == (3, 14)
    assert making.data.largest_batch(4) == 3 + 2 + 2 + 1


def test_validation_scores_the_mean_over_windows() -> None:
    split = encoded()
    making = trainer(split)
    while not making.done:
        making.validate() if making.validation_due else making.step()
    (kept,) = making.kept().values()
    found = making.kept_logits(split.ids)[making.specs[0].name]
    assert kept.logits.shape == (10, models.CLASSES) and found.shape == (len(split.ids), models.CLASSES)
    np.testing.assert_allclose(kept.logits, split.mean(found), atol=1e-6)


def test_picked_texts_keep_their_windows() -> None:
    split = encoded()
    assert split.windows is not None
    picked = split.pick(np.array([5, 0, 3]))
    assert picked.windows is not None and picked.windows.tolist() == split.windows[[5, 0, 3]].tolist()
    first = windows.begins(split.windows)
    expected = [split.ids[first[i] + k] for i in (5, 0, 3) for k in range(split.windows[i])]
    assert all(one is other for one, other in zip(picked.ids, expected, strict=True))


# Encoding


def test_long_texts_are_encoded_in_windows(gpt2_base: Path) -> None:
    tokenizer = Tokenizer.load(gpt2_base)
    texts = ["so glad", "so and so " * 9 + "cross", "merry"]
    split = EncodedSplit.encode(Split("train", texts, [0, 1, 0]), tokenizer, WIDTH, stride=STRIDE)
    found, _ = tokenizer.in_windows(texts, WIDTH, STRIDE)
    assert split.windows is not None and split.windows.tolist() == [len(each) for each in found]
    assert [ids.tolist() for ids in split.ids] == [ids.tolist() for each in found for ids in each]
    assert (split.windowed, split.cut, len(split)) == (1, 0, 3)
    cut = EncodedSplit.encode(Split("train", texts, [0, 1, 0]), tokenizer, WIDTH)
    assert (cut.windows, cut.windowed, cut.cut) == (None, 0, 1)
    assert [ids.tolist() for ids in cut.ids] == [each[0].tolist() for each in found]


# Sweeps


def test_texts_that_fit_train_as_without_windows(gpt2_base: Path, data_folder: Path, tmp_path: Path) -> None:
    with_windows, without = (RunFolder(tmp_path / name) for name in ("with", "without"))
    sweep(recipe(gpt2_base, data_folder, max_length=32), with_windows.path)
    sweep(tiny.recipe(gpt2_base, data_folder, ranks=(1, 4)), without.path)
    one, other = content(with_windows.path), content(without.path)
    settled = ("adapters", "logits", "predictions.csv", "history.jsonl")
    for name in one:
        if name.startswith(settled) and not name.endswith(("classifier.json", "README.md", "sha256.json")):
            assert one[name] == other[name], name
    assert not any("window" in note for note in load(with_windows).results.notes)


def test_what_is_said(finished: RunFolder, gpt2_base: Path, long_data: Path) -> None:
    run = load(finished)
    assert run.results.windowed == {"train": 16, "validation": 6, "test": 4}
    counts = "16 of 48 texts of train, 6 of 18 texts of validation, 4 of 12 texts of test"
    said = f"{counts} read in windows of 24 tokens"
    assert said in run.results.notes
    assert said in (finished.path / "report.html").read_text("utf-8")
    words = ["data", str(long_data), "--base", str(gpt2_base), "--max-length", "24", "--windows"]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert [split["windowed"] for split in json.loads(result.stdout)["splits"]] == [16, 6, 4]
    assert [split["truncated"] for split in json.loads(result.stdout)["splits"]] == [0, 0, 0]
    result = CliRunner().invoke(app, words)
    assert said in " ".join(result.stdout.split())


def test_an_adapter_is_used_as_it_was_trained(finished: RunFolder, long_data: Path) -> None:
    """Windows are the default of such an adapter, and its logits are those of the run."""
    folder = finished.adapters / "r4-s110"
    loaded = Classifier.load(folder, device="cpu", precision="float32")
    assert loaded.window_stride == 16
    with (long_data / "validation.csv").open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    run = load(finished)
    metrics = evaluate(loaded, long_data / "validation.csv")
    (row,) = (each for each in run.results.adapters if each.name == "r4-s110")
    assert row.validation is not None and metrics.accuracy == row.validation.accuracy
    assert loaded.long_texts(texts).windowed == 6
    cut = Classifier.load(folder, device="cpu", precision="float32", windows=False)
    assert cut.window_stride is None and (cut.logits(texts) != loaded.logits(texts)).any()
    other = Classifier.load(folder, device="cpu", precision="float32", window_stride=24)
    assert other.window_stride == 24


def test_a_resumed_run_is_bit_identical(
    finished: RunFolder, gpt2_base: Path, long_data: Path, tmp_path: Path
) -> None:
    again = recipe(gpt2_base, long_data)
    stopped(again, tmp_path / "run", Stop(step=8))
    sweep(again, tmp_path / "run", resume=True)
    assert content(tmp_path / "run") == content(finished.path)
    with pytest.raises(UsageError, match="window_stride is 16 in this run"):
        sweep(again.replace(window_stride=8), tmp_path / "run", resume=True)


def test_several_labels_tuning_and_class_weights(llama_base: Path, tmp_path: Path) -> None:
    folder = tiny.multi_folder(tmp_path / "data")
    lines = (folder / "train.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows[::4]:
        row["text"] = "so and so " * 6 + row["text"]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    found = sweep(
        recipe(
            llama_base, folder, task="multi-label", class_weights="balanced", epochs=2, baselines=False,
            tune=True, learning_rates=(0.01, 0.02), finalists=1, ranks=(1,), tuning_texts=60,
        ),
        tmp_path / "run",
    )  # fmt: skip
    assert found.windowed["train"] == 24
    assert found.tuning is not None and (found.tuning.texts, found.tuning.train_texts) == (60, 36)


def test_pairs_are_windows_of_the_joined_text(gpt2_base: Path, tmp_path: Path) -> None:
    rows = [
        {
            "one": "so and so " * (6 if i % 4 == 0 else 1),
            "other": f"glad {i}" if i % 2 else "cross",
            "label": str(i % 2),
        }
        for i in range(60)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    given: dict[str, Any] = {"text_columns": ("one", "other"), "epochs": 1, "baselines": False, "ranks": (1,)}
    found = sweep(recipe(gpt2_base, path, **given), tmp_path / "run")
    assert sum(found.windowed.values()) == 15


# Costs and errors


def test_the_plan_counts_all_windows(gpt2_base: Path, long_data: Path) -> None:
    cut, windowed = (
        preview(recipe(gpt2_base, long_data, windows=on, window_stride=16 if on else None, max_length=16))
        for on in (False, True)
    )
    assert cut.tokens is not None and windowed.tokens is not None
    assert windowed.tokens > cut.tokens and windowed.memory_bytes > cut.memory_bytes
    assert windowed.steps == cut.steps


def test_lengths_in_words_say_nothing_of_windows(long_data: Path) -> None:
    found, _ = data_report(Recipe(data=str(long_data), base="gpt2", windows=True))
    assert all(split.windowed is None for split in found.splits)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"window_stride": 8}, "texts are not read in windows: add windows=True"),
        ({"windows": True, "max_length": 16, "window_stride": 17}, "a window has 16 tokens"),
        ({"windows": True, "window_stride": 0}, "0 is not a whole number of at least 1"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Recipe(**given)
