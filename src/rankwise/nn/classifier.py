"""Trunk, bank and heads together: a packed stream in, each adapter's logits and loss out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.nn.activation import Activation
from rankwise.nn.backbone import Trunk
from rankwise.nn.bank import Bank
from rankwise.nn.batch import Stream
from rankwise.nn.dropout import DropoutHook
from rankwise.nn.linear import Linear
from rankwise.nn.masks import Masks
from rankwise.nn.ragged.lora import BankHook


def logits(
    trunk: Trunk, bank: Bank, stream: Stream, masks: Masks | None = None, base_dropout: bool = True
) -> list[Tensor]:
    """Each adapter's logits on its own texts of the stream.

    Args:
        trunk: the frozen model.
        bank: the adapters, in the stream's order.
        stream: their packed texts.
        masks: dropout masks, while training.
        base_dropout: whether the trunk's own dropout is active too, where there are masks.

    Returns:
        For each adapter (texts, classes) float32.
    """
    hook = BankHook(bank, stream, masks, base_dropout)
    return hook.score(pooled(trunk, bank.first_layer, stream, hook))


def pooled(trunk: Trunk, first_layer: int | None, stream: Stream, hook: DropoutHook) -> Tensor:
    """The trunk with its adapters; below the first adapted layer, each distinct batch only once.

    Args:
        trunk: the frozen model.
        first_layer: the first adapted one, None for heads alone.
        stream: the packed texts.
        hook: that adds the adapters.

    Returns:
        (texts, d_model) float32: the final hidden state of each text's last token.
    """
    first = trunk.depth if first_layer is None else first_layer
    lower, masks = stream.distinct, hook.base_masks
    with torch.no_grad():  # nothing is trained down there
        below, lower_hook = lower.stream if lower else stream, _FrozenHook(masks and masks.distinct())
        x = trunk.embed(below, lower_hook)
        for i in range(first):
            x = trunk.layer(i, x, below, lower_hook)
        if lower:
            x = x[lower.texts if first == trunk.depth else lower.rows]
    for i in range(first, trunk.depth):
        x = trunk.layer(i, x, stream, hook)
    return trunk.normed(x)


class _FrozenHook(DropoutHook):
    """For layers that nothing is trained in: nobody comes back for a slope, or for an earlier sum."""

    def activated(self, linear: Linear, x: Tensor, activation: Activation, pooled: bool = False) -> Tensor:
        """`activation` of what `linear` gives, without a gradient."""
        return linear.activated(x, activation)

    def add(self, site: str, x: Tensor, branch: Tensor, rate: float, pooled: bool = False) -> Tensor:
        """x + dropout(branch), both (rows, d_model); x itself where nothing is dropped."""
        if self.base_masks is None or not rate:
            return x.add_(branch)
        return super().add(site, x, branch, rate, pooled)


def losses(
    logits: Sequence[Tensor], targets: Sequence[Tensor], class_weights: Tensor | None = None
) -> Tensor:
    """Each adapter's mean cross-entropy over its own texts.

    Args:
        logits: for each adapter (texts, classes) float32.
        targets: for each adapter (texts,) int64.
        class_weights: (classes,) float32; the mean is then weighted by them.

    Returns:
        (adapters,) float32. The adapters share no trained tensor, so the gradient of the sum is
        each one's own gradient.
    """
    each = [F.cross_entropy(z, t, weight=class_weights) for z, t in zip(logits, targets, strict=True)]
    return torch.stack(each)
