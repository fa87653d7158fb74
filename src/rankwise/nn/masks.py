"""Dropout masks of one training step: the interface of `ragged.masks` and `static.masks`.

A mask is a uint8 tensor of ones and zeros. It depends on the adapter's seed, the step number, the mask's
name and the text's position in the adapter's batch, never on the other adapters. An adapter therefore
gets the same masks when trained alone, in any bank, after a resume, and with micro-batches.

Three of the masks used in a training step of GPT-2::

    name                        method          shape                            applied to
    h.0.attn.c_attn.lora        `rows`          (tokens, in)                     the adapter's input
    h.0.attn.resid              `rows`          (tokens, d_model)                a residual branch
    h.0.attn                    `attention`     (texts, heads, queries, width)   attention weights

The name is the target module's name plus a suffix, or the name of a dropout layer of the frozen model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from rankwise.nn.batch import PackedBatch
from rankwise.nn.fused import HeadMask

AttentionMask = list[Tensor] | HeadMask
"""Dropout masks for attention weights: one for each length bucket, or what a kernel hashes them from."""


class Masks(ABC):
    """The dropout masks of one step of several adapters.

    Attributes:
        packed: the step's packed batch.
    """

    packed: PackedBatch

    @abstractmethod
    def distinct(self) -> Masks:
        """The masks for the packed batch's distinct batches."""

    @abstractmethod
    def rows(self, name: str, width: int, rates: Sequence[float], pooled: bool) -> Tensor:
        """The mask for rows of the packed batch.

        Args:
            name: key of the mask.
            width: number of columns.
            rates: each adapter's dropout rate.
            pooled: whether a row is a text instead of a token.

        Returns:
            (tokens or texts, width) uint8. The caller scales by `1 / (1 - rate)`.
        """

    @abstractmethod
    def attention(self, name: str, heads: int, rate: float, pooled: bool) -> list[Tensor]:
        """The masks for attention weights.

        Args:
            name: key of the masks.
            heads: number of query heads.
            rate: dropout rate.
            pooled: whether a text has a single query, its last token, instead of one per token.

        Returns:
            For each length bucket (texts, heads, queries, width) uint8. A text's mask depends on its
            length and its position in the adapter's batch, not on the other texts in its bucket.
        """

    def undrawn(self, name: str) -> HeadMask | None:
        """What a mask for attention weights is hashed from, if the kernels of `fused` draw it; else None."""
        return None
