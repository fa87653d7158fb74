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
from transformers import AutoTokenizer, TrainingArguments

from rankwise import Classifier, sweep
from rankwise.nn.classifier import logits
from rankwise.nn.ragged.batch import pack
from rankwise.recipe import Recipe
from rankwise.tasks.multi import MultiLabel
from rankwise.training.trainer import order
from tests import tiny
from tests.parity.peers import CLASSES, Pair, make_pair, random_texts
from tests.parity.test_training import InOrder, _pad
from tests.training import train

STEPS, BATCH, SEED = 20, 8, 0
MULTI = MultiLabel()


def made(family: str, texts: int) -> tuple[Pair, list[NDArray[np.int64]], NDArray[np.int8]]:
    """A pair without dropout, texts, and (texts, classes) targets of which some are empty."""
    pair = make_pair(family)
    pair.peft.config.use_cache = False
    pair.peft.config.problem_type = "multi_label_classification"
    for module in pair.peft.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    random = np.random.default_rng(3)
    ids = random_texts(random.integers(1, 30, texts).tolist(), 500)
    return pair, ids, (random.random((texts, CLASSES)) < 0.3).astype(np.int8)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_loss_and_gradients(family: str) -> None:
    pair, ids, targets = made(family, 9)
    rows = [{"ids": text, "label": target} for text, target in zip(ids, targets, strict=True)]
    theirs = pair.peft(**_padded(rows)).loss
    (ours,) = logits(pair.backbone, pair.bank, pack([ids]))
    loss = MULTI.loss(CLASSES, None, None, torch.device("cpu"))([ours], [torch.from_numpy(targets)])
    assert float(loss.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    torch.autograd.backward(theirs + loss.sum())
    for name, parameter in pair.peer_parameters().items():
        mine, other = pair.bank.tensors[0][name].grad, parameter.grad
        assert mine is not None and other is not None
        assert torch.linalg.vector_norm(mine - other) <= 1e-5 * torch.linalg.vector_norm(other), name


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_steps(family: str, tmp_path: Path) -> None:
    pair, ids, targets = made(family, STEPS * BATCH)
    settings: dict[str, Any] = {"epochs": 1, "batch_size": BATCH, "learning_rate": 2e-3, "weight_decay": 0.1}
    recipe = Recipe(**settings, base_dropout=False, task="multi-label")
    steps = train(pair.backbone, pair.bank, ids, targets, **recipe.flat())
    rows = [{"ids": ids[i], "label": targets[i]} for i in order(SEED, 0, len(ids))]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=recipe.train.learning_rate,
        weight_decay=recipe.train.weight_decay,
        lr_scheduler_type="linear",
        max_grad_norm=recipe.train.max_grad_norm,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = InOrder(pair.peft, arguments, train_dataset=rows, data_collator=_padded)
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    np.testing.assert_allclose([step.losses[0] for step in steps], theirs, rtol=1e-4, atol=1e-4)
    for name, parameter in pair.peer_parameters().items():
        mine, other = pair.bank.tensors[0][name].detach(), parameter.detach()
        assert torch.linalg.vector_norm(mine - other) <= 1e-4 * torch.linalg.vector_norm(other), name


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


def _padded(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    made = _pad([row | {"label": 0} for row in rows])
    labels = np.stack([row["label"] for row in rows])
    return made | {"labels": torch.from_numpy(labels).float()}
