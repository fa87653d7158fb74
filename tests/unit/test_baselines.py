"""Baselines are correct, use the same texts, and are deterministic."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from rankwise import Classifier, Recipe, sweep
from rankwise.commands.baselines import linear_svm, majority
from rankwise.data import load as data
from rankwise.plan import PROBE
from rankwise.schema import Baseline
from rankwise.store.run_folder import RunFolder
from rankwise.training.callbacks import Callback
from rankwise.training.data import EncodedSplit
from rankwise.training.optimizer import AdamW
from tests import tiny
from tests.emotion import EMOTION, needs_emotion

NAMES = ["majority class", "TF-IDF + linear SVM", "untrained head"]


def encoded(name: str, rows: list[tuple[str, int]]) -> EncodedSplit:
    split = data.Split(name, [text for text, _ in rows], [label for _, label in rows])
    return EncodedSplit(split, [], np.array(split.labels, dtype=np.int64))


def material(
    train: list[tuple[str, int]], validation: list[tuple[str, int]]
) -> tuple[EncodedSplit, dict[str, EncodedSplit]]:
    return encoded("train", train), {"validation": encoded("validation", validation)}


def by_name(run: RunFolder) -> dict[str, Baseline]:
    return {row.name: row for row in run.read_results().baselines}


def test_the_rows_of_a_run_that_has_rank_0(run: RunFolder) -> None:
    rows = by_name(run)
    assert list(rows) == NAMES
    for row in rows.values():
        assert (row.validation.split, row.validation.texts) == ("validation", tiny.SIZES["validation"])
        assert row.test is not None and row.test.split == "test"
    assert rows["majority class"].validation.accuracy == pytest.approx(1 / 3)
    # Keywords separate the classes.
    assert rows["TF-IDF + linear SVM"].validation.accuracy == 1.0
    assert rows["TF-IDF + linear SVM"].validation.log_loss is None


def test_the_untrained_head_is_where_rank_0_begins(
    run: RunFolder, gpt2_base: Path, data_folder: Path, tmp_path: Path
) -> None:
    recipe = tiny.recipe(gpt2_base, data_folder, ranks=(0,), epochs=1, learning_rate=1e-12)
    still = sweep(recipe, tmp_path / "run").adapters[0]
    untrained = by_name(run)["untrained head"]
    assert untrained.validation.confusion == still.validation.confusion
    assert untrained.validation.log_loss == pytest.approx(still.validation.log_loss, rel=1e-6)


@pytest.mark.parametrize("keep", ["last", "best"])
def test_rank_0_as_a_reference_is_the_adapter_of_rank_0(
    keep: str, gpt2_base: Path, data_folder: Path, tmp_path: Path
) -> None:
    recipe = tiny.recipe(
        gpt2_base, data_folder, ranks=(1,), seeds=(110, 111), keep=keep, class_weights="balanced"
    )
    found = sweep(recipe, tmp_path / "one")
    assert [row.name for row in found.baselines] == [*NAMES, "rank 0"]
    other = sweep(recipe.replace(ranks=(0,), seeds=(110,)), tmp_path / "other").adapters[0]
    row = found.baselines[-1]
    assert row.validation.confusion == other.validation.confusion
    assert row.validation.log_loss == pytest.approx(other.validation.log_loss, rel=1e-5)
    assert row.test is not None and other.test is not None
    assert row.test.log_loss == pytest.approx(other.test.log_loss, rel=1e-5)


def test_they_can_be_left_out(gpt2_base: Path, data_folder: Path, tmp_path: Path) -> None:
    recipe = tiny.recipe(gpt2_base, data_folder, ranks=(1,), epochs=1, baselines=False)
    assert sweep(recipe, tmp_path / "run").baselines == []


def test_a_linear_probe_that_diverges_is_left_out_and_said(
    gpt2_base: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ears(Callback):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

    update = AdamW.step

    def poisoned(self: AdamW, rates: Sequence[float]) -> torch.Tensor:
        norms = update(self, rates)
        if self.bank.specs[0].name == PROBE:
            self.bank.flat.detach()[0] = torch.nan
        return norms

    ears = Ears()
    monkeypatch.setattr(AdamW, "step", poisoned)
    found = sweep(tiny.recipe(gpt2_base, data_folder, ranks=(1,), epochs=1), tmp_path / "run", ears)
    assert [row.name for row in found.baselines] == NAMES
    assert found.diverged == [] and [row.name for row in found.adapters] == ["r1-s110"]
    (note,) = ears.notes
    assert note.startswith("step 1: adapter linear-probe is dropped: loss ")


def test_the_linear_probe_is_an_adapter_with_a_folder_of_its_own(
    gpt2_base: Path, data_folder: Path, tmp_path: Path
) -> None:
    sweep(tiny.recipe(gpt2_base, data_folder, ranks=(1,), epochs=1), tmp_path / "run")
    found = Classifier.load(tmp_path / "run" / "adapters" / PROBE, device="cpu", precision="float32")
    assert found(["so glad"])[0].label in tiny.LABELS


def test_an_interrupted_linear_probe_is_resumed(gpt2_base: Path, data_folder: Path, tmp_path: Path) -> None:
    recipe = tiny.recipe(gpt2_base, data_folder, ranks=(1,), epochs=2)

    class Stop(Callback):
        def step(self, adapters: Sequence[str], number: int, steps: int, losses: Sequence[float]) -> None:
            if list(adapters) == [PROBE] and number == 8:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(recipe, tmp_path / "cut", Stop())
    again, whole = sweep(recipe, tmp_path / "cut", resume=True), sweep(recipe, tmp_path / "whole")
    assert again.baselines == whole.baselines


def test_the_majority_says_the_shares_of_train() -> None:
    splits = material([("a", 0), ("b", 1), ("c", 1), ("d", 1)], [("e", 0), ("f", 1)])
    logits = majority(*splits, 3)["validation"]
    assert logits.argmax(axis=1).tolist() == [1, 1]
    # A class without texts counts as half a text.
    assert np.exp(logits[0]) == pytest.approx([0.25, 0.75, 0.125])


def test_a_linear_svm_takes_any_text_and_two_or_more_classes() -> None:
    """Punctuation only, one letter, other scripts, a label missing in train; two classes, one column."""
    train = [(":-)", 2), ("!!", 0), ("я рад", 2), ("怒", 0), ("i", 2), ("no", 0)]
    splits = material(train, [(":-)", 2), ("!!", 0), ("never seen", 1)])
    logits = linear_svm(*splits, 3)["validation"]
    assert logits.shape == (3, 3) and logits.sum(axis=1).tolist() == [1, 1, 1]
    assert logits[:2].argmax(axis=1).tolist() == [2, 0]


def test_answers_are_the_same_each_time() -> None:
    rows = [(text, tiny.LABELS.index(label)) for text, label in tiny.rows(60, 3)]
    splits = material(rows[:40], rows[40:])
    one, other = linear_svm(*splits, 3), linear_svm(*splits, 3)
    assert np.array_equal(one["validation"], other["validation"])


@needs_emotion
def test_a_linear_svm_reaches_about_90_on_emotion() -> None:
    found = data.load(Recipe(data=os.fspath(EMOTION)))
    train, validation = (
        encoded(split.name, list(zip(split.texts, split.labels, strict=True))) for split in found.splits[:2]
    )
    predicted = linear_svm(train, {"validation": validation}, 6)["validation"].argmax(axis=1)
    assert (predicted == validation.targets).mean() == pytest.approx(0.90, abs=0.005)
