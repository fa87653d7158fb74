"""Fixtures for the tests of `nn`: tiny random backbones, and adapters that are not zero."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankwise.models import registry as families
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import AdapterSpec, Bank, match_modules
from rankwise.nn.batch import Ids

CLASSES = 3
VOCABULARY = 90
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": VOCABULARY,
        "n_positions": 64,
        "n_embd": 24,
        "n_layer": 3,
        "n_head": 3,
    },
    "llama": {
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    },
    "gpt_neox": {
        "model_type": "gpt_neox",
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "rotary_pct": 0.5,
        "max_position_embeddings": 64,
    },
    "opt": {
        "model_type": "opt",
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "word_embed_proj_dim": 24,
        "ffn_dim": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "max_position_embeddings": 64,
    },
}
FAMILIES = list(CONFIGS)


class RandomWeights:
    """A `Source` in which a tensor only depends on its name and shape."""

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        drawn = 0.3 * torch.randn(shape, generator=_generator(name))
        return drawn + 1 if len(shape) == 1 and not name.endswith("bias") else drawn


def backbone(family: str, dtype: torch.dtype = torch.float32) -> Backbone:
    return families.build(CONFIGS[family], RandomWeights(), dtype)


def spec(
    backbone: Backbone,
    rank: int,
    *,
    seed: int = 0,
    dropout: float = 0.0,
    scale: float = 0.5,
    targets: Sequence[str] = (),
) -> AdapterSpec:
    modules = match_modules(list(backbone.modules()), targets or backbone.default_targets)
    return AdapterSpec(rank, scale * rank, scale, seed, dropout, modules if rank else ())


def bank(backbone: Backbone, specs: Sequence[AdapterSpec]) -> Bank:
    """A newly initialized bank, as at the start of training."""
    return Bank(specs, backbone.modules(), backbone.d_model, CLASSES, backbone.head_std)


def trained_bank(backbone: Backbone, specs: Sequence[AdapterSpec]) -> Bank:
    """A bank whose B is random too, from each adapter's seed."""
    made = bank(backbone, specs)
    with torch.no_grad():
        for each, tensors in zip(specs, made.tensors, strict=True):
            for name, tensor in tensors.items():
                if name.endswith("lora_B"):
                    tensor.copy_(0.3 * torch.randn(tensor.shape, generator=_generator(f"{name}{each.seed}")))
    return made


def texts(lengths: Sequence[int], seed: int = 0) -> list[Ids]:
    random = np.random.default_rng(seed)
    return [random.integers(1, VOCABULARY, n) for n in lengths]


def close(ours: Tensor, theirs: Tensor, relative: float) -> bool:
    """Whether the difference is small relative to the norm of the tensor, which must not be zero."""
    size = torch.linalg.vector_norm(theirs)
    return bool(size > 0 and torch.linalg.vector_norm(ours - theirs) <= relative * size)


def _generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))
