"""A sweep's run folder is complete, consistent and reproducible."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoTokenizer

from rankwise import Recipe, UsageError, sweep
from rankwise.commands.sweep import default_folder
from rankwise.errors import DataError, ModelError
from rankwise.models import peft_format as adapters
from rankwise.report import ranks
from rankwise.report.run import load
from rankwise.report.samples import sample_table
from rankwise.schema import Results
from rankwise.store.run_folder import RunFolder
from rankwise.training.callbacks import Callback
from tests import tiny

NAMES = ["r0-s110", "r1-s110", "r4-s110"]
STEPS = 6  # of 8 texts, in 48


class Ears(Callback):
    """A callback that records events."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.stages: list[str] = []
        self.open = 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, stage: str, total: int | None) -> None:
        self.stages.append(stage)

    def end(self) -> None:
        self.open = len(self.stages)


def history(folder: RunFolder, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in folder.history.read_text("utf-8").splitlines()]
    return [line for line in lines if line["kind"] == kind]


def predictions(folder: RunFolder) -> list[dict[str, str]]:
    with folder.predictions.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def state(folder: RunFolder, name: str) -> dict[str, torch.Tensor]:
    return adapters.load(folder.adapters / name).state


def assert_alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], relative: float) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        distance = torch.linalg.vector_norm(tensor - other[name])
        assert distance <= relative * torch.linalg.vector_norm(tensor), name


def test_the_folder_is_complete(run: RunFolder, gpt2_base: Path) -> None:
    found = sorted(path.name for path in run.path.iterdir())
    assert found == [
        "README.md", "adapters", "data.json", "errors.csv", "figures", "history.jsonl", "logits",
        "predictions.csv", "recipe.toml", "report.html", "results.json", "samples.md", "table.csv",
        "table.md", "timing.json",
    ]  # fmt: skip
    assert sorted(path.name for path in run.adapters.iterdir()) == NAMES
    for name in NAMES:
        assert sorted(path.name for path in (run.adapters / name).iterdir()) == [
            "README.md", "adapter_config.json", "adapter_model.safetensors", "classifier.json",
            "sha256.json", "tokenizer.json", "tokenizer_config.json",
        ]  # fmt: skip
        copied = (run.adapters / name / "tokenizer.json").read_bytes()
        assert copied == (gpt2_base / "tokenizer.json").read_bytes()


def test_the_recipe_loads_back(run: RunFolder, gpt2_base: Path, data_folder: Path) -> None:
    assert Recipe.load(run.recipe) == tiny.recipe(gpt2_base, data_folder)


def test_the_results_say_what_was_run(run: RunFolder, gpt2_base: Path) -> None:
    results = run.read_results()
    assert (results.base, results.labels, results.texts) == (str(gpt2_base), list(tiny.LABELS), tiny.SIZES)
    assert (results.device, results.precision, results.notes) == ("cpu", "float32", [])
    assert [(row.name, row.rank, row.scale) for row in results.adapters] == [
        ("r0-s110", 0, 0.0),
        ("r1-s110", 1, 4.0),
        ("r4-s110", 4, 1.0),
    ]
    head, module = 3 * 16, 2 * (16 + 48)  # two layers of c_attn
    assert [row.trainable_params for row in results.adapters] == [head, head + module, head + 4 * module]
    for row in results.adapters:
        assert row.kept_epoch == 3
        weights = run.adapters / row.name / adapters.WEIGHTS
        assert row.adapter_bytes == weights.stat().st_size
        stored = sum(tensor.numel() for tensor in state(run, row.name).values())
        assert stored == row.trainable_params


def test_the_timing_adds_up(run: RunFolder) -> None:
    timing = run.read_timing()
    seconds = timing.seconds
    assert seconds["total"] >= sum(v for stage, v in seconds.items() if stage != "total") * 0.99
    assert timing.tokens_per_second > 0
    assert list(timing.train_seconds) == NAMES and min(timing.train_seconds.values()) > 0


def test_the_figures_are_those_of_the_predictions(run: RunFolder) -> None:
    results, lines = run.read_results(), predictions(run)
    assert len(lines) == tiny.SIZES["validation"] + tiny.SIZES["test"]
    for split in ("validation", "test"):
        mine = [line for line in lines if line["split"] == split]
        truth = [line["label"] for line in mine]
        assert [(line["text"], line["label"]) for line in mine] == tiny.rows(
            tiny.SIZES[split], {"validation": 1, "test": 2}[split]
        )
        for row in results.adapters:
            found = row.validation if split == "validation" else row.test
            assert found is not None
            predicted = [line[row.name] for line in mine]
            assert found.texts == len(mine)
            assert found.accuracy == pytest.approx(accuracy_score(truth, predicted))
            assert found.macro_f1 == pytest.approx(f1_score(truth, predicted, average="macro"))
            assert np.sum(found.confusion) == len(mine)
            assert found.accuracy_low <= found.accuracy <= found.accuracy_high
            shares = [float(line[f"{row.name} probability"]) for line in mine]
            assert all(1 / 3 <= share <= 1 for share in shares)


def test_the_keywords_are_learned(run: RunFolder) -> None:
    assert max(row.validation.accuracy for row in run.read_results().adapters) > 0.6


def test_the_history_has_a_line_for_each_step_and_each_validation(run: RunFolder) -> None:
    steps, validations = history(run, "step"), history(run, "validation")
    for bank, names in ((1, NAMES[:1]), (2, NAMES[1:])):  # the linear probe has a separate bank
        mine = [line for line in steps if line["bank"] == bank]
        assert [line["number"] for line in mine] == list(range(1, 3 * STEPS + 1))
        assert all(line["adapters"] == names and line["steps"] == 3 * STEPS for line in mine)
        assert all(len(line["losses"]) == len(line["grad_norms"]) == len(names) for line in mine)
        assert mine[0]["learning_rates"] == pytest.approx([0.02] * len(names))
        assert [line["epoch"] for line in validations if line["bank"] == bank] == [1, 2, 3]
    results = run.read_results()
    for row in results.adapters:
        mine = [line for line in steps if row.name in line["adapters"]]
        losses = [line["losses"][line["adapters"].index(row.name)] for line in mine]
        assert row.train_loss == pytest.approx(np.mean(losses))
        last = [line for line in validations if row.name in line["adapters"]][-1]
        accuracy = last["accuracy"][last["adapters"].index(row.name)]
        assert accuracy == pytest.approx(row.validation.accuracy)


def test_the_tables_are_those_of_the_results(run: RunFolder) -> None:
    table = run.table.read_text("utf-8")
    for row in run.read_results().adapters:
        assert f" | {row.trainable_params:,} | {row.total_params:,} |" in table
        assert f"| {100 * row.validation.accuracy:.2f} |" in table
    samples = run.samples.read_text("utf-8")
    assert samples.count("\n") == 2 + 2 + 2 * len(tiny.LABELS)


def test_twice_the_same(run: RunFolder, gpt2_base: Path, data_folder: Path, tmp_path: Path) -> None:
    again = RunFolder(tmp_path / "again")
    sweep(tiny.recipe(gpt2_base, data_folder), again.path)
    for path in run.adapters.rglob("*.*"):
        assert path.read_bytes() == (again.path / path.relative_to(run.path)).read_bytes(), path
    for name in ("predictions", "table", "samples", "history"):
        assert getattr(run, name).read_bytes() == getattr(again, name).read_bytes(), name


def test_several_banks_give_the_same_adapters_as_one(
    run: RunFolder, gpt2_base: Path, data_folder: Path, tmp_path: Path
) -> None:
    apart = RunFolder(tmp_path / "apart")
    results = sweep(tiny.recipe(gpt2_base, data_folder, memory_gb=1e-6), apart.path)
    assert [row.bank for row in results.adapters] == [1, 2, 3]
    assert [row.bank for row in run.read_results().adapters] == [1, 2, 2]
    for name in NAMES:
        assert_alike(state(run, name), state(apart, name), 1e-4)


def test_an_adapter_does_not_depend_on_the_other_ranks(
    run: RunFolder, gpt2_base: Path, data_folder: Path, tmp_path: Path
) -> None:
    alone = RunFolder(tmp_path / "alone")
    sweep(tiny.recipe(gpt2_base, data_folder, ranks=(8, 4), seeds=(7, 110)), alone.path)
    assert sorted(path.name for path in alone.adapters.iterdir()) == [
        "linear-probe", "r4-s110", "r4-s7", "r8-s110", "r8-s7",
    ]  # fmt: skip
    assert_alike(state(run, "r4-s110"), state(alone, "r4-s110"), 1e-4)
    with pytest.raises(AssertionError):
        assert_alike(state(run, "r4-s110"), state(alone, "r4-s7"), 0.1)


def test_every_adapter_starts_from_its_own_fresh_head(
    gpt2_base: Path, data_folder: Path, tmp_path: Path
) -> None:
    still = RunFolder(tmp_path / "still")
    changes: dict[str, Any] = {"learning_rate": 1e-12, "epochs": 2, "keep": "best", "memory_gb": 1e-6}
    results = sweep(tiny.recipe(gpt2_base, data_folder, **changes), still.path)
    assert [row.kept_epoch for row in results.adapters] == [1, 1, 1]  # the first of tied epochs
    heads = [state(still, name)["score"] for name in NAMES]
    torch.testing.assert_close(heads[1], heads[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(heads[2], heads[0], rtol=1e-6, atol=1e-6)
    assert all(tensor.abs().max() < 1e-6 for name, tensor in state(still, NAMES[2]).items() if "_B" in name)


@pytest.fixture(scope="module")
def restless(tmp_path_factory: pytest.TempPathFactory, gpt2_base: Path, data_folder: Path) -> RunFolder:
    """A run that keeps the best epoch, with a learning rate so high that the last is not always the best."""
    folder = RunFolder(tmp_path_factory.mktemp("restless") / "run")
    changes: dict[str, Any] = {"keep": "best", "epochs": 5, "learning_rate": 0.3, "schedule": "constant"}
    sweep(tiny.recipe(gpt2_base, data_folder, **changes), folder.path)
    return folder


def test_the_best_epoch_is_kept(restless: RunFolder) -> None:
    kept = []
    for row in restless.read_results().adapters:
        mine = [line for line in history(restless, "validation") if row.name in line["adapters"]]
        accuracies = [line["accuracy"][line["adapters"].index(row.name)] for line in mine]
        assert row.kept_epoch == 1 + int(np.argmax(accuracies))
        assert row.validation.accuracy == pytest.approx(max(accuracies))
        kept.append(row.kept_epoch)
    assert min(kept) < 5, "no adapter had its best epoch before the last: this test shows nothing"


def test_what_is_kept_is_what_predicted(restless: RunFolder) -> None:
    from rankwise import Classifier

    for row in restless.read_results().adapters:
        classifier = Classifier.load(restless.adapters / row.name, device="cpu", precision="float32")
        lines = predictions(restless)
        found = classifier([line["text"] for line in lines])
        assert [each.label for each in found] == [line[row.name] for line in lines]
        shares = [float(line[f"{row.name} probability"]) for line in lines]
        assert [each.probability for each in found] == pytest.approx(shares, abs=2e-4)


def test_a_missing_validation_split_is_cut_and_said(gpt2_base: Path, tmp_path: Path) -> None:
    data, ears = tiny.data_folder(tmp_path / "data", ("train",)), Ears()
    folder = RunFolder(tmp_path / "run")
    results = sweep(tiny.recipe(gpt2_base, data, ranks=(1,), epochs=1), folder.path, ears)
    assert results.texts == {"train": 42, "validation": 6}  # two of each class
    assert "no validation split: 6 of 48" in results.notes[0]
    assert ears.notes == results.notes
    assert results.adapters[0].test is None
    assert "test accuracy" not in folder.table.read_text("utf-8")
    assert folder.samples.read_text("utf-8").startswith("validation texts")
    assert ears.stages == [
        "data", "base", "tokens", "load", "train", "validation", "linear probe", "validation", "baselines",
    ]  # fmt: skip
    assert ears.open == len(ears.stages), "the last stage was never ended"


def test_what_is_chosen_does_not_depend_on_the_test_split(
    gpt2_base: Path, data_folder: Path, tmp_path: Path
) -> None:
    """Other labels in the test file only change test metrics, not kept epochs or the verdict."""
    data = shutil.copytree(data_folder, tmp_path / "data")
    turned = [(text, tiny.LABELS[(tiny.LABELS.index(label) + 1) % 3]) for text, label in tiny.rows(12, 2)]
    tiny.write_csv(data / "test.csv", turned)
    recipes = [tiny.recipe(gpt2_base, folder, keep="best") for folder in (data_folder, data)]
    runs = [RunFolder(tmp_path / name) for name in ("one", "other")]
    one, other = (sweep(recipe, run.path) for recipe, run in zip(recipes, runs, strict=True))
    assert [row.test for row in one.adapters] != [row.test for row in other.adapters]
    assert one.fingerprint.pop("test") != other.fingerprint.pop("test")
    for found in (one, other):
        for adapter in found.adapters:
            adapter.test = None
        for reference in found.baselines:
            reference.test = None
        for cut in found.cuts:
            cut.test = None
    assert one == other
    assert ranks.compare(load(runs[0])) == ranks.compare(load(runs[1]))
    titles = [sample_table(load(run)).title for run in runs]
    assert titles[0] == titles[1] and titles[0].startswith("test texts, predicted by ")
    for name in NAMES:
        assert_alike(state(runs[0], name), state(runs[1], name), 0)


def test_a_tokenizer_of_another_model_is_refused(gpt2_base: Path, data_folder: Path, tmp_path: Path) -> None:
    base = shutil.copytree(gpt2_base, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["glad"])
    tokenizer.save_pretrained(base)
    with pytest.raises(ModelError, match="the tokenizer gives token"):
        sweep(tiny.recipe(base, data_folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_refused_and_left_alone(
    gpt2_base: Path, data_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="already exists"):
        sweep(tiny.recipe(gpt2_base, data_folder), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_bad_data_leaves_no_folder(gpt2_base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        sweep(tiny.recipe(gpt2_base, tmp_path / "none.csv"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_texts_of_any_form_come_through(gpt2_base: Path, data_folder: Path, tmp_path: Path) -> None:
    data = shutil.copytree(data_folder, tmp_path / "data")
    odd = ["lone\rreturn", 'a "quote", a comma', "two\nlines", "a \x01 control", "long " * 40_000]
    lines = [json.dumps({"text": text, "label": "joy"}) for text in odd]
    lines.append(json.dumps({"text": "so cross", "label": "anger"}))
    (data / "test.csv").unlink()
    (data / "test.jsonl").write_text("\n".join(lines), encoding="utf-8")
    folder = RunFolder(tmp_path / "run")
    results: Results = sweep(tiny.recipe(gpt2_base, data, ranks=(1,), epochs=1), folder.path)
    assert results.texts["test"] == 6
    assert [line["text"] for line in predictions(folder)[-6:-1]] == odd


def test_balanced_weights_change_the_loss(gpt2_base: Path, tmp_path: Path) -> None:
    content = tiny.rows(30, 0, ("joy",)) + tiny.rows(6, 1, ("fear",))
    data = tiny.write_csv(tmp_path / "train.csv", content)
    found = [
        sweep(
            tiny.recipe(gpt2_base, data, ranks=(1,), epochs=1, class_weights=weights),
            tmp_path / weights,
        )
        for weights in ("none", "balanced")
    ]
    assert found[0].adapters[0].train_loss != pytest.approx(found[1].adapters[0].train_loss, rel=1e-3)


def test_the_default_folder_names_data_and_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = default_folder(Recipe(data="dair-ai/emotion", base="openai-community/gpt2")).name
    assert name.startswith("emotion-gpt2-")
