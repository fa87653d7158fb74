"""Multi-label losses, gradients and steps are those of transformers + PEFT, and so are saved adapters."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer

from rankwise import Classifier, sweep
from rankwise.recipe import Recipe
from tests import tiny
from tests.parity.peers import (
    CLASSES,
    Pair,
    gradients_apart,
    make_pair,
    random_texts,
    steps_apart,
    without_dropout,
)

STEPS, BATCH = 20, 8


def made(family: str, texts: int) -> tuple[Pair, list[NDArray[np.int64]], NDArray[np.int8]]:
    """A pair without dropout, texts, and (texts, classes) targets of which some are empty."""
    random = np.random.default_rng(3)
    ids = random_texts(random.integers(1, 30, texts).tolist(), 500)
    pair = without_dropout(make_pair(family), several_labels=True)
    return pair, ids, (random.random((texts, CLASSES)) < 0.3).astype(np.int8)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_loss_and_gradients(family: str) -> None:
    found = gradients_apart(*made(family, 9))
    assert found.losses <= 1e-5
    assert found.tensors <= 1e-5


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_steps(family: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 1, "batch_size": BATCH, "learning_rate": 2e-3, "weight_decay": 0.1}
    recipe = Recipe(**settings, base_dropout=False, task="multi-label")
    found = steps_apart(*made(family, STEPS * BATCH), recipe, tmp_path)
    assert found.losses <= 1e-4
    assert found.tensors <= 1e-4


def test_a_saved_adapter_gives_the_same_labels_in_peft(llama_base: Path, tmp_path: Path) -> None:
    data = tiny.multi_folder(tmp_path / "data")
    sweep(tiny.recipe(llama_base, data, task="multi-label", ranks=(2,), baselines=False), tmp_path / "run")
    folder = tmp_path / "run" / "adapters" / "r2-s110"
    own = json.loads((folder / "classifier.json").read_text("utf-8"))
    named = {name: own[name] for name in ("num_labels", "label2id", "problem_type")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT uses deprecated transformers names
        model = peft.AutoPeftModelForSequenceClassification.from_pretrained(folder, **named).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    classifier = Classifier.load(folder, device="cpu", precision="float32")
    for text, _ in tiny.multi_rows(8, 9):
        with torch.inference_mode():
            probabilities = model(**tokenizer(text, return_tensors="pt")).logits[0].sigmoid().numpy()
        (found,) = classifier([text])
        assert np.allclose(list(found.probabilities.values()), probabilities, atol=1e-5)
        above = probabilities >= own["rankwise"]["thresholds"]
        labels = classifier.labels
        assert tuple(label for label, is_above in zip(labels, above, strict=True) if is_above) == found.labels
