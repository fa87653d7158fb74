"""Dropout masks of one training step: the interface that both batch layouts share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from rankwise.nn.batch import PackedBatch


class Masks(ABC):
    """The masks of one step of several adapters.

    Attributes:
        packed batch: the step's packed texts.
    """

    packed: PackedBatch

    @abstractmethod
    def distinct(self) -> Masks:
        """The masks of the packed batch's distinct batches."""

    @abstractmethod
    def rows(self, module: str, width: int, rates: Sequence[float], pooled: bool) -> Tensor:
        """A mask of ones and zeros for the packed batch's rows.

        Args:
            target module: name that keys the mask.
            width: columns.
            rates: each adapter's drop rate.
            pooled: a row is a text, not a token.

        Returns:
            (tokens or texts, width) uint8. What it keeps still wants the factor `1 / (1 - rate)`.
        """

    @abstractmethod
    def attention(self, module: str, heads: int, rate: float, pooled: bool) -> list[Tensor]:
        """A mask of ones and zeros for each length bucket's attention weights.

        Returns:
            For each length bucket (texts, heads, queries, width) uint8, with one query a text if `pooled`,
            else `width` of them. A text's part depends on its own length and its place in its
            adapter's batch, not on who shares its length bucket.
        """
