"""Fifty optimizer steps give the same result as transformers' Trainer + PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.utils.data import SequentialSampler

from rankwise.models.registry import FAMILIES
from rankwise.recipe import Recipe
from rankwise.training.trainer import order
from tests.parity.peers import CLASSES, make_pair, random_texts
from tests.training import train

STEPS, BATCH, SEED = 50, 8, 0


class InOrder(transformers.Trainer):
    """The Trainer without shuffling, so that both sides see the same batches."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(train_dataset)


@pytest.mark.parametrize(
    ("family", "schedule"),
    [*((name, "linear") for name in (*FAMILIES, "gpt_neox-serial")), ("gpt2", "cosine"), ("llama", "cosine")],
)
def test_fifty_steps(family: str, schedule: str, tmp_path: Path) -> None:
    pair = make_pair(family)
    pair.peft.config.use_cache = False
    for module in pair.peft.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):  # OPT layers have a rate, not a module
            module.dropout = 0.0
    random = np.random.default_rng(3)
    texts = random_texts(random.integers(1, 30, STEPS * BATCH).tolist(), 500)
    targets = random.integers(0, CLASSES, len(texts))
    recipe = Recipe(
        epochs=1,
        batch_size=BATCH,
        learning_rate=2e-3,
        weight_decay=0.1,
        warmup_steps=5,
        schedule=schedule,
        base_dropout=False,
    )
    steps = train(pair.backbone, pair.bank, texts, targets, **recipe.flat())
    ours = [step.losses[0] for step in steps]

    rows = [{"ids": texts[i], "label": int(targets[i])} for i in order(SEED, 0, len(texts))]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=recipe.train.learning_rate,
        weight_decay=recipe.train.weight_decay,
        lr_scheduler_type=schedule,
        warmup_steps=recipe.train.warmup_steps,
        max_grad_norm=recipe.train.max_grad_norm,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = InOrder(pair.peft, arguments, train_dataset=rows, data_collator=_pad)
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(ours) == len(theirs) == STEPS
    # The Trainer's log is rounded; the adapters compared below are not.
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    for name, parameter in pair.peer_parameters().items():
        mine, other = pair.bank.tensors[0][name].detach(), parameter.detach()
        assert torch.linalg.vector_norm(mine - other) <= 1e-4 * torch.linalg.vector_norm(other), name


def _pad(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    width = max(len(row["ids"]) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row["ids"])] = torch.from_numpy(row["ids"])
        mask[i, : len(row["ids"])] = 1
    labels = torch.tensor([row["label"] for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
