"""What the frozen backbones of all families share: named linear layers, and the hook.

A backbone runs over a packed batch and knows nothing of adapters. At every linear layer it calls a
`Hook`, which by default just applies the frozen weight; the bank's hook adds what is trained.
The residual packed batch is float32; matrix products run in the backbone's dtype.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from rankwise.nn.activation import Activation
from rankwise.nn.batch import PackedBatch
from rankwise.nn.linear import Linear


class Source(Protocol):
    """Where a backbone takes its weights from."""

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The named tensor; raises if it is missing or has another shape."""


class Hook:
    """What a backbone calls on its way. This one leaves the model as it is: frozen, no dropout."""

    def linear(self, linear: Linear, x: Tensor, pooled: bool = False) -> Tensor:
        """`linear` on x (rows, in) -> (rows, out); a row is a text if `pooled`, else a token."""
        return linear(x)

    def activated(self, linear: Linear, x: Tensor, activation: Activation, pooled: bool = False) -> Tensor:
        """`activation` of what `linear` gives."""
        return activation(self.linear(linear, x, pooled))

    def drop(self, module: str, x: Tensor, rate: float, pooled: bool = False) -> Tensor:
        """The base model's own dropout on x (rows, d_model)."""
        return x

    def add(self, module: str, x: Tensor, branch: Tensor, rate: float, pooled: bool = False) -> Tensor:
        """x + branch, both (rows, d_model), x float32; the base model's own dropout is on the branch.

        It may be x itself, changed: the backbone does not use x again.
        """
        return x + branch

    def mask(self, module: str, heads: int, rate: float, pooled: bool = False) -> list[Tensor] | None:
        """Masks for the attention weights of each length bucket (texts, heads, queries, width), or none."""
        return None


class Backbone(ABC):
    """A frozen model of one family, from token ids to each text's last hidden state."""

    tokens: Tensor  # (vocabulary, d_model) float32
    d_model: int
    depth: int  # layers
    max_positions: int
    dtype: torch.dtype  # of matrix products
    default_targets: tuple[str, ...]
    head_std: float  # standard deviation of a freshly drawn score head

    def __call__(self, packed: PackedBatch, hook: Hook) -> Tensor:
        """(texts, d_model) float32: the final hidden state of each text's last token."""
        x = self.embed(packed, hook)
        for i in range(self.depth):
            x = self.layer(i, x, packed, hook)
        return self.normed(x)

    @abstractmethod
    def embed(self, packed: PackedBatch, hook: Hook) -> Tensor:
        """(tokens, d_model) float32: what goes into the first layer."""

    @abstractmethod
    def layer(self, i: int, x: Tensor, packed: PackedBatch, hook: Hook) -> Tensor:
        """Layer i on x (tokens, d_model) float32.

        Returns:
            (tokens, d_model) float32; of the last layer (texts, d_model), since the head reads each
            text's last token only.
        """

    @abstractmethod
    def normed(self, x: Tensor) -> Tensor:
        """The final norm of x (texts, d_model) float32."""

    @abstractmethod
    def linears(self) -> Iterator[Linear]:
        """Every linear layer that an adapter may be put on."""

    def cast(self, dtype: torch.dtype) -> None:
        """Round the linear weights to another dtype, which matrix products then run in."""
        for linear in self.linears():
            linear.cast(dtype)
        self.dtype = dtype

    def modules(self) -> dict[str, tuple[int, int]]:
        """Site name -> (in, out), in the order of the forward pass."""
        return {
            module: (linear.n_in, columns.stop - columns.start)
            for linear in self.linears()
            for module, columns in linear.modules.items()
        }
