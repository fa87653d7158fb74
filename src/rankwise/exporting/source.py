"""What is exported: an adapter, its base model and its tokenizer; and their tensors in float32."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rankwise.models.base import Base
from rankwise.models.family import Family
from rankwise.models.peft_format import SavedAdapter
from rankwise.models.registry import build, family_of
from rankwise.models.tokenizer import Tokenizer
from rankwise.models.weights import Weights
from rankwise.nn.backbone import Source as TensorSource
from rankwise.nn.bank import HEAD
from rankwise.store import files

SCORE = f"{HEAD}.weight"
"""Name of the score head's weight, as in transformers."""


@dataclass(frozen=True)
class Source:
    """An adapter that fits its base model."""

    saved: SavedAdapter
    base: Base
    tokenizer: Tokenizer
    max_length: int  # tokens at which texts are truncated
    thresholds: tuple[float, ...] | None = None  # of each label; None if the largest logit decides

    @cached_property
    def base_config(self) -> dict[str, Any]:
        """The base model's config.json, with the keys that rankwise knows."""
        config = files.read_object(self.base.folder / "config.json")
        return family_of(config).config.known(config)

    @property
    def family(self) -> Family:
        """The base model's family."""
        return family_of(self.base_config)

    @property
    def embedding(self) -> str:
        """Name of the token embeddings."""
        return f"{self.family.embedding}.weight"

    @property
    def vocabulary(self) -> int:
        """Number of token embeddings."""
        own = self.saved.embedding
        return len(own) if own is not None else int(self.family.config.from_json(self.base_config).vocab_size)

    def tensors(self, *, merged: bool) -> dict[str, Tensor]:
        """The classifier's tensors in float32, on the CPU.

        Args:
            merged: whether the adapter is added to the weights. Otherwise they are those of the base model,
                with the adapter's score head.

        Returns:
            Name -> tensor. Names and shapes are transformers', without the family's prefix.

        Raises:
            ModelError: the files of the base model are damaged.
        """
        taken = _Taken(Weights(self.base.folder, self.family.prefix))
        build(self.base_config, taken, torch.float32, "meta")  # takes every tensor, and computes nothing
        tensors = taken.tensors
        if self.saved.embedding is not None:
            tensors[self.embedding] = self.saved.embedding
        for module in self.saved.spec.modules if merged else ():
            a, b = self.saved.state[f"{module}.lora_A"], self.saved.state[f"{module}.lora_B"]
            update = self.saved.spec.scale * (b @ a)  # (out, in)
            name = f"{module}.weight"
            tensors[name] = tensors[name] + (update.T if self.family.fan_in_fan_out else update)
        return tensors | {SCORE: self.saved.state[HEAD]}


class _Taken:
    """The tensors that a backbone takes from its source, in float32."""

    def __init__(self, weights: TensorSource) -> None:
        self.weights = weights
        self.tensors: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor, which is remembered."""
        self.tensors[name] = self.weights.take(name, shape).float()
        return self.tensors[name]
