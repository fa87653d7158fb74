"""Pairs of a transformers + PEFT model and our backbone and bank with the same weights."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import peft
import torch
import transformers
from torch import Tensor

from rankwise.models import registry as families
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import HEAD, AdapterSpec, Bank, match_modules
from rankwise.nn.batch import Ids

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
