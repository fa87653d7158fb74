"""Interface of a model family: one record per family, defined in the family's own file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rankwise.models.config import ModelConfig
from rankwise.models.decoder import Decoder
from rankwise.nn.backbone import Backbone, Source
from rankwise.nn.linear import Linear
from rankwise.nn.norms import NormWeights


@dataclass(frozen=True)
class Peer:
    """The family's counterpart in transformers, for comparisons."""

    config: str
    """Name of the config class."""
    small: Mapping[str, Any]
    """Arguments of that class for a small model, with a distinct value for every setting."""


@dataclass(frozen=True)
class Family:
    """Everything that other modules need to know about a family."""

    title: str
    """Display name."""
    model_type: str
    """`model_type` in config.json."""
    config: type[ModelConfig]
    backbone: Callable[[Any, Source, torch.dtype, torch.device | str], Backbone]
    """(config, weights, dtype, device) -> the frozen model."""
    decoder: Callable[[Any], Decoder]
    """config -> what the decoder consists of, for exporters."""
    prefix: str
    """Name of the backbone inside transformers' classifier."""
    architecture: str
    """Class name of the classifier in transformers."""
    embedding: str
    """Name of the token embeddings inside the backbone; PEFT saves them if a pad token was added."""
    default_targets: tuple[str, ...]
    """PEFT's default target modules."""
    peer: Peer
    fan_in_fan_out: bool = False
    """Whether checkpoints store linear weights as (in, out)."""
    known: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """Name or Hub id -> config.json of models whose sweeps can be planned offline."""


class Loader:
    """Loads a backbone's tensors.

    Args:
        weights: source of the tensors, under transformers' names without the family's prefix.
        dtype: dtype of the linear layers; everything else is float32.
        device: device for the tensors.
    """

    def __init__(self, weights: Source, dtype: torch.dtype, device: torch.device) -> None:
        self.weights, self.dtype, self.device = weights, dtype, device

    def tensor(self, name: str, *shape: int) -> Tensor:
        """A tensor in float32.

        Raises:
            ModelError: the tensor is missing, has another shape, or cannot be used.
        """
        return self.weights.take(name, shape).to(self.device, torch.float32)

    def norm(self, name: str, width: int) -> NormWeights:
        """A layer norm's weight and bias."""
        return NormWeights(self.tensor(f"{name}.weight", width), self.tensor(f"{name}.bias", width))

    def linear(
        self, modules: Mapping[str, tuple[int, int]], *, bias: bool = True, transposed: bool = False
    ) -> Linear:
        """The linear layer of one target module, or the fused layer of several with the same input.

        Args:
            modules: target module -> (in, out).
            bias: whether the modules have biases.
            transposed: whether weights are stored as (in, out).
        """
        columns, weights, biases, start = {}, [], [], 0
        for name, (n_in, n_out) in modules.items():
            columns[name] = slice(start, start + n_out)
            weights.append(self._weight(name, n_in, n_out, transposed))
            if bias:
                biases.append(self.tensor(f"{name}.bias", n_out).to(self.dtype))
            start += n_out
        return Linear(_joined(weights), _joined(biases) if biases else None, columns)

    def _weight(self, name: str, n_in: int, n_out: int, transposed: bool) -> Tensor:
        if transposed:
            return self.tensor(f"{name}.weight", n_in, n_out).T.to(self.dtype).contiguous()
        return self.tensor(f"{name}.weight", n_out, n_in).to(self.dtype)


def _joined(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
