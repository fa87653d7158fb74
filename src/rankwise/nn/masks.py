"""Dropout masks of one training step: the interface of `ragged.masks` and `static.masks`.

A mask is a tensor of ones and zeros, uint8. It depends on the adapter's seed, the number of the step,
the mask's name and the place of the text in the adapter's batch, never on the other adapters. So an
adapter sees the same masks alone, in any bank, after a resume, and in micro-batches.

Three of the masks that a step of GPT-2 asks for::

    name                        from            shape                            on
    h.0.attn.c_attn.lora        `rows`          (tokens, in)                     the adapter's input
    h.0.attn.resid              `rows`          (tokens, d_model)                a residual branch
    h.0.attn                    `attention`     (texts, heads, queries, width)   attention weights

The name is the target module's name with a suffix, or the name of a place in the frozen model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from rankwise.nn.batch import PackedBatch


class Masks(ABC):
    """The dropout masks of one step of several adapters.

    Attributes:
        packed: the step's packed batch.
    """

    packed: PackedBatch

    @abstractmethod
    def distinct(self) -> Masks:
        """The masks of the packed batch's distinct batches."""

    @abstractmethod
    def rows(self, name: str, width: int, rates: Sequence[float], pooled: bool) -> Tensor:
        """The mask for rows of the packed batch.

        Args:
            name: what keys the mask.
            width: columns.
            rates: each adapter's drop rate.
            pooled: whether a row is a text instead of a token.

        Returns:
            (tokens or texts, width) uint8. The caller scales what is left by `1 / (1 - rate)`.
        """

    @abstractmethod
    def attention(self, name: str, heads: int, rate: float, pooled: bool) -> list[Tensor]:
        """The masks for attention weights.

        Args:
            name: what keys the masks.
            heads: query heads.
            rate: drop rate.
            pooled: whether a text has one query, its last token, instead of one for each token.

        Returns:
            For each length bucket (texts, heads, queries, width) uint8. What a text gets depends on its
            length and its place in its adapter's batch, not on which texts share its bucket.
        """
