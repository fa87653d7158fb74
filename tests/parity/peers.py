"""Pairs of a transformers + PEFT model and our backbone and bank with the same weights."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peft
import torch
import transformers
from torch import Tensor
from torch.utils.data import SequentialSampler

from rankwise.models import registry as families
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import HEAD, AdapterSpec, Bank, match_modules
from rankwise.nn.batch import Ids
from rankwise.nn.classifier import logits
from rankwise.nn.ragged.batch import pack
from rankwise.recipe import Recipe
from rankwise.tasks.registry import task_of
from rankwise.tasks.task import Targets
from rankwise.training.trainer import order
from tests.training import train

CLASSES = 6
SMALL: dict[str, dict[str, Any]] = {
    name: {"vocab_size": 500, **family.peer.small} for name, family in families.FAMILIES.items()
}
"""Small configs of each family and its variants."""
SMALL["llama3"] = SMALL["llama"] | {
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
}
SMALL["gpt_neox-serial"] = SMALL["gpt_neox"] | {"use_parallel_residual": False, "attention_bias": False}
# At the default initialization, attention is nearly uniform. The gradients of query and key are then
# differences of nearly equal numbers; in transformers, too, they are off by 2e-4 from float64.
SMALL["opt"] |= {"init_std": 0.1}
SMALL["opt-unbiased"] = SMALL["opt"] | {"enable_bias": False}
CONFIGS: dict[str, Any] = {
    name: getattr(transformers, families.FAMILIES[model_type].peer.config)
    for name in SMALL
    for model_type in [name.replace("llama3", "llama").partition("-")[0]]
}
_PREFIXES = "|".join({family.prefix for family in families.FAMILIES.values()})
_NAME = re.compile(rf"base_model\.model\.(?:{_PREFIXES})\.(.*)\.(lora_[AB])\.default\.weight")


@dataclass
class Pair:
    """A PEFT model, and our backbone and one-adapter bank with the same weights."""

    peft: Any
    backbone: Backbone
    bank: Bank
    config_json: dict[str, Any]

    def peer_logits(self, texts: list[Ids]) -> Tensor:
        """(texts, classes), right-padded in one batch."""
        width = max(map(len, texts))
        ids = torch.full((len(texts), width), 0)
        mask = torch.zeros_like(ids)
        for i, text in enumerate(texts):
            ids[i, : len(text)] = torch.from_numpy(text)
            mask[i, : len(text)] = 1
        logits: Tensor = self.peft(input_ids=ids, attention_mask=mask).logits
        return logits

    def peer_parameters(self) -> dict[str, Tensor]:
        """PEFT's trainable parameters, under our names."""
        return {our_name(name): p for name, p in self.peft.named_parameters() if p.requires_grad}


class StateDict:
    """Our `Source` over a transformers model's weights."""

    def __init__(self, model: Any, prefix: str) -> None:
        self.tensors = {name.removeprefix(f"{prefix}."): t for name, t in model.state_dict().items()}

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor: Tensor = self.tensors[name]
        assert tuple(tensor.shape) == shape, name
        return tensor


def our_name(name: str) -> str:
    """PEFT's name of a trained parameter -> ours."""
    found = _NAME.fullmatch(name)
    if found:
        return f"{found[1]}.{found[2]}"
    assert name == "base_model.model.score.modules_to_save.default.weight", name
    return HEAD


def make_pair(
    family: str, targets: list[str] | str | None = None, *, rank: int = 4, shape: dict[str, Any] | None = None
) -> Pair:
    """A PEFT model with random weights, including biases and B, and ours with the same weights."""
    torch.manual_seed(0)
    json = CONFIGS[family](**(SMALL[family] if shape is None else shape)).to_dict()
    config = CONFIGS[family](
        **(SMALL[family] if shape is None else shape),
        num_labels=CLASSES,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
    )
    kind: Any = transformers.AutoModelForSequenceClassification
    model = kind.from_config(config, attn_implementation="eager")
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "ln_" in name or "norm" in name:
            torch.nn.init.normal_(parameter, mean=0.0 if name.endswith("bias") else 1.0, std=0.3)
    prefix = families.family_of(json).prefix
    backbone = families.build(json, StateDict(model, prefix), torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns when it sets fan_in_fan_out for GPT-2
        lora = peft.LoraConfig(task_type=peft.TaskType.SEQ_CLS, r=rank, lora_alpha=8, target_modules=targets)
        wrapped: Any = peft.get_peft_model(model, lora)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    wrapped.eval()
    named = [targets] if isinstance(targets, str) else targets or list(backbone.default_targets)
    modules = backbone.modules()
    spec = AdapterSpec(rank, 8.0, 8.0 / rank, 0, 0.0, match_modules(list(modules), named))
    bank = Bank([spec], modules, backbone.d_model, CLASSES)
    pair = Pair(wrapped, backbone, bank, json)
    bank.load(0, {name: p.detach() for name, p in pair.peer_parameters().items()})
    return pair


def random_texts(lengths: list[int], vocabulary: int, seed: int = 0) -> list[Ids]:
    """Texts of random token ids above 0, the pad token."""
    random = np.random.default_rng(seed)
    return [random.integers(1, vocabulary, n) for n in lengths]


class Differences(NamedTuple):
    """How far our results are from those of transformers + PEFT."""

    losses: float  # the largest difference, of one batch or of all steps
    tensors: float  # the largest norm of the difference of a tensor, relative to the norm of theirs


def without_dropout(pair: Pair, *, several_labels: bool = False) -> Pair:
    """The same pair, whose PEFT model trains without the base's dropout."""
    pair.peft.config.use_cache = False
    if several_labels:
        pair.peft.config.problem_type = "multi_label_classification"
    for module in pair.peft.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):  # OPT layers have a rate, not a module
            module.dropout = 0.0
    return pair


def gradients_apart(pair: Pair, texts: Sequence[Ids], targets: Targets) -> Differences:
    """The differences of the loss of a batch, and of its gradients."""
    theirs = pair.peft(**padded(rows_of(texts, targets))).loss
    (ours,) = logits(pair.backbone, pair.bank, pack([texts]))
    task = task_of("multi-label" if targets.ndim > 1 else "single-label", "|")
    loss = task.loss(CLASSES, None, None, torch.device("cpu"))([ours], [torch.from_numpy(targets)])
    torch.autograd.backward(theirs + loss.sum())
    own, peer = pair.bank.tensors[0], pair.peer_parameters()
    tensors = [_apart(own[name].grad, parameter.grad) for name, parameter in peer.items()]
    return Differences(abs(float(loss.detach()) - float(theirs.detach())), max(tensors))


def steps_apart(
    pair: Pair, texts: Sequence[Ids], targets: Targets, recipe: Recipe, folder: Path
) -> Differences:
    """The differences of the losses of an epoch's steps, and of the tensors after it.

    Args:
        pair: both models, without dropout.
        texts: token ids.
        targets: (texts,) label ids, or (texts, classes) 0 and 1.
        recipe: how both train.
        folder: where the Trainer may write.
    """
    settings = recipe.train
    steps = train(pair.backbone, pair.bank, texts, targets, **recipe.flat())
    rows, seed = rows_of(texts, targets), pair.bank.specs[0].seed
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch_size,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_steps,
        max_grad_norm=settings.max_grad_norm,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    rows = [rows[i] for i in order(seed, 0, len(rows))]
    trainer = _InOrder(pair.peft, arguments, train_dataset=rows, data_collator=padded)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    losses = np.abs(np.array([step.losses[0] for step in steps]) - theirs)
    tensors = [
        _apart(pair.bank.tensors[0][name], parameter) for name, parameter in pair.peer_parameters().items()
    ]
    return Differences(float(losses.max()), max(tensors))


class _InOrder(transformers.Trainer):
    """The Trainer without shuffling, so that both sides see the same batches."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(train_dataset)


def rows_of(texts: Sequence[Ids], targets: Targets) -> list[dict[str, Any]]:
    """Token ids and target of each text, as a data set of the Trainer."""
    return [{"ids": ids, "label": target} for ids, target in zip(texts, targets, strict=True)]


def padded(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch of the Trainer, padded on the right."""
    width = max(len(row["ids"]) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row["ids"])] = torch.from_numpy(row["ids"])
        mask[i, : len(row["ids"])] = 1
    labels = torch.from_numpy(np.stack([row["label"] for row in rows]))
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels if labels.ndim == 1 else labels.float(),
    }


def _apart(ours: Tensor | None, theirs: Tensor | None) -> float:
    assert ours is not None and theirs is not None
    return float((ours - theirs).detach().norm() / theirs.detach().norm())
