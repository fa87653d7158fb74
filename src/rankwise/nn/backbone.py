"""The interface of the frozen backbones: named linear layers and the hook.

A backbone runs over a packed batch and knows nothing about adapters. Wherever an adapter or a dropout
mask may apply, it calls a `Hook`::

    x                       (tokens, d_model) float32, the residual stream
    norm(x)                 in the backbone's dtype
    hook.linear(qkv)        y = x W^T; the bank's hook adds the low-rank terms
    attend(hook.mask())     attention, with dropout on its weights
    hook.linear(out)
    hook.add(x, branch)     x + dropout(branch)
    ...                     the MLP likewise; its first product goes through hook.activated

`Hook` itself leaves the model as it is. `dropout.DropoutHook` adds the base model's own dropout;
`ragged.lora.BankHook` and `static.lora.BankHook` add a bank's adapters.

The residual stream is float32; matrix products run in the backbone's dtype.
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
from rankwise.nn.masks import AttentionMask


class Source(Protocol):
    """Where a backbone gets its weights from."""

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return the named tensor; raise if it is missing or has the wrong shape."""


class Hook:
    """Extension points of a backbone's forward pass. The base class leaves the frozen model unchanged.

    In every method, a row is a text if `pooled`, else a token, and `name` is the key of a dropout mask.
    """

    def linear(self, linear: Linear, x: Tensor, pooled: bool = False) -> Tensor:
        """`linear` on x (rows, in) -> (rows, out)."""
        return linear(x)

    def activated(self, linear: Linear, x: Tensor, activation: Activation, pooled: bool = False) -> Tensor:
        """`activation(linear(x))` of x (rows, in) -> (rows, out)."""
        return activation(self.linear(linear, x, pooled))

    def drop(self, name: str, x: Tensor, rate: float, pooled: bool = False) -> Tensor:
        """The base model's own dropout on x (rows, d_model)."""
        return x

    def add(self, name: str, x: Tensor, branch: Tensor, rate: float, pooled: bool = False) -> Tensor:
        """x + branch, both (rows, d_model), x float32, with the base model's own dropout on the branch.

        May modify x in place and return it, so the backbone must not use x again.
        """
        return x + branch

    def mask(self, name: str, heads: int, rate: float, pooled: bool = False) -> AttentionMask | None:
        """Dropout masks for the attention weights, as in `Masks.attention`, or None."""
        return None


class Backbone(ABC):
    """A frozen model of one family, from token ids to each text's last hidden state."""

    tokens: Tensor  # (vocabulary, d_model) float32
    d_model: int
    depth: int  # layers
    max_positions: int
    dtype: torch.dtype  # of matrix products
    has_dropout: bool  # whether it has dropout of its own, which makes hidden states differ between epochs
    default_targets: tuple[str, ...]
    head_std: float  # standard deviation of a newly initialized score head

    def __call__(self, packed: PackedBatch, hook: Hook) -> Tensor:
        """(texts, d_model) float32: the final hidden state of each text's last token."""
        x = self.embed(packed, hook)
        for i in range(self.depth):
            x = self.layer(i, x, packed, hook)
        return self.normed(x)

    @abstractmethod
    def embed(self, packed: PackedBatch, hook: Hook) -> Tensor:
        """(tokens, d_model) float32: the input of the first layer."""

    @abstractmethod
    def layer(self, i: int, x: Tensor, packed: PackedBatch, hook: Hook) -> Tensor:
        """Layer i on x (tokens, d_model) float32.

        Returns:
            (tokens, d_model) float32. The last layer returns (texts, d_model): the head only reads each
            text's last token, so queries, projections and MLP are skipped for the other tokens.
        """

    @abstractmethod
    def normed(self, x: Tensor) -> Tensor:
        """The final norm of x (texts, d_model) float32."""

    @abstractmethod
    def linears(self) -> Iterator[Linear]:
        """Every linear layer that an adapter can target."""

    def cast(self, dtype: torch.dtype) -> None:
        """Cast the linear weights to `dtype`; matrix products run in it from then on."""
        for linear in self.linears():
            linear.cast(dtype)
        self.dtype = dtype

    def modules(self) -> dict[str, tuple[int, int]]:
        """Target module name -> (in, out), in the order of the forward pass."""
        return {
            module: (linear.n_in, columns.stop - columns.start)
            for linear in self.linears()
            for module, columns in linear.modules.items()
        }
