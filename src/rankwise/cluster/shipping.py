"""What travels through Ray's object store: arrays, which every process of a machine reads in place.

Many small arrays would each be copied, so texts are concatenated::

    texts      [5 6 7]  [8]  [9 1]
    tokens     5 6 7 8 9 1
    lengths    3 1 2
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise.errors import ModelError
from rankwise.models import registry
from rankwise.models.base import Base
from rankwise.models.weights import Weights
from rankwise.nn.backbone import Backbone
from rankwise.nn.batch import Ids
from rankwise.store import files
from rankwise.training.trainer import TrainingData


@dataclass(frozen=True)
class ShippedTexts:
    """Texts as token ids."""

    tokens: NDArray[np.int64]  # of all texts
    lengths: NDArray[np.int64]  # (texts,)

    @classmethod
    def of(cls, texts: Sequence[Ids]) -> Self:
        """Pack texts.

        >>> ShippedTexts.of([np.array([5, 6, 7]), np.array([8])]).texts()
        [array([5, 6, 7]), array([8])]
        """
        joined = np.concatenate(texts) if len(texts) else np.empty(0, dtype=np.int64)
        return cls(joined, np.array([len(text) for text in texts], dtype=np.int64))

    def texts(self) -> list[Ids]:
        """The texts, as views."""
        return np.split(self.tokens, np.cumsum(self.lengths)[:-1]) if len(self.lengths) else []


@dataclass(frozen=True)
class ShippedData:
    """Training data."""

    rest: TrainingData  # without texts
    texts: ShippedTexts
    validation: ShippedTexts

    @classmethod
    def of(cls, data: TrainingData) -> Self:
        """Pack the texts of training data."""
        rest = replace(data, ids=(), validation_ids=())
        return cls(rest, ShippedTexts.of(data.ids), ShippedTexts.of(data.validation_ids))

    def data(self) -> TrainingData:
        """The training data again."""
        return replace(self.rest, ids=self.texts.texts(), validation_ids=self.validation.texts())


@dataclass(frozen=True)
class ShippedBase:
    """A base model: the source of the tensors of its backbone."""

    config: Mapping[str, Any]  # config.json
    tensors: Mapping[str, tuple[str, tuple[int, ...], NDArray[np.uint8]]]  # name -> dtype, shape, bytes

    @classmethod
    def of(cls, base: Base) -> Self:
        """Read the tensors of a base model.

        Raises:
            ModelError: its files are damaged.
        """
        config = files.read_object(base.folder / "config.json")
        weights = Weights(base.folder, registry.family_of(config).prefix)
        return cls(config, {name: _bytes(tensor) for name, tensor in weights.items()})

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(array.nbytes for _, _, array in self.tensors.values())

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor; its memory is that of the object store."""
        if name not in self.tensors or self.tensors[name][1] != shape:
            raise ModelError(f"the base model lacks the tensor {name}, of shape {shape}")
        dtype, _, array = self.tensors[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the memory is read-only, and frozen weights may be
            return torch.from_numpy(array).view(getattr(torch, dtype)).view(shape)

    def backbone(self, dtype: torch.dtype, device: torch.device) -> Backbone:
        """The frozen backbone."""
        return registry.build(self.config, self, dtype, device)


def _bytes(tensor: Tensor) -> tuple[str, tuple[int, ...], NDArray[np.uint8]]:
    flat = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), flat
